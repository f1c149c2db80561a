"""The released files from the Hugging Face Hub, into a folder of the user's."""

from collections.abc import Callable
from pathlib import Path

from wm_jax.checkpoint import CheckpointError
from wm_jax.ports.open_oasis import weights

REPOSITORY = "Etched/oasis-500m"


def download(folder: Path, announce: Callable[[str], None]) -> None:
    """Fetches what is not there yet, and tells `announce` of each file.

    Raises:
      CheckpointError: the Hub's library is not installed, or the Hub does not give the files.
    """
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise CheckpointError(
            f"huggingface_hub is not installed: pip install -e '.[hub]', or put {' and '.join(weights.FILES.values())} "
            f"of huggingface.co/{REPOSITORY} into {folder} yourself"
        ) from None
    for name in weights.FILES.values():
        announce(f"{REPOSITORY}/{name} -> {folder / name}")
        try:
            hf_hub_download(repo_id=REPOSITORY, filename=name, local_dir=folder)
        except OSError as error:
            raise CheckpointError(
                f"{REPOSITORY}/{name} did not come: {error}\nIf the Hub asks who you are: `hf auth login`"
            ) from error

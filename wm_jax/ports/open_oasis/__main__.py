"""The released weights of Oasis-500M: fetch them, or look whether a folder has them.

python -m wm_jax.ports.open_oasis download --folder weights/oasis  from the Hugging Face Hub (extra `hub`)

python -m wm_jax.ports.open_oasis check --folder weights/oasis     every tensor by name and shape; nothing is unpickled

Then: python serve.py oasis-500m --weights weights/oasis
"""

import sys
from pathlib import Path
from typing import Literal

import tyro

from wm_jax.checkpoint import CheckpointError
from wm_jax.ports.open_oasis import RELEASED, weights
from wm_jax.ports.open_oasis.download import download


def main() -> int:
    """The command line; returns the exit status."""

    def run(what: Literal["download", "check"], /, folder: Path = Path("weights/oasis")) -> None:
        """The released weights of Oasis-500M.

        Args:
          what: Fetch them from the Hub, or only look whether the folder has them.
          folder: Where oasis500m.safetensors and vit-l-20.safetensors are, or shall be.
        """
        if what == "download":
            download(folder, announce=print)
        weights.check(folder, RELEASED)
        print(f"{folder} is whole: python serve.py oasis-500m --weights {folder}")

    try:
        tyro.cli(run, prog="python -m wm_jax.ports.open_oasis", description=__doc__)
    except CheckpointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

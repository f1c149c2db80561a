"""Train a world, one stage at a time: python train.py configs/toy/dynamics.py"""

import argparse
import os
import sys
from pathlib import Path

USAGE = """\
Train one stage of a world: the autoencoder first, then the dynamics.

    python train.py configs/toy/autoencoder.py
    python train.py configs/toy/dynamics.py --steps 2000 --optimizer.learning-rate 3e-4
    python train.py configs/toy/dynamics.py --out runs/mine --init-from runs/toy_dynamics

Every field of the config is an option: `python train.py configs/toy/dynamics.py --help` lists them. A run lives in one
folder (runs/<name>, or --out): config.json, metrics.jsonl, pictures/, checkpoints/ and world/, which serve.py plays.
Stopped by Ctrl-C, SIGTERM, a crash or a full disk, the same command goes on where it was, to the same weights.

The latents that dynamics learn from are made once and kept in runs/latents (a sixth of the recording: 1.2 GB for
CoinRun). That folder is a cache: delete what no run reads now, it is made again.
"""


def main(argv: list[str]) -> None:
    """Reads the command line and trains."""
    parser = argparse.ArgumentParser("train.py", add_help=False, allow_abbrev=False)
    parser.add_argument("--out", type=Path)
    own, rest = parser.parse_known_args(argv)
    if not rest or rest[0].startswith("-"):
        print(USAGE, end="")
        raise SystemExit(0 if "--help" in rest or "-h" in rest else 2)
    path, *overrides = rest
    # Compiled programs outlive the process: a restarted run begins within seconds.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent / ".jax_cache"))

    from wm_jax.host_memory import keep_freed_memory

    keep_freed_memory()
    from wm_jax import config as config_file
    from wm_jax.training.config import load_config
    from wm_jax.training.prepare import train

    usage = "Also: --out FOLDER, where the run lives (default runs/<name>)."
    config = config_file.parse(load_config(path), overrides, program=f"train.py {path}", description=usage)
    train(config, own.out or Path("runs") / config.name)


def is_refusal(error: Exception) -> bool:
    """Whether an error is an answer (ours, the disk's, a missing library's); any other is a bug and shows where it is."""
    return type(error).__module__.startswith("wm_jax.") or isinstance(error, OSError | ImportError)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except Exception as error:
        if not is_refusal(error):
            raise
        raise SystemExit(f"{type(error).__name__}: {error}") from error

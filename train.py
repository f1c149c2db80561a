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

    from wm_jax import config as config_file
    from wm_jax.training.prepare import train

    usage = "Also: --out FOLDER, where the run lives (default runs/<name>)."
    config = config_file.parse(path, overrides, program=f"train.py {path}", description=usage)
    train(config, own.out or Path("runs") / config.name)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except Exception as error:
        # Our own errors say what is wrong and the way out; any other is a bug and shows where it is.
        if not type(error).__module__.startswith("wm_jax."):
            raise
        raise SystemExit(f"{type(error).__name__}: {error}") from error

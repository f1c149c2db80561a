"""Front door of the evaluation: python -m wm_jax.eval worlds/coinrun"""

import sys

import rich.console
import rich.markdown
import tyro

from wm_jax.eval import table
from wm_jax.eval.evaluate import EvalConfig, evaluate, out_folder


def main() -> int:
    """Measures a world, prints its table; returns the exit status."""
    config = tyro.cli(EvalConfig, prog="python -m wm_jax.eval")
    try:
        report = evaluate(config)
    except (ValueError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    rich.console.Console().print(rich.markdown.Markdown(table.markdown(report)))
    if "against_shipped" in report:
        print("\n".join(table.verdict(report["against_shipped"])))
    print(f"wrote table.md, table.json, curves.png and film.mp4 to {out_folder(config)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

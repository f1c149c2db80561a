"""Front door of the export: python -m wm_jax.export worlds/coinrun --report"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated

import rich.console
import rich.markdown
import tyro

from wm_jax.export.report import markdown, report
from wm_jax.export.targets import TARGETS


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """Compiles a world's programs for accelerators that are not here (needs the extra `aot`).

    Attributes:
      world: A world or run folder.
      report: Compile for all targets and print the table.
      targets: Those of them to try.
      slots: Sessions in one batch.
      timeout_s: Seconds that one compilation may take.
      json: File for the rows as JSON.
    """

    world: Annotated[Path, tyro.conf.Positional] = Path("worlds/coinrun")
    report: bool = False
    targets: tuple[str, ...] = tuple(TARGETS)
    slots: int = 1
    timeout_s: float = 300.0
    json: Path | None = None


def main() -> int:
    """Prints the report; returns 1 where something did not compile."""
    config = tyro.cli(ExportConfig, prog="python -m wm_jax.export")
    unknown = set(config.targets) - set(TARGETS)
    if unknown or not config.report:
        print(
            f"error: unknown targets {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}"
            if unknown
            else "error: nothing to do; --report compiles for all targets",
            file=sys.stderr,
        )
        return 2
    rows = []
    for row in report(config.world, config.targets, config.slots, config.timeout_s):
        print(f"{row.target:9} {row.program:8} {'ok' if row.error is None else 'NO'}", file=sys.stderr)
        rows.append(row)
    rich.console.Console().print(rich.markdown.Markdown(markdown(rows)))
    if config.json is not None:
        config.json.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=2) + "\n")
    return int(any(row.error is not None for row in rows))


if __name__ == "__main__":
    sys.exit(main())

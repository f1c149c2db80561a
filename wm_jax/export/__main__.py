"""Makes a world ready for one accelerator, or compiles it for all of them.

python -m wm_jax.export worlds/coinrun --target cpu --out build/coinrun      then: python serve.py build/coinrun
python -m wm_jax.export worlds/coinrun --target trn2 --out build/coinrun     checked against what Trainium refuses
python -m wm_jax.export worlds/coinrun --report                              compiles for every accelerator (extra `aot`)
python -m wm_jax.export configs/base/dynamics.py --report                    the same for a world that is not trained yet
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated

import rich.console
import rich.markdown
import tyro

from wm_jax.checkpoint import CheckpointError
from wm_jax.config import ConfigError
from wm_jax.export import artifact
from wm_jax.export.report import PROGRAMS, markdown, report
from wm_jax.export.targets import TARGETS


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """What is exported or compiled.

    Attributes:
      world: A world or run folder; for a report also the config file of a run.
      target: Write a folder for this accelerator, from which serve.py starts without tracing.
      out: That folder.
      slots: Sessions in one batch.
      report: Compile for all targets, each in a process of its own, and print the table; nothing is written.
      targets: Those of them to try; by default all that have a compiler here, and Trainium's lint.
      programs: What to compile.
      config: The run whose update is compiled as the program `train`; by default that of `world` where it is a config file,
        else configs/coinrun/dynamics.py.
      timeout_s: Seconds that one compilation may take.
      json: File for the rows as JSON.
    """

    world: Annotated[Path, tyro.conf.Positional] = Path("worlds/coinrun")
    target: str | None = None
    out: Path | None = None
    slots: int = 1
    report: bool = False
    targets: tuple[str, ...] = tuple(name for name, target in TARGETS.items() if target.platform != "cpu")
    programs: tuple[str, ...] = PROGRAMS
    config: Path | None = None
    timeout_s: float = 300.0
    json: Path | None = None

    def __post_init__(self) -> None:
        named = [*self.targets, *([self.target] if self.target else [])]
        for what, names, known in (("target", named, TARGETS), ("program", self.programs, PROGRAMS)):
            if unknown := sorted(set(names) - set(known)):
                raise ValueError(f"no {what} is called {', '.join(unknown)}; there are {', '.join(known)}")
        if self.slots < 1:
            raise ValueError(f"--slots is {self.slots}, it must be at least 1")
        if self.report == (self.target is not None):
            raise ValueError(f"say either --report, or --target with one of {', '.join(TARGETS)}")


def main() -> int:
    """Writes or reports; returns 1 where something did not compile, 2 where the question was wrong."""
    try:
        config = tyro.cli(ExportConfig, prog="python -m wm_jax.export", description=__doc__)
        return compile_all(config) if config.report else write(config)
    except (ValueError, ConfigError, CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def write(config: ExportConfig) -> int:
    """One folder for one target."""
    assert config.target is not None
    out = config.out or Path("build") / f"{config.world.name}_{config.target}"
    manifest = artifact.write(config.world, TARGETS[config.target], config.slots, out)
    size = sum(bytes_ for bytes_, _ in manifest.files.values())
    print(f"wrote {out} ({size / 2**20:.1f} MiB) for {config.target}: python serve.py {out} --slots {config.slots}")
    return 0


def compile_all(config: ExportConfig) -> int:
    """The table of all targets."""
    rows = []
    trained = config.config or (config.world if config.world.suffix == ".py" else Path("configs/coinrun/dynamics.py"))
    for row in report(config.world, trained, config.targets, config.programs, config.slots, config.timeout_s):
        print(f"{row.target:9} {row.program:8} {'ok' if row.error is None else 'NO'}", file=sys.stderr)
        rows.append(row)
    table = markdown(rows)
    if sys.stdout.isatty():
        rich.console.Console().print(rich.markdown.Markdown(table))
    else:  # whole lines, for files
        print(table)
    if config.json is not None:
        config.json.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=2) + "\n")
    return int(any(row.error is not None for row in rows))


if __name__ == "__main__":
    sys.exit(main())

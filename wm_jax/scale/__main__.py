"""Serves a world on many devices behind one address.

    python -m wm_jax.scale worlds/coinrun --replicas 2 --slots 4 --snapshots sessions     then open http://127.0.0.1:8000
    python -m wm_jax.scale worlds/coinrun --replicas 4 --num-gpus 1                        a GPU each
    python -m wm_jax.scale worlds/coinrun --replicas 2 --max-replicas 8 --spare-slots 4    more where slots run out
    python -m wm_jax.scale worlds/coinrun --address auto --host 0.0.0.0 --auth SECRET --resume-url http://HEAD:8000
                                                                              on a Ray cluster that runs already
    kill -HUP PID                                       replaces replica after replica; with the same weights nobody loses a world
    python -m wm_jax.scale.drain                        lets the players of this machine go, before it is switched off

Players talk to the address that is shown: it seats them, and tells each the address of the replica that plays with them.
With --snapshots, a folder that all machines see, a session outlives its replica. docs/scale.md tells the rest.
"""

import dataclasses
import queue
import signal
import sys
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.markup import escape

from wm_jax.config import ConfigError
from wm_jax.ports.published import Published
from wm_jax.scale import cluster
from wm_jax.scale.config import ScaleConfig, ScaleError
from wm_jax.serving import logs
from wm_jax.serving.choice import Choice
from wm_jax.serving.config import ServeConfig


@dataclasses.dataclass(frozen=True)
class ScaleArgs:
    """What to serve, how, and how often.

    Attributes:
      world: Folder of a released world, of a training run, or of `python -m wm_jax.export`; or a published world's name.
      device: Compute on this platform (cpu, cuda, tpu, neuron), or fail; by default the best one that JAX finds.
      prompt: An image (PNG or JPEG of the world's size) to begin with, for worlds that go on from any image.
      published: Weights and speed of a published world.
      server: The gateway's address, and slots and limits of each replica.
      scale: Replicas, what each needs, and the cluster.
    """

    world: Annotated[Path, tyro.conf.Positional]
    device: str | None = None
    prompt: Path | None = None
    published: tyro.conf.OmitArgPrefixes[Published] = dataclasses.field(default_factory=Published)
    server: tyro.conf.OmitArgPrefixes[ServeConfig] = dataclasses.field(default_factory=ServeConfig)
    scale: tyro.conf.OmitArgPrefixes[ScaleConfig] = dataclasses.field(default_factory=ScaleConfig)


def main() -> None:
    console = Console()
    try:
        args = tyro.cli(ScaleArgs, description=__doc__)
        cluster.require_ray()
        run(args, console)
    except (ConfigError, ScaleError, ValueError, OSError, RuntimeError) as error:
        console.print(f"[bold red]error[/]  {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)


def run(args: ScaleArgs, console: Console) -> None:
    """Serves until told to stop (Ctrl-C, SIGTERM); a SIGHUP replaces the replicas one after the other."""
    logs.configure(args.server.log)
    args = resolved(args)
    choice = Choice(args.world, args.device, args.prompt, args.published)
    signals: queue.SimpleQueue[int] = queue.SimpleQueue()
    try:
        cluster.start(args.server, args.scale)
        # After Ray's own handlers are set.
        for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(kind, lambda number, _: signals.put(number))
        cluster.deploy(choice, args.server, args.scale)
        console.print(
            f"play it at [bold cyan]http://{args.server.host}:{args.server.port}[/]  "
            f"({args.scale.replicas} replicas of {args.server.slots}; Ctrl-C stops)",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
        while signals.get() == signal.SIGHUP:
            cluster.deploy(choice, args.server, args.scale)
            console.print("every replica was replaced", highlight=False)
    finally:
        cluster.stop(args.scale)


def resolved(args: ScaleArgs) -> ScaleArgs:
    """The same with every folder and file by its full name: replicas have other working directories."""

    def absolute(path: Path | str | None) -> Path | None:
        return None if path is None else Path(path).expanduser().resolve()

    def written(path: str | None) -> str | None:
        return None if path is None else str(absolute(path))

    server = args.server
    return dataclasses.replace(
        args,
        world=args.world.resolve() if args.world.exists() else args.world,  # or a published world's name
        prompt=absolute(args.prompt),
        published=dataclasses.replace(args.published, weights=absolute(args.published.weights)),
        server=dataclasses.replace(server, snapshots=written(server.snapshots), cache_dir=written(server.cache_dir)),
    )


if __name__ == "__main__":
    main()

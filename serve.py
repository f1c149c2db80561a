"""Play a world in the browser, or dream a video from a file of keys.

    python serve.py worlds/coinrun                      then open http://127.0.0.1:8000 and press the arrow keys
    python serve.py runs/x                              a training run's own world (runs/x/world)
    python serve.py worlds/coinrun --slots 4            four players in one batch
    python serve.py worlds/coinrun --device neuron      on that accelerator, or not at all
    python serve.py build/coinrun_cpu                   what `python -m wm_jax.export` made for this machine
    python serve.py worlds/coinrun --host 0.0.0.0 --auth SECRET             other machines may play, with the secret
    python serve.py worlds/coinrun --rollout actions.npz --out dream.mp4    no server: keys in, video out
    python serve.py worlds/coinrun --replay recording.zip --out again.mp4   no server: what was played, to the bit
    python serve.py oasis-500m --weights weights/oasis                      a published world, from its released files

actions.npz holds `keys`, bool [frames, keys of the world], and where the world has one `mouse`, [frames, 2]:
numpy.savez("actions.npz", keys=held).
Scripts talk to the server over a WebSocket (examples/stream.py); GET /openapi.json describes the HTTP half.
"""

import gc

gc.disable()  # `run` explains and enables it again

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from wm_jax.config import ConfigError
from wm_jax.ports.published import Published
from wm_jax.serving.choice import Choice, Opened, check_slots, open_choice
from wm_jax.serving.config import ServeConfig, ServeConfigError, compile_cache_dir


@dataclasses.dataclass(frozen=True)
class ServeArgs:
    """What to serve, and how.

    Attributes:
      world: Folder of a released world, of a training run, or of `python -m wm_jax.export`; or a published world's name.
      device: Compute on this platform (cpu, cuda, tpu, neuron), or fail; by default the best one that JAX finds.
      rollout: Dream these keys (.npz) instead of serving.
      replay: Make the frames of this recording again (.zip, `GET /v1/sessions/{id}/recording`) instead of serving.
      out: The MP4 that --rollout or --replay writes.
      lossless: With --replay: write all pixels as well, beside the MP4 (.npy, uint8 [frames, height, width, 3]).
      seed: Seed of --rollout; a session with the same seed dreams the same.
      prompt: An image (PNG or JPEG of the world's size) to begin with, for worlds that go on from any image.
      published: Weights and speed of a published world.
      server: Address, slots, limits.
    """

    world: Annotated[Path, tyro.conf.Positional]
    rollout: Path | None = None
    replay: Path | None = None
    out: Path = Path("dream.mp4")
    lossless: bool = False
    seed: int = 0
    device: str | None = None
    prompt: Path | None = None
    published: tyro.conf.OmitArgPrefixes[Published] = dataclasses.field(default_factory=Published)
    server: tyro.conf.OmitArgPrefixes[ServeConfig] = dataclasses.field(default_factory=ServeConfig)


def main() -> None:
    console = Console()
    try:
        args = tyro.cli(ServeArgs, description=__doc__)
        run(args, console)
    except (ServeConfigError, ConfigError, ValueError, OSError) as error:
        console.print(f"[bold red]error[/]  {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)


def run(args: ServeArgs, console: Console) -> None:
    """Opens the world, then serves it or dreams from it."""
    from wm_jax.serving.engine import use_compile_cache

    use_compile_cache(compile_cache_dir(args.server))
    opened = open_choice(Choice(args.world, args.device, args.prompt, args.published))
    # What was imported stays as long as the process. The collector went through it again and again while it was loaded,
    # a tenth of the time to the first frame, and would go on doing so between frames.
    gc.freeze()
    gc.enable()
    if args.rollout is not None:
        dream(args, opened, console)
    elif args.replay is not None:
        replay(args, opened, console)
    else:
        play(args.server, opened, console)


def play(server: ServeConfig, opened: Opened, console: Console) -> None:
    """Serves until told to stop (Ctrl-C, SIGTERM)."""
    from wm_jax.serving import serve

    config = opened.world.config
    check_slots(opened, server.slots)
    keys = ", ".join(f"{key.code} {key.label}" for key in config.controls.keys)
    console.print(f"[bold]{config.name}[/]  {config.image[1]}x{config.image[0]} at {config.fps:g} fps  ({keys})")
    serve(server, opened.world, opened.params, opened.prompts, lambda url: _invite(console, url), opened.artifact)


def _invite(console: Console, url: str) -> None:
    console.print(f"play it at [bold cyan]{url}[/]  (Ctrl-C stops)", highlight=False, soft_wrap=True)


def dream(args: ServeArgs, opened: Opened, console: Console) -> None:
    """Writes the video of --rollout."""
    from wm_jax.serving.offline import read_controls, write_rollout

    assert args.rollout is not None
    world = opened.world
    controls = read_controls(args.rollout, world.config.controls)
    with Progress(console=console) as progress:
        task = progress.add_task("dreaming", total=len(controls.keys))
        write_rollout(
            world,
            opened.params,
            opened.prompts,
            controls,
            args.out,
            args.seed,
            lambda done, _: progress.update(task, completed=done),
        )
    console.print(
        f"wrote {args.out}: {len(controls.keys)} frames at {world.config.fps:g} fps", highlight=False, soft_wrap=True
    )


def replay(args: ServeArgs, opened: Opened, console: Console) -> None:
    """Writes the video of --replay, and says by a digest which pixels they were."""
    from wm_jax.serving import recording
    from wm_jax.serving.offline import write_replay

    assert args.replay is not None
    world, params, prompts = opened.world, opened.params, opened.prompts
    known = recording.identity(world, params, prompts, recording.read_info(args.replay).slots)
    info, events = recording.read(args.replay, known)
    for text in recording.differences(info, known.info(events, info.history, None, info.fps)):
        console.print(f"[yellow]note[/]  recorded with {escape(text)}: pixels may differ a little", highlight=False)
    lossless = args.out.with_suffix(".npy") if args.lossless else None
    with Progress(console=console) as progress:
        task = progress.add_task("replaying", total=info.frames)
        sha256 = write_replay(
            world,
            params,
            prompts,
            (info, events),
            args.out,
            lossless,
            lambda done: progress.update(task, completed=done),
            opened.artifact,
        )
    same = {None: "", sha256: ", as when it was recorded"}.get(info.frames_sha256, f", it was {info.frames_sha256}")
    written = str(args.out) if lossless is None else f"{args.out} and {lossless}"
    console.print(f"wrote {written}: {info.frames} frames at {info.fps:g} fps", highlight=False, soft_wrap=True)
    console.print(f"sha256 of all pixels {sha256}{same}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()

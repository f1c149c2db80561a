"""Plays a game, writes an episode folder: python -m wm_jax.data.record --env coinrun --frames 600000 --out episodes/coinrun

Every episode follows from (seed, its number) alone, so one command writes the same bytes with any number of workers.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import importlib.metadata
import itertools
import multiprocessing
import signal
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import rich.console
import rich.progress
import tyro

from wm_jax import envs
from wm_jax.data.episode import EpisodeError
from wm_jax.data.policies import MIX, make_policy
from wm_jax.data.writer import EpisodeWriter
from wm_jax.envs.base import Game


@dataclasses.dataclass(frozen=True)
class RecordConfig:
    """Play a game with a mix of random and scripted players, and keep what was seen and held.

    Example: python -m wm_jax.data.record --env coinrun --frames 600000 --out episodes/coinrun

    Look at the result with `python -m wm_jax.data.inspect episodes/coinrun --out report`. Ctrl-C removes what is
    unfinished. A 64x64 frame takes 12 kB: 600,000 frames are 7.4 GB.
    """

    env: Annotated[str, tyro.conf.arg(metavar="|".join(envs.NAMES))]
    """The game."""
    out: Path
    """The episode folder to write; it must not exist yet."""
    frames: int = 100_000
    """How many frames to record, in all."""
    split: Literal["train", "held_out"] = "train"
    """Which levels: record "held_out" too, to measure a world on levels that its training never saw."""
    seed: int | None = None
    """The same seed writes the same bytes; by default 0 for "train" and 1 for "held_out", so that no player plays both."""
    workers: int = 0
    """Processes that play beside this one; 0 plays in this process. Does not change what is written."""
    max_length: int = 500
    """An episode that is still going after this many frames is cut off there."""

    def __post_init__(self) -> None:
        if self.env not in envs.NAMES:
            raise ValueError(f"no game is called {self.env!r}; there are {', '.join(envs.NAMES)}")
        for name, least in (("frames", 1), ("workers", 0), ("max_length", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name.replace('_', '-')} is {getattr(self, name)}, it must be at least {least}")

    @property
    def chosen_seed(self) -> int:
        """The seed, the split's own where none was given."""
        return ("train", "held_out").index(self.split) if self.seed is None else self.seed


@dataclasses.dataclass(frozen=True)
class Played:
    """One episode in memory: what `EpisodeWriter.add` takes."""

    frames: np.ndarray
    keys: np.ndarray
    level: int
    policy: str
    seed: int


def play(game: Game, seed: int, number: int, max_length: int) -> Played:
    """Plays episode `number` of the recording `seed`, from a fresh level to its end or to `max_length` frames."""
    rng = np.random.default_rng([seed, number])
    name = str(rng.choice(list(MIX), p=list(MIX.values())))
    episode_seed = int(rng.integers(2**31))
    frame, info = game.reset(seed=episode_seed)
    level, policy = int(info["level"]), make_policy(name, game, rng)
    frames, held = [frame], [game.hold()]
    while len(frames) < max_length:
        keys = policy(frame, info)
        frame, _, terminated, truncated, info = game.step(keys)
        if not info.get("stale", False):
            frames.append(frame)
            held.append(keys)
        if terminated or truncated:
            break
    return Played(np.stack(frames), np.stack(held), level, name, episode_seed)


def record(config: RecordConfig, *, quiet: bool = False) -> Path:
    """Writes the episode folder `config.out`.

    Raises:
      EpisodeError: `config.out` exists already.
      MissingGameError: the game's library is not installed.
      OSError: the disk is full; nothing that opens is left behind.
      KeyboardInterrupt: at Ctrl-C, after an episode at the latest; what is unfinished was removed.
    """
    game = envs.make(config.env, split=config.split)
    height, width, _ = game.observation_space.shape or (0, 0, 0)
    facts = {
        "writer": f"wm_jax {_version()}",
        "env": config.env,
        "split": config.split,
        "source": {"seed": config.chosen_seed, "max_length": config.max_length, "mix": MIX},
    }
    fps = float(game.metadata["render_fps"])
    writer = EpisodeWriter(config.out, controls=game.controls, image=(height, width), fps=fps, facts=facts)
    with writer, _Interrupt() as interrupt, _progress(quiet) as bar:
        task = bar.add_task(f"{config.env} {config.split}", total=config.frames)
        with contextlib.closing(_episodes(config, game)) as episodes:
            for played in episodes:
                interrupt.check()
                room = config.frames - writer.num_frames
                writer.add(played.frames[:room], played.keys[:room], level=played.level, policy=played.policy,
                           seed=played.seed)  # fmt: skip
                bar.update(task, completed=writer.num_frames)
                if writer.num_frames >= config.frames:
                    break
    game.close()
    return config.out


def _episodes(config: RecordConfig, game: Game) -> Generator[Played, None, None]:
    """Episodes 0, 1, 2, ... in order, played here or by the workers."""
    if config.workers == 0:
        for number in itertools.count():
            yield play(game, config.chosen_seed, number, config.max_length)
    # A spawned process starts clean: the games' libraries do not survive a fork.
    with concurrent.futures.ProcessPoolExecutor(
        config.workers, multiprocessing.get_context("spawn"), _start_worker, (config,)
    ) as pool:
        numbers = itertools.count()
        waiting = collections.deque(pool.submit(_play_in_worker, next(numbers)) for _ in range(2 * config.workers))
        try:
            while True:
                yield waiting.popleft().result()
                waiting.append(pool.submit(_play_in_worker, next(numbers)))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


_worker: dict[str, Any] = {}


def _start_worker(config: RecordConfig) -> None:
    _worker.update(config=config, game=envs.make(config.env, split=config.split))


def _play_in_worker(number: int) -> Played:
    config: RecordConfig = _worker["config"]
    return play(_worker["game"], config.chosen_seed, number, config.max_length)


class _Interrupt:
    """SIGINT raises KeyboardInterrupt as ever, and again in `check` if the first was swallowed: Python drops what is raised
    in a callback of the garbage collector, and JAX has one (jax/_src/lib/__init__.py, `_xla_gc_callback`)."""

    def __init__(self) -> None:
        self._came = self._ours = False

    def __enter__(self) -> Self:
        # Not where SIGINT is ignored (a shell's background) or somebody else's.
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            with contextlib.suppress(ValueError):  # not in the main thread: nobody sends us signals
                signal.signal(signal.SIGINT, self._raise)
                self._ours = True
        return self

    def __exit__(self, *_: object) -> None:
        if self._ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _raise(self, *_: object) -> None:
        self._came = True
        raise KeyboardInterrupt

    def check(self) -> None:
        if self._came:
            raise KeyboardInterrupt


def _progress(quiet: bool) -> rich.progress.Progress:
    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn("frames"),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TimeRemainingColumn(),
    )
    return rich.progress.Progress(*columns, console=rich.console.Console(stderr=True), disable=quiet)


def _version() -> str:
    try:
        return importlib.metadata.version("wm_jax")
    except importlib.metadata.PackageNotFoundError:
        return "unpackaged"


def main() -> int:
    """The command line; returns the exit status."""
    out = None
    try:
        config = tyro.cli(RecordConfig, prog="python -m wm_jax.data.record")
        out = config.out
        record(config)
    except (EpisodeError, envs.MissingGameError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted: the unfinished recording of {out} was removed", file=sys.stderr)
        return 130
    print(f"{out}: {config.frames} frames. Look at them: python -m wm_jax.data.inspect {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Held-out recordings in; one table, one picture and one film out."""

import dataclasses
import importlib.util
import json
import shlex
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import rich.progress
import tyro

from wm_jax.data import EpisodeFolder
from wm_jax.data.record import RecordConfig, record
from wm_jax.eval import drift, film, horizon, latency, plot, table
from wm_jax.eval.clips import Clips, Recording, check_match, choose_clips, open_held_out, random_keys
from wm_jax.eval.inverse import Inverse
from wm_jax.eval.inverse import load as load_inverse
from wm_jax.eval.inverse import save as save_inverse
from wm_jax.eval.inverse_training import InverseConfig
from wm_jax.eval.inverse_training import train as train_inverse
from wm_jax.eval.progress import progress
from wm_jax.eval.provenance import commit, device
from wm_jax.types import Params, Prompt
from wm_jax.world import World, WorldConfig, load, load_prompts
from wm_jax.world.world import world_folder

IDM_FILE, SHIPPED_FILE = "idm.safetensors", "eval.json"


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Measure a world on levels that its training never saw.

    Example: python -m wm_jax.eval worlds/coinrun

    Writes table.md, table.json, curves.png and film.mp4. The same command gives the same numbers for the same world (times
    apart). Held-out play is recorded by itself where there is none.
    """

    run: tyro.conf.Positional[Path]
    """A world folder (worlds/coinrun) or a finished run (runs/x)."""
    episodes: Path | None = None
    """The held-out recording; episodes/<env>_held_out by default."""
    out: Path | None = None
    """Where to write; <run>/eval for a run, runs/eval_<world> for a released world by default."""
    clips: int = 256
    """How many clips to dream."""
    horizons: tuple[int, ...] = (1, 4, 8, 16, 32, 64)
    """Frames after the prompt where the table looks."""
    prompt_frames: int = 8
    """True frames that a dream starts from; at most what the world's window holds."""
    drift_frames: int = 2000
    """Length of the long dreams; 0 leaves them out."""
    drift_sessions: int = 32
    """How many long dreams."""
    latency_frames: int = 10_000
    """How old a dream gets before it is compared with a young one; the ids of its ring restart every 4096 frames, so
    10,000 lie beyond two restarts; 0 leaves speed out."""
    rows: int = 16
    """Sessions dreamed side by side."""
    films: int = 6
    """Clips shown in the film."""
    held_out_frames: int = 20_000
    """Only so many first frames of the recording are used, so that a longer one gives the same numbers."""
    inverse: Path | None = None
    """The inverse-dynamics model; beside the world, else of the released world of that game, else trained here."""
    train_episodes: Path | None = None
    """What a missing inverse-dynamics model is trained on; episodes/<env> by default."""
    seed: int = 0
    """Choice of clips, random keys and the noise of dreams."""
    quick: bool = False
    """A look in a minute: 32 clips, 300 frames of drift, speed at frame 500."""

    def __post_init__(self) -> None:
        for name in ("clips", "prompt_frames", "rows", "films", "held_out_frames", "drift_sessions"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} is {getattr(self, name)}, it must be at least 1")
        if not self.horizons or min(self.horizons) < 1 or list(self.horizons) != sorted(set(self.horizons)):
            raise ValueError(f"--horizons are {self.horizons}, they must rise from 1 or more")


def evaluate(config: EvalConfig, *, quiet: bool = False) -> dict[str, Any]:
    """Measures and writes everything; returns what table.json holds.

    Raises:
      ValueError: the world, the recording or the inverse-dynamics model is broken, or they do not fit each other.
      MissingGameError: play must be recorded and the game's library is not installed.
      ImportError: matplotlib or av is not installed.
    """
    since, asked, config = time.perf_counter(), config, _quick(config) if config.quick else config
    _check_tools()
    world, params = load(config.run)
    config = dataclasses.replace(config, prompt_frames=min(config.prompt_frames, world.config.dynamics.window_frames))
    path = config.episodes or Path("episodes") / f"{world.config.env}_held_out"
    recording = open_held_out(path, world.config, config.held_out_frames)
    judge = find_inverse(config, world.config, quiet)
    clips = choose_clips(recording, config.clips, config.prompt_frames, max(config.horizons), config.seed)
    with progress(quiet) as bar:
        measured, drifted, speed = _measure(config, world, params, recording, clips, judge, bar)
    report = _report(config, world, params, recording, measured, drifted, speed, judge)
    report["command"] = command(asked)
    report["seconds"] = round(time.perf_counter() - since, 1)
    _write(config, world, clips, measured, drifted, report)
    _compare(config, report)
    return report


def find_inverse(config: EvalConfig, world: WorldConfig, quiet: bool) -> Inverse:
    """The inverse-dynamics model: the given one, the world's own, the released world's, or one trained now and kept."""
    own = world_folder(config.run) / IDM_FILE
    candidates = [config.inverse] if config.inverse else [own, Path("worlds") / world.env / IDM_FILE]
    for path in candidates:
        if config.inverse or path.is_file():
            judge = load_inverse(path)
            if (judge.controls.codes, judge.image) != (world.controls.codes, tuple(world.image)):
                raise ValueError(
                    f"{path} knows {judge.controls.codes} at {judge.image}, world {world.name!r} has "
                    f"{world.controls.codes} at {tuple(world.image)}"
                )
            return judge
    judge = train_judge(config, world, quiet)
    save_inverse(judge, own)
    return judge


def train_judge(config: EvalConfig, world: WorldConfig, quiet: bool) -> Inverse:
    """One trained on the game's own play; nothing of it is looked for or written."""
    episodes = config.train_episodes or Path("episodes") / world.env
    if not episodes.exists():
        record(RecordConfig(env=world.env, out=episodes, frames=60_000, workers=2), quiet=quiet)  # pyright: ignore
    check_match(EpisodeFolder.open(episodes), world)
    return train_inverse(InverseConfig(episodes=episodes, out=world_folder(config.run) / IDM_FILE), quiet=quiet)


def _measure(config: EvalConfig, world: World, params: Params, recording: Recording, clips: Clips, judge: Inverse,
             bar: rich.progress.Progress):  # fmt: skip
    wild = random_keys(recording, (len(clips.lengths), min(horizon.DELTA_HORIZON, clips.horizon)), config.seed)
    measured = horizon.measure(world, params, clips, wild, judge, horizons=config.horizons, rows=config.rows,
                               seed=config.seed, films=config.films, bar=bar)  # fmt: skip
    drifted = speed = None
    if config.drift_frames:
        drifted = drift.measure(world, params, recording, sessions=config.drift_sessions, frames=config.drift_frames,
                                prompt_frames=config.prompt_frames, seed=config.seed, bar=bar)  # fmt: skip
    if config.latency_frames:
        prompt = load_prompts(config.run)
        prompt = clips.prompt if prompt.frames is None else prompt
        one = jax.tree.map(lambda leaf: leaf[:1], prompt)
        speed = latency.measure(world, params, Prompt(frames=one.frames, controls=one.controls), config.latency_frames,
                                bar)  # fmt: skip
    return measured, drifted, speed


def _report(config: EvalConfig, world: World, params: Params, recording: Recording, measured: horizon.Measured,
            drifted: drift.Drift | None, speed: latency.Latency | None, judge: Inverse) -> dict[str, Any]:  # fmt: skip
    delta = {str(i + 1): table.number(value) for i, value in enumerate(measured.curves.delta_psnr)}
    report: dict[str, Any] = {
        "format": table.FORMAT,
        "commit": commit(),
        "device": device(),
        "jax": jax.__version__,
        "world": {
            "name": world.config.name,
            "folder": config.run.as_posix() if not config.run.is_absolute() else config.run.name,
            "parameters": sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params)),
            "sampler_steps": world.config.sampler.steps,
        },
        "data": {
            "recording": recording.folder.path.name,
            "frames": recording.num_frames,
            "episodes": len(recording.episodes),
            "source": recording.folder.meta.get("source"),
            "checksum": recording.checksum,
        },
        "clips": config.clips,
        "prompt_frames": config.prompt_frames,
        "seed": config.seed,
        "horizons": table.horizon_rows(measured.curves),
        "delta_psnr": delta,
        "control": table.control_facts(measured.control, judge.heads) if measured.control else None,
        "inverse": judge.facts,
        "drift": table.drift_facts(drifted) if drifted else None,
        "latency": {k: round(v, 4) for k, v in vars(speed).items()} if speed else None,
        "curves": {name: table.numbers(values) for name, values in measured.curves.psnr.items()},
    }
    return {**report, "bars": table.bars(report)}


def _write(config: EvalConfig, world: World, clips: Clips, measured: horizon.Measured, drifted: drift.Drift | None,
           report: dict[str, Any]) -> None:  # fmt: skip
    out = out_folder(config)
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.json").write_text(json.dumps(report, indent=1) + "\n")
    (out / "table.md").write_text(table.markdown(report) + "\n")
    title = f"{world.config.name}: {config.clips} held-out clips, {config.prompt_frames} frames of prompt"
    plot.write(out / "curves.png", title, measured.curves, measured.control, drifted)
    film.write(out / "film.mp4", clips, measured.dreams, world.config.controls, world.config.fps)


def _compare(config: EvalConfig, report: dict[str, Any]) -> None:
    """Adds to the table how it compares with the shipped one; after all is written, so that nothing here can lose it."""
    path = world_folder(config.run) / SHIPPED_FILE
    if not path.is_file():
        return
    try:
        shipped = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON ({error}); the new table stands in {out_folder(config)}") from None
    report["against_shipped"] = table.compare(report, shipped)
    (out_folder(config) / "table.json").write_text(json.dumps(report, indent=1) + "\n")


def out_folder(config: EvalConfig) -> Path:
    """Where the evaluation is written; never into a released world."""
    if config.out:
        return config.out
    return config.run / "eval" if (config.run / "world").is_dir() else Path("runs") / f"eval_{config.run.name}"


def command(config: EvalConfig) -> str:
    """The command that repeats this evaluation: only what differs from the defaults."""
    words = ["python", "-m", "wm_jax.eval", config.run.name if config.run.is_absolute() else config.run.as_posix()]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in ("run", "out", "episodes", "inverse", "train_episodes") or value == field.default:
            continue
        values = [str(v) for v in value] if isinstance(value, tuple) else [] if value is True else [str(value)]
        words += [f"--{field.name.replace('_', '-')}", *values]
    return shlex.join(words)


def _quick(config: EvalConfig) -> EvalConfig:
    small = {"clips": 32, "drift_frames": 300, "drift_sessions": 8, "latency_frames": 500}
    return dataclasses.replace(config, **{name: min(value, getattr(config, name)) for name, value in small.items()})


def _check_tools() -> None:
    """Before the long work, not after it."""
    missing = [name for name in ("matplotlib", "av") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"the evaluation draws with {' and '.join(missing)}, which is not installed: pip install -e '.[eval]'"
        )

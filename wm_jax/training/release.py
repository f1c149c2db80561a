"""A finished run made into a released world: python -m wm_jax.training.release runs/coinrun worlds/coinrun"""

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro
from PIL import Image

from wm_jax import checkpoint, envs
from wm_jax import config as config_file
from wm_jax.checkpoint.folder import replacing
from wm_jax.data.episode import EpisodeFolder
from wm_jax.eval import clips, table
from wm_jax.eval.evaluate import IDM_FILE, SHIPPED_FILE, EvalConfig, command, evaluate, find_inverse, train_judge
from wm_jax.eval.inverse import save as save_inverse
from wm_jax.training.config import TrainConfig
from wm_jax.training.picture import PROMPT_FRAMES, tile
from wm_jax.training.tracker import METRICS_FILE
from wm_jax.types import Controls, Params, Prompt
from wm_jax.world import World, load, load_prompts, rollout, start

CARD = "README.md"
STAGING = "release"
"""Folder of a run in which its world lies until it is measured."""


@dataclasses.dataclass(frozen=True)
class ReleaseConfig:
    """Write a world that others can play: weights in half precision, first frames, measured table, model card.

    Example: python -m wm_jax.training.release runs/coinrun worlds/coinrun
    """

    run: tyro.conf.Positional[Path]
    """A finished dynamics run; its world is what is released."""
    out: tyro.conf.Positional[Path]
    """The world folder to write."""
    sampler_steps: int | None = None
    """Denoising passes a frame when playing; the run's own by default."""
    device: str = "2 CPU cores"
    """What it was trained on, in words, for the card."""
    judge: Literal["keep", "new"] | None = None
    """The model that tells keys from frames: kept from the world before, so that tables compare, or trained anew, since the
    game is another. Without a word it is kept where the held-out recording is the same."""
    note: str = ""
    """What the card should say of how it was made beyond the command: a run that was continued, a loss that changed."""


def release(options: ReleaseConfig) -> None:
    """Writes the world, measures it as it lies there, and writes what was measured beside it.

    Raises:
      CheckpointError: the run has no world, or the folder cannot be written.
      MissingExtraError, MissingGameError: what measures it is not installed.
      ValueError: the judge of the world before may be for another game.
    """
    made = options.run / STAGING / options.out.name
    shutil.rmtree(made, ignore_errors=True)
    config = config_file.read(TrainConfig, options.run / "config.json")
    if (options.out / IDM_FILE).exists() and options.judge != "new":
        _check_recording(options, config)
        made.mkdir(parents=True)
        shutil.copy2(options.out / IDM_FILE, made / IDM_FILE)
    _make(options, config, made)
    # Only now, so that no table ever stands by other weights.
    with replacing(options.out, "world") as folder:
        shutil.copytree(made, folder, dirs_exist_ok=True)
    shutil.rmtree(made)


def _check_recording(options: ReleaseConfig, config: TrainConfig) -> None:
    """The judge of another game with the same keys would give numbers all the same."""
    shipped = options.out / SHIPPED_FILE
    if options.judge is not None or not shipped.exists():
        return
    frames, held_out = EvalConfig.held_out_frames, Path(config.data.held_out)
    before = json.loads(shipped.read_text())["data"]["checksum"]
    now = clips.open_held_out(held_out, config.world, frames).checksum
    if before != now:
        raise ValueError(
            f"{options.out} was judged on a recording with checksum {before}, {held_out} has {now}: --judge new trains a "
            "judge for a game that changed, --judge keep takes the one there for another recording of the same game"
        )


def _make(options: ReleaseConfig, config: TrainConfig, made: Path) -> None:
    world, params = load(options.run)
    if options.sampler_steps is not None:
        sampler = dataclasses.replace(world.config.sampler, steps=options.sampler_steps)
        world = World(dataclasses.replace(world.config, sampler=sampler))
    prompts = load_prompts(options.run)
    assert prompts.frames is not None and prompts.controls is not None
    arrays = {"frames": np.asarray(prompts.frames), "keys": np.asarray(prompts.controls.keys)}
    checkpoint.save_world(made, world.config, half(params), prompts=arrays)
    # Measured as it is shipped: the rounded weights, not those of the run.
    world, params = load(made)
    evaluation = EvalConfig(run=made, episodes=Path(config.data.held_out), out=options.run / "eval")
    find_judge = train_judge if options.judge == "new" else find_inverse
    save_inverse(find_judge(evaluation, world.config, quiet=False), made / IDM_FILE)
    report = evaluate(evaluation)
    released = dataclasses.replace(evaluation, run=options.out, episodes=None, out=None)
    report["command"], report["world"]["folder"] = command(released), options.out.as_posix()
    (made / SHIPPED_FILE).write_text(json.dumps(report, indent=1) + "\n")
    shutil.copy2(options.run / "eval" / "curves.png", made / "curves.png")
    Image.fromarray(dreams(world, params, config)).save(made / "dreams.png", optimize=True)
    (made / CARD).write_text(card(config, options, report))


def half(params: Params) -> Params:
    """The weights as float16: half the bytes, far inside the noise of the dream (the card's table is measured on it)."""
    return jax.tree.map(lambda leaf: np.asarray(leaf).astype(np.float16), params)


def dreams(world: World, params: Params, config: TrainConfig) -> np.ndarray:
    """Strips of held-out play above what the world dreams from its first frames and the same keys."""
    held_out = EpisodeFolder.open(config.data.held_out)
    chosen = clips.choose_clips(clips.Recording(held_out, held_out.episodes), 6, PROMPT_FRAMES, 44, seed=1)
    session = start(world, params, Prompt(chosen.prompt.frames, chosen.prompt.controls), jax.random.key(0))
    _, dreamed = rollout(world, params, session, Controls(keys=chosen.held))
    return tile(chosen.frames, np.concatenate([chosen.frames[:, :PROMPT_FRAMES], np.asarray(dreamed)], axis=1), 12)


def card(config: TrainConfig, options: ReleaseConfig, report: dict[str, Any]) -> str:
    """The model card, Markdown: what it is, how it was made, what was measured."""
    rows = [json.loads(line) for line in (options.run / METRICS_FILE).read_text().splitlines()]
    per_step = config.data.batch * config.data.clip_frames
    timed = [row["frames_per_second"] for row in rows if row.get("frames_per_second")]
    hours = sum(config.log_every * per_step / rate for rate in timed) / 3600
    name = config.world.name
    return f"""# {name}

A world of {config.world.env}, {config.world.image[1]}x{config.world.image[0]} at {config.world.fps:g} frames/s, played \
with {", ".join(f"{key.label} ({key.code})" for key in config.world.controls.keys)}.
{report["world"]["parameters"]:,} parameters, {report["world"]["sampler_steps"]} denoising passes a frame.

    python serve.py {options.out}

![held-out play (upper rows) and the dream from its first {PROMPT_FRAMES} frames and the same keys (lower rows)](dreams.png)

## How it was made

    python train.py configs/{name}/dynamics.py

Data: {_players(config)}, recorded by
`python -m wm_jax.data.record --env {config.world.env} --frames {config.record_frames}`; held out are {_held_out(config)}.
Autoencoder: configs/{name}/autoencoder.py. Dynamics: {config.steps:,} updates of {config.data.batch} clips of
{config.data.clip_frames} frames ({config.steps * per_step:,} frames), {hours:.1f} hours on {options.device}.
{options.note + chr(10) if options.note else ""}Weights are the slow (EMA) ones, rounded to float16; the table was measured on the rounded ones.

## Measured

    python -m wm_jax.eval {options.out}

{table.markdown(report).split("    python", 1)[1].split(chr(10), 1)[1].strip()}

![curves](curves.png)

## Limits

It sees {config.world.dynamics.window_frames} past frames: what left the screen for longer is dreamed anew. It knows the
players it was trained on, not every way to play. Small things (coins, enemies) blur first.
"""


def _held_out(config: TrainConfig) -> str:
    return envs.held_out(config.world.env) if config.world.env in envs.NAMES else "other levels"


def _players(config: TrainConfig) -> str:
    mix = EpisodeFolder.open(config.data.episodes).meta.get("source", {}).get("mix")
    return (
        ", ".join(f"{share:.0%} {name}" for name, share in mix.items()) + " players" if mix else "brought from outside"
    )


def main() -> int:
    """The command line; returns the exit status."""
    options = tyro.cli(ReleaseConfig, prog="python -m wm_jax.training.release")
    try:
        release(options)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{options.out}: released; play it: python serve.py {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

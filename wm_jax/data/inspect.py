"""Shows what is in an episode folder: python -m wm_jax.data.inspect episodes/coinrun --out report

Prints a table, and writes a contact sheet (PNG) and a film (MP4) in which the held keys light up.
"""

import dataclasses
import fractions
import math
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import rich.console
import rich.table
import tyro
from PIL import Image, ImageDraw

from wm_jax.data.episode import EpisodeError, EpisodeFolder

_LIT, _DARK, _PAPER = (255, 210, 60), (70, 70, 80), (18, 18, 22)
_LEGEND = 22


@dataclasses.dataclass(frozen=True)
class InspectConfig:
    """Check every byte of a recording, print its table, and draw a contact sheet and a film of it.

    Example: python -m wm_jax.data.inspect episodes/coinrun --out report
    """

    folder: Annotated[str, tyro.conf.Positional]
    """The episode folder."""
    out: Path = Path("report")
    """Where the PNG and the MP4 go."""
    rows: int = 12
    """Episodes on the contact sheet."""
    columns: int = 10
    """Frames of each, evenly spread from its first to its last."""
    seconds: float = 30.0
    """Length of the film."""
    seed: int = 0
    """Which episodes are shown."""


def describe(folder: EpisodeFolder) -> list[tuple[str, str]]:
    """What the table says: names and values."""
    meta, lengths = folder.meta, np.array([episode.length for episode in folder.episodes])
    keys = np.concatenate([folder.keys(i) for i in range(folder.num_episodes)])
    levels = [episode.level for episode in folder.episodes]
    rows = [
        ("game, split", f"{meta.get('env')}, {meta.get('split')}"),
        ("frames", f"{folder.num_frames:,} of {folder.image[0]}x{folder.image[1]} in {len(meta['shards'])} shards"),
        ("time", f"{folder.num_frames / folder.fps / 60:.1f} minutes at {folder.fps:g} frames/s"),
        ("episodes", f"{folder.num_episodes:,}; length {lengths.min()} to {lengths.max()}, mean {lengths.mean():.0f}"),
        ("levels", f"{len(set(levels)):,} different, {min(levels)} to {max(levels)}"),
        ("motion", f"{motion(folder):.2f} of 255, mean change of a pixel between frames"),
    ]  # fmt: skip
    for name, part in sorted(meta["policies"].items()):
        share = part["frames"] / folder.num_frames
        rows.append((f"policy {name}", f"{part['episodes']:,} episodes, {part['frames']:,} frames ({share:.0%})"))
    for key, share in zip(folder.controls.keys, keys.mean(0), strict=True):
        rows.append((f"key {key.code}", f"{key.label}: held in {share:.1%} of the frames"))
    return rows


def motion(folder: EpisodeFolder, samples: int = 200) -> float:
    """Mean absolute change of a pixel from one frame to the next, over random pairs inside episodes."""
    rng = np.random.default_rng(0)
    long = [i for i, episode in enumerate(folder.episodes) if episode.length > 1]
    changes = [0.0]
    for i in rng.choice(long, samples) if long else []:
        pair = folder.frames(i, int(rng.integers(folder.episodes[i].length - 1)), 2).astype(np.int16)
        changes.append(float(np.abs(pair[1] - pair[0]).mean()))
    return float(np.mean(changes[1:] or changes))


def contact_sheet(folder: EpisodeFolder, rows: int, columns: int, seed: int) -> Image.Image:
    """One episode a row, from its first frame to its last; under each frame the keys that led to it."""
    scale = max(1, round(128 / folder.image[1]))
    lines = []
    for i in _some_episodes(folder, rows, seed):
        episode = folder.episodes[i]
        cells = [
            annotate(folder, folder.frames(i, int(t), 1)[0], folder.keys(i, int(t), 1)[0], scale)
            for t in np.linspace(0, episode.length - 1, columns)
        ]
        line = np.concatenate([np.asarray(cell) for cell in cells], axis=1)
        lines.append(_titled(line, f"episode {i}  level {episode.level}  {episode.policy}  {episode.length} frames"))
    return Image.fromarray(np.concatenate(lines))


def annotate(folder: EpisodeFolder, frame: np.ndarray, keys: np.ndarray, scale: int) -> Image.Image:
    """A frame, enlarged, with a strip below in which the held keys are lit."""
    height, width = folder.image[0] * scale, folder.image[1] * scale
    sheet = Image.new("RGB", (width, height + _LEGEND), _PAPER)
    sheet.paste(Image.fromarray(frame).resize((width, height), Image.Resampling.NEAREST))
    pen, step = ImageDraw.Draw(sheet), width / len(keys)
    for column, (key, down) in enumerate(zip(folder.controls.keys, keys, strict=True)):
        box = (round(column * step) + 1, height + 3, round((column + 1) * step) - 2, height + _LEGEND - 3)
        pen.rectangle(box, fill=_LIT if down else _DARK)
        sign = _sign(key.code)
        pen.text((box[0] + (box[2] - box[0] - pen.textlength(sign)) / 2, height + 5), sign, fill=_PAPER)
    return sheet


def write_film(folder: EpisodeFolder, path: Path, seconds: float, seed: int) -> None:
    """Whole episodes one after another, as an MP4 at the game's own speed."""
    try:
        import av
    except ImportError:
        raise ImportError("writing a film needs PyAV: pip install -e '.[serve]'") from None
    scale, left = max(1, math.ceil(256 / folder.image[1])), max(1, round(seconds * folder.fps))
    with av.open(str(path), "w") as file:
        rate = fractions.Fraction(folder.fps).limit_denominator(1000)
        stream = file.add_stream("libx264", rate=rate, options={"crf": "18"})
        stream.pix_fmt = "yuv420p"
        # H.264 in 4:2:0 has only even sizes.
        stream.width, stream.height = (folder.image[1] * scale) & ~1, (folder.image[0] * scale + _LEGEND) & ~1
        for i in _some_episodes(folder, folder.num_episodes, seed):
            length = min(left, folder.episodes[i].length)
            for frame, keys in zip(folder.frames(i, 0, length), folder.keys(i, 0, length), strict=True):
                picture = annotate(folder, frame, keys, scale)
                picture = picture.crop((0, 0, stream.width, stream.height))
                file.mux(stream.encode(av.VideoFrame.from_image(picture)))
            left -= length
            if left <= 0:
                break
        file.mux(stream.encode(None))


def inspect(config: InspectConfig, console: rich.console.Console | None = None) -> None:
    """Checks the folder, prints the table, writes `contact_sheet.png` and `film.mp4` into `config.out`.

    Raises:
      EpisodeError: the folder is broken; names the file and both sides.
      ImportError: the video library is missing; says how to install it.
    """
    folder = EpisodeFolder.open(config.folder, check_frames=True)
    table = rich.table.Table(title=str(config.folder), show_header=False)
    for name, value in describe(folder):
        table.add_row(name, value)
    (console or rich.console.Console()).print(table)
    config.out.mkdir(parents=True, exist_ok=True)
    contact_sheet(folder, config.rows, config.columns, config.seed).save(config.out / "contact_sheet.png")
    write_film(folder, config.out / "film.mp4", config.seconds, config.seed)


def _some_episodes(folder: EpisodeFolder, count: int, seed: int) -> list[int]:
    order = np.random.default_rng(seed).permutation(folder.num_episodes)
    return [int(i) for i in order[:count]]


def _sign(code: str) -> str:
    """What stands on a key, in letters that every font has."""
    arrows = {"ArrowLeft": "<", "ArrowRight": ">", "ArrowUp": "^", "ArrowDown": "v", "Space": "_"}
    return arrows.get(code, code.removeprefix("Key").removeprefix("Digit")[:3])


def _titled(line: np.ndarray, title: str) -> np.ndarray:
    head = Image.new("RGB", (line.shape[1], 16), _PAPER)
    ImageDraw.Draw(head).text((4, 2), title, fill=(220, 220, 220))
    return np.concatenate([np.asarray(head), line])


def main() -> int:
    """The command line; returns the exit status."""
    config = tyro.cli(InspectConfig, prog="python -m wm_jax.data.inspect")
    try:
        inspect(config)
    except (EpisodeError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote {config.out / 'contact_sheet.png'} and {config.out / 'film.mp4'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The film of an evaluation: what happened beside what was dreamed, with the held keys drawn under both."""

import fractions
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw, ImageFont

from wm_jax.eval.clips import Clips
from wm_jax.types import ControlSpace

_SIDE, _GAP, _HEADER, _FOOTER, _COLUMNS = 256, 12, 30, 34, 3
_PAPER, _INK, _FAINT, _KEY = (20, 22, 27), (232, 234, 238), (120, 126, 136), (250, 190, 70)


def write(path: Path, clips: Clips, dreams: UInt8[np.ndarray, "n t h w 3"], controls: ControlSpace, fps: float) -> None:
    """Writes an MP4: the prompt first, then the dream; a clip that ends earlier stays on its last frame, dimmed."""
    import av

    rate = fractions.Fraction(fps).limit_denominator(1000)
    with av.open(str(path), "w") as file:
        stream = None
        for picture in pictures(clips, dreams, controls):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if stream is None:
                stream = file.add_stream("libx264", rate=rate, options={"crf": "20", "preset": "fast"})
                stream.width, stream.height, stream.pix_fmt = picture.shape[1], picture.shape[0], "yuv420p"
            for packet in stream.encode(frame):
                file.mux(packet)
        for packet in stream.encode() if stream is not None else ():
            file.mux(packet)


def pictures(clips: Clips, dreams: UInt8[np.ndarray, "n t h w 3"], controls: ControlSpace):
    """One picture a frame, pairs of real and dream in a grid."""
    count, p = len(dreams), clips.prompt_frames
    columns = min(_COLUMNS, count)
    rows = -(-count // columns)
    fonts = (ImageFont.load_default(16), ImageFont.load_default(14))
    width, height = 2 * _SIDE + 4 + 2 * _GAP, _SIDE + _HEADER + _FOOTER
    shown = np.concatenate([clips.frames[:count, :p], dreams], axis=1)
    for t in range(clips.frames.shape[1]):
        # Video wants even sides.
        sheet = Image.new("RGB", (columns * width + columns * width % 2, rows * height + rows * height % 2), _PAPER)
        for i in range(count):
            left, top = i % columns * width + _GAP, i // columns * height
            is_over = t >= clips.lengths[i]
            _pair(sheet, (left, top), clips.frames[i, t], shown[i, t], is_over)
            _words(sheet, (left, top), t - p + 1, controls, clips.keys[i, t], fonts, is_over)
        yield np.asarray(sheet)


def _pair(sheet: Image.Image, corner: tuple[int, int], real: np.ndarray, dream: np.ndarray, is_over: bool) -> None:
    for place, frame in enumerate((real, dream)):
        pixels = frame // 3 if is_over else frame
        picture = Image.fromarray(pixels).resize((_SIDE, _SIDE), Image.Resampling.NEAREST)
        sheet.paste(picture, (corner[0] + place * (_SIDE + 4), corner[1] + _HEADER))


def _words(sheet: Image.Image, corner: tuple[int, int], ahead: int, controls: ControlSpace,
           held: Bool[np.ndarray, "keys"], fonts: tuple[Any, Any], is_over: bool) -> None:  # fmt: skip
    draw, (left, top) = ImageDraw.Draw(sheet), corner
    large, small = fonts
    is_prompt = ahead < 1
    draw.text((left, top + 6), "real", _INK, font=large)
    draw.text(
        (left + _SIDE + 4, top + 6), "prompt" if is_prompt else "dream", _FAINT if is_prompt else _KEY, font=large
    )
    note = "episode over" if is_over else f"{ahead:+d}"
    draw.text((left + 2 * _SIDE + 4, top + 6), note, _FAINT, font=large, anchor="ra")
    x, y = left, top + _HEADER + _SIDE + 7
    for key, is_held in zip(controls.keys, held, strict=True):
        end = x + draw.textlength(key.label, font=small) + 14
        is_lit = bool(is_held) and not is_over
        draw.rounded_rectangle(
            (x, y, end, y + 20), 4, fill=_KEY if is_lit else None, outline=_KEY if is_lit else _FAINT
        )
        draw.text((x + 7, y + 10), key.label, _PAPER if is_lit else _FAINT, font=small, anchor="lm")
        x = end + 6

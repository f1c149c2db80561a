"""What a frame costs on its way: python -m wm_jax.serving.codec_bench worlds/coinrun

Encodes a dream of the world, at its own size and enlarged, as a server does it: JPEG, H.264 and, where aiortc is installed, the VP8
that WebRTC sends. Prints milliseconds of processor time (median) and bytes (mean) a frame, and how near the result is to the original.
"""

import dataclasses
import importlib.util
import statistics
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import tyro
from jaxtyping import UInt8
from PIL import Image

from wm_jax.serving.codec import encode
from wm_jax.serving.offline import CHUNK_FRAMES, dream_of_own_noise
from wm_jax.serving.video import H264Decoder, H264Encoder, crf, video_frame
from wm_jax.types import Controls
from wm_jax.world import load, load_prompts
from wm_jax.world.step import pick_prompt

Arm = Callable[[UInt8[np.ndarray, "h w 3"]], tuple[int, Any]]
"""Encodes a frame: how many bytes it takes, and what `shown` makes the picture of."""


@dataclasses.dataclass(frozen=True)
class CodecBenchConfig:
    """What is measured. Example: python -m wm_jax.serving.codec_bench worlds/coinrun"""

    world: tyro.conf.Positional[Path]
    """A world folder or a run."""
    frames: int = 300
    """Length of the dream."""
    quality: int = 90
    """As `media.quality`; VP8 has a bit rate of its own."""
    sides: tuple[tuple[int, int], ...] = ((360, 640),)
    """Sizes beside the world's own, height and width."""


def main(config: CodecBenchConfig) -> None:
    frames, fps = dream(config.world, config.frames)
    own = (frames.shape[1], frames.shape[2])
    print(f"{config.frames} frames at {fps:g} a second, quality {config.quality} (crf {crf(config.quality)})")
    print(f"{'size':>9} {'codec':>6} {'ms':>7} {'bytes':>8} {'kbit/s':>7} {'dB':>6}")
    for height, width in (own, *config.sides):
        scaled = frames if (height, width) == own else [_enlarged(frame, height, width) for frame in frames]
        for name, arm, shown in _arms(fps, config.quality):
            print(f"{width:>5}x{height:<3} {name:>6} {_row(arm, shown, scaled, fps)}")


def dream(folder: Path, count: int) -> tuple[UInt8[np.ndarray, "t h w 3"], float]:
    """This many frames under keys that change now and then, and their rate."""
    world, params = load(folder)
    rng, keys = np.random.default_rng(0), len(world.config.controls.keys)
    played = dream_of_own_noise(world, params, pick_prompt(load_prompts(folder), 0), 0)
    mouse = np.zeros((CHUNK_FRAMES, 2), np.float32) if world.config.controls.has_mouse else None
    chunks = [
        played(Controls(np.repeat(rng.random((1, keys)) < 0.3, CHUNK_FRAMES, axis=0), mouse))
        for _ in range(-(-count // CHUNK_FRAMES))
    ]
    return np.concatenate(chunks)[:count], world.config.fps


def _enlarged(frame: UInt8[np.ndarray, "h w 3"], height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))


def _arms(fps: float, quality: int) -> list[tuple[str, Arm, Callable[[Any, int, int], np.ndarray]]]:
    stream, screen = H264Encoder(fps, quality), H264Decoder()

    def jpeg(frame: np.ndarray) -> tuple[int, Any]:
        data = encode(frame, "jpeg", quality)
        return len(data), data

    def h264(frame: np.ndarray) -> tuple[int, Any]:
        unit = stream.encode(frame)[0]
        return len(unit), unit

    arms: list[tuple[str, Arm, Callable[[Any, int, int], np.ndarray]]] = [
        ("jpeg", jpeg, lambda data, height, width: simplejpeg.decode_jpeg(data)),
        ("h264", h264, screen.decode),
    ]
    return [*arms, *([_vp8(fps)] if importlib.util.find_spec("aiortc") else [])]


def _vp8(fps: float) -> tuple[str, Arm, Callable[[Any, int, int], np.ndarray]]:
    import av
    from aiortc.codecs.vpx import Vp8Decoder, Vp8Encoder, VpxPayloadDescriptor
    from aiortc.jitterbuffer import JitterFrame

    stream, screen, count = Vp8Encoder(), Vp8Decoder(), 0

    def vp8(frame: np.ndarray) -> tuple[int, Any]:
        nonlocal count
        picture = video_frame(frame)
        picture.pts, picture.time_base = round(count * 90_000 / fps), Fraction(1, 90_000)
        count += 1
        payloads, _ = stream.encode(picture)
        return sum(map(len, payloads)), payloads

    def shown(payloads: list[bytes], height: int, width: int) -> np.ndarray:
        data = b"".join(VpxPayloadDescriptor.parse(payload)[1] for payload in payloads)
        (picture,) = screen.decode(JitterFrame(data, 0))
        assert isinstance(picture, av.VideoFrame)
        return picture.to_ndarray(format="rgb24")[:height, :width]

    return "vp8", vp8, shown


def _row(arm: Arm, shown: Callable[[Any, int, int], np.ndarray], frames: Any, fps: float) -> str:
    times: list[float] = []
    sizes: list[int] = []
    errors: list[float] = []
    for frame in frames:
        began = time.process_time()
        size, made = arm(frame)
        times.append(time.process_time() - began)
        sizes.append(size)
        errors.append(float(np.mean((shown(made, *frame.shape[:2]).astype(np.float32) - frame) ** 2)))
    mean = statistics.fmean(sizes)
    decibels = 10 * np.log10(255**2 / statistics.fmean(errors))
    return f"{1e3 * statistics.median(times):>7.3f} {mean:>8.0f} {8e-3 * mean * fps:>7.0f} {decibels:>6.1f}"


if __name__ == "__main__":
    main(tyro.cli(CodecBenchConfig, description=__doc__))

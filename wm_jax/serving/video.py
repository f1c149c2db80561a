"""Frames of a session as one H.264 stream: most frames only say what has changed since the one before.

Such a stream belongs to one connection and is made of what is sent over it: a frame that is dropped is never encoded, so
none refers to a frame that the client has not got.
"""

import functools
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8

from wm_jax.serving.codec import CODECS
from wm_jax.serving.protocol import Codec

if TYPE_CHECKING:
    import av

KEY_EVERY_S = 5.0
"""A client that lost its decoder sees again after so long."""

NALU = b"\x00\x00\x01"
SPS = 7


@functools.cache
def offered_codecs() -> tuple[Codec, ...]:
    """What frames can travel as here: h264 only where PyAV has libx264. The first call imports it, which takes a while."""
    import av

    return (*CODECS, "h264") if "libx264" in av.codecs_available else CODECS


def crf(quality: int) -> int:
    """The constant rate factor of x264 that looks about like JPEG of this quality: 100 is 15, 90 is 18, 50 is 28, 1 is 40."""
    return round(40 - quality / 4)


def even(pixels: UInt8[Any, "h w 3"]) -> UInt8[Any, "h2 w2 3"]:
    """The picture with its last row and column repeated where their number is odd: colours are stored for 2x2 pixels."""
    height, width = pixels.shape[:2]
    if height % 2 == width % 2 == 0:
        return pixels
    return np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def video_frame(pixels: UInt8[Any, "h w 3"]) -> "av.VideoFrame":
    """The picture as encoders take it: 4:2:0, colours by BT.709, sides made even."""
    import av
    from av.video.reformatter import ColorRange, Colorspace

    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(even(pixels)), format="rgb24")
    return frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)


class H264Encoder:
    """One stream: Annex B, baseline profile, one access unit a frame; it begins with a key frame, as does every new size.

    Used by one thread at a time.
    """

    def __init__(self, fps: float, quality: int) -> None:
        self._fps = fps
        self._crf = crf(quality)
        self._size: tuple[int, int] | None = None
        self._stream: Any = None  # PyAV types what encode() returns as perhaps None
        self._frames = 0

    def encode(self, pixels: UInt8[Any, "h w 3"]) -> tuple[bytes, bool]:
        """The access unit of the next frame, and whether it can be understood without the ones before."""
        if self._size != pixels.shape[:2]:
            self._size = (pixels.shape[0], pixels.shape[1])
            self._stream = self._open(*self._size)
        frame = video_frame(pixels)
        frame.pts = self._frames
        self._frames += 1
        packets = self._stream.encode(frame)
        assert len(packets) == 1, f"zerolatency gave {len(packets)} packets for a frame"
        return bytes(packets[0]), packets[0].is_keyframe

    def _open(self, height: int, width: int) -> Any:
        import av

        stream = av.CodecContext.create("libx264", "w")
        stream.width, stream.height = width + width % 2, height + height % 2
        stream.pix_fmt = "yuv420p"
        rate = Fraction(self._fps).limit_denominator(1000)
        stream.framerate, stream.time_base = rate, 1 / rate
        stream.gop_size = max(1, round(KEY_EVERY_S * self._fps))
        stream.max_b_frames = 0
        stream.thread_count = 1  # more would cut each frame into slices and hold the others' cores
        # As `video_frame` makes them: BT.709, 16 to 235.
        stream.color_range = stream.colorspace = stream.color_primaries = stream.color_trc = 1
        stream.options = {"preset": "ultrafast", "tune": "zerolatency", "profile": "baseline", "crf": str(self._crf)}
        return stream


class H264Decoder:
    """The other end: access units in, pixels out."""

    def __init__(self) -> None:
        import av

        self._packet = av.Packet
        self._stream: Any = av.CodecContext.create("h264", "r")
        self._stream.thread_count = 1  # with more, frames would come out later

    def decode(self, data: bytes, height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
        """The picture of one access unit, less what was added to make its sides even.

        Raises:
          ValueError: the stream does not go on with these bytes, or does not begin with a key frame.
        """
        frames = self._stream.decode(self._packet(data))
        if len(frames) != 1:
            raise ValueError(f"these {len(data)} bytes of H.264 hold {len(frames)} pictures, a frame is one")
        return frames[0].to_ndarray(format="rgb24")[:height, :width]


def codec_string(unit: bytes) -> str:
    """What WebCodecs calls the codec of a key frame, as `avc1.42c01e`: profile, constraints and level, from its header.

    Raises:
      ValueError: no key frame.
    """
    for part in unit.split(NALU)[1:]:
        if part and part[0] & 0x1F == SPS:
            return f"avc1.{part[1:4].hex()}"
    raise ValueError(f"these {len(unit)} bytes are no key frame: they have no sequence parameter set")

"""Frames to bytes, each by itself: JPEG, PNG or raw for the wire; and a video for a file. (A stream of H.264: video.py.)"""

import io
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from wm_jax.serving.protocol import Codec

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
CODECS: tuple[Codec, ...] = ("jpeg", "png", "raw")
"""Those in which every frame is a picture of its own."""


def encode(frame: UInt8[Any, "h w 3"], codec: Codec, quality: int) -> bytes:
    """One frame as bytes; `raw` is RGB, row by row, and like `png` loses nothing."""
    assert codec in CODECS, f"{codec} is a stream: see video.py"
    if codec == "jpeg":
        subsampling = "444" if frame.shape[0] <= 256 else "420"
        return simplejpeg.encode_jpeg(np.ascontiguousarray(frame), quality=quality, colorsubsampling=subsampling)
    if codec == "png":
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "png", compress_level=1)
        return buffer.getvalue()
    return frame.tobytes()


def decode_image(data: bytes, size: tuple[int, int]) -> UInt8[Any, "h w 3"]:
    """The picture of this size (height, width) in the bytes of a PNG or JPEG; no pixel of another size is decoded.

    Raises:
      ValueError: no such picture, or one of another size.
    """
    try:
        with _open_image(data) as image:
            if (image.height, image.width) != size:
                got, wanted = f"{image.width}x{image.height}", f"{size[1]}x{size[0]}"
                raise ValueError(f"the image is {got} pixels, this world dreams {wanted}: scale it first")
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError) as error:
        raise ValueError(f"these {len(data)} bytes are neither a PNG nor a JPEG image: {error}") from None


def _open_image(data: bytes) -> ImageFile:
    """The picture, its header read. Not by Image.open: that one raises errors of its own for a very large size."""
    kind = PngImageFile if data.startswith(PNG_MAGIC) else JpegImageFile
    return kind(io.BytesIO(data))


class Mp4Writer:
    """An MP4 of frames, each pixel drawn as a square so that small worlds can be seen.

    Attributes:
      path: The file; it is complete once the writer is closed.
      scale: Side of one pixel's square.
    """

    def __init__(self, path: Path, fps: float, image: tuple[int, int], scale: int | None = None) -> None:
        import av  # slow to import, and a server never writes a file

        height, width = image
        self.path = path
        self.scale = scale or max(1, 512 // max(height, width))
        self._frame_type = av.VideoFrame
        self._container = av.open(str(path), "w", format="mp4")
        rate = Fraction(fps).limit_denominator(1000)
        stream = self._container.add_stream("libx264", rate=rate, options={"crf": "12", "preset": "veryfast"})
        self._stream = stream
        self._stream.width = width * self.scale // 2 * 2
        self._stream.height = height * self.scale // 2 * 2
        self._stream.pix_fmt = "yuv420p"

    def write(self, frame: UInt8[Any, "h w 3"]) -> None:
        large = np.repeat(np.repeat(frame, self.scale, axis=0), self.scale, axis=1)
        pixels = np.ascontiguousarray(large[: self._stream.height, : self._stream.width])
        picture = self._frame_type.from_ndarray(pixels, format="rgb24")
        self._container.mux(self._stream.encode(picture))

    def close(self) -> None:
        self._container.mux(self._stream.encode(None))
        self._container.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

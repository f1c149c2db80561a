"""Frames to bytes and back."""

import struct
import zlib

import av
import numpy as np
import pytest
import simplejpeg

from wm_jax.serving.codec import Mp4Writer, decode_image, encode


def picture(height: int = 24, width: int = 32) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([8 * x, 8 * y, 4 * (x + y)], axis=-1).astype(np.uint8)


def test_png_and_raw_lose_nothing():
    frame = picture()
    assert np.array_equal(decode_image(encode(frame, "png", 90), (24, 32)), frame)
    assert np.array_equal(np.frombuffer(encode(frame, "raw", 90), np.uint8).reshape(frame.shape), frame)


def test_jpeg_is_close_and_its_quality_counts():
    frame = picture()
    good, poor = encode(frame, "jpeg", 90), encode(frame, "jpeg", 10)
    assert len(poor) < len(good)
    assert np.abs(simplejpeg.decode_jpeg(good).astype(int) - frame).mean() < 3


def test_a_frame_that_is_a_view_is_encoded_too():
    batch = np.stack([picture(), picture()[::-1]])
    assert encode(batch[1], "jpeg", 90) == encode(np.ascontiguousarray(batch[1]), "jpeg", 90)


@pytest.mark.parametrize("data", [b"", b"GIF89a" + bytes(20), encode(picture(), "png", 90)[:40]])
def test_what_is_no_picture_is_refused(data):
    with pytest.raises(ValueError, match="neither a PNG nor a JPEG"):
        decode_image(data, (24, 32))


@pytest.mark.parametrize("side", [33, 12_000, 20_000])
@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_a_picture_of_another_size_is_refused_by_its_header(side, kind):
    data = bytearray(encode(picture(), kind, 90))
    if kind == "png":  # after the magic, the length and the name of the first chunk
        data[16:24] = struct.pack(">II", side, side)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    else:  # after the marker of the frame, its length and the bit depth
        start = data.index(b"\xff\xc0") + 5
        data[start : start + 4] = struct.pack(">HH", side, side)
    with pytest.raises(ValueError, match=f"{side}x{side} pixels, this world dreams 32x24"):
        decode_image(bytes(data), (24, 32))


@pytest.mark.parametrize("fps", [17.5, 30.0, 29.97])
def test_a_video_plays_at_the_worlds_own_rate(tmp_path, fps):
    with Mp4Writer(tmp_path / "v.mp4", fps, (24, 32), scale=2) as video:
        for _ in range(7):
            video.write(picture())
    with av.open(str(tmp_path / "v.mp4")) as container:
        rate = container.streams.video[0].average_rate
    assert rate is not None and float(rate) == pytest.approx(fps, rel=1e-3)


def test_a_video_holds_every_frame(tmp_path):
    with Mp4Writer(tmp_path / "v.mp4", 30.0, (24, 32), scale=2) as video:
        for _ in range(7):
            video.write(picture())
    with av.open(str(tmp_path / "v.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 7
    assert frames[0].shape == (48, 64, 3)
    assert np.abs(frames[-1][::2, ::2].astype(int) - picture()).mean() < 8

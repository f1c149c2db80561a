"""Frames as one H.264 stream: it is understood from its first frame on, however many are dropped."""

import asyncio
import gc
import itertools
import time
from pathlib import Path

import numpy as np
import pytest

from wm_jax.client import open_session
from wm_jax.serving import codec_bench, models, transport
from wm_jax.serving.codec import CODECS
from wm_jax.serving.video import H264Decoder, H264Encoder, codec_string, crf, video_frame

H264 = {"media": {"codec": "h264"}}


def scene(index: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A soft pattern that moves to the right."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin((x - 2 * index) / 9), np.sin(y / 7), np.sin((x + y - 2 * index) / 11)]
    return np.stack([127 + 120 * wave for wave in waves], axis=-1).astype(np.uint8)


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return 10 * np.log10(255**2 / max(1e-9, np.mean((one.astype(float) - other) ** 2)))


def without_fine_colours(pixels: np.ndarray) -> np.ndarray:
    """What any 4:2:0 video can show of a picture at best."""
    return video_frame(pixels).to_ndarray(format="rgb24")[: pixels.shape[0], : pixels.shape[1]]


@pytest.mark.parametrize("size", [(48, 64), (33, 35)])
def test_a_stream_shows_what_was_put_in_at_its_own_size(size):
    encoder, decoder = H264Encoder(30.0, 90), H264Decoder()
    frames = [scene(index, *size) for index in range(12)]
    units = [encoder.encode(frame) for frame in frames]
    assert [is_key for _, is_key in units] == [True] + [False] * 11
    assert codec_string(units[0][0]).startswith("avc1.42c0")
    assert max(len(unit) for unit, _ in units[1:]) < len(units[0][0])
    shown = [decoder.decode(unit, *size) for unit, _ in units]
    assert all(view.shape == (*size, 3) for view in shown)
    assert min(map(psnr, shown, frames)) > 30


def test_a_frame_needs_those_before_and_a_new_stream_or_size_needs_none():
    encoder = H264Encoder(30.0, 90)
    encoder.encode(scene(0))
    second, is_key = encoder.encode(scene(1))
    assert not is_key
    with pytest.raises(ValueError):
        H264Decoder().decode(second, 48, 64)
    with pytest.raises(ValueError, match="no sequence parameter set"):
        codec_string(second)
    larger, is_key = encoder.encode(scene(2, 64, 80))
    assert is_key and psnr(H264Decoder().decode(larger, 64, 80), scene(2, 64, 80)) > 30


def test_a_client_that_lost_its_decoder_sees_again_after_five_seconds():
    encoder = H264Encoder(2.0, 50)
    assert [encoder.encode(scene(index))[1] for index in range(21)] == [index % 10 == 0 for index in range(21)]


def test_quality_is_that_of_jpeg():
    assert [crf(quality) for quality in (100, 90, 50, 1)] == [15, 18, 28, 40]
    good, poor = (H264Encoder(30.0, quality).encode(scene(0))[0] for quality in (90, 10))
    assert len(poor) < len(good)


@pytest.fixture
def streams(monkeypatch):
    """How many streams of connections there are."""

    class Counted(H264Encoder):
        pass

    monkeypatch.setattr(transport, "H264Encoder", Counted)

    def count() -> int:
        gc.collect()
        return sum(isinstance(one, Counted) for one in gc.get_objects())

    return count


def test_a_stream_is_that_of_the_frames_that_were_sent_and_begins_anew_on_a_new_connection(server, streams):
    ticket = server.create(**H264, init={"seed": 3})
    with server.connect(ticket) as socket:
        talk = server.talk(socket, acknowledges=False)
        token = talk.wait_for("session.created")["resume_token"]
        assert talk.messages[0]["capabilities"]["codecs"][-1] == "h264"
        while len(talk.frames) < 6 or talk.frames[-1][0]["dropped"] < 8:
            (head, _), *_ = talk.wait_for_frames(1)
            if len(talk.frames) >= 2:
                time.sleep(0.15)
                talk.send("frame.ack", seq=head["seq"])
    with server.connect(ticket, token) as socket:
        later = server.talk(socket).wait_for_frames(2)
    server.delete(ticket)
    heads = [head for head, _ in talk.frames]
    assert [head["key"] for head in heads] == [True] + [False] * (len(heads) - 1)
    assert ["config" in head for head in heads] == [head["key"] for head in heads]
    assert all(head["codec"] == "h264" and head["t"]["encode"] > 0 for head in heads)
    assert max(two["frame_id"] - one["frame_id"] for one, two in itertools.pairwise(heads)) > 1, "nothing was dropped"

    with server.connect(server.create(mode="stepped", media={"codec": "raw"}, init={"seed": 3})) as socket:
        talking = server.talk(socket)
        wanted = 1 + later[-1][0]["frame_id"]
        for step in range(0, wanted, 64):
            talking.send("step", step_id=step, n=min(64, wanted - step))
        raw = [np.frombuffer(payload, np.uint8).reshape(32, 32, 3) for _, payload in talking.wait_for_frames(wanted)]
    for sent in (talk.frames, later):
        encoder, decoder = H264Encoder(30.0, 90), H264Decoder()
        for head, unit in sent:
            assert unit == encoder.encode(raw[head["frame_id"]])[0]
            # Untrained, this world dreams noise, the hardest there is to encode.
            assert psnr(decoder.decode(unit, 32, 32), without_fine_colours(raw[head["frame_id"]])) > 20
    deadline = time.monotonic() + 5
    while streams() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert streams() == 0, "a connection that has ended keeps its encoder"


@pytest.mark.parametrize("wire", ["json", "msgpack"])
def test_the_client_decodes_the_stream(server, wire):
    async def play() -> list[tuple[str, np.ndarray]]:
        async with open_session(server.url, wire=wire, media=H264["media"]) as client:
            frames = client.frames()
            return [(head.codec, frame) for head, frame in [await anext(frames) for _ in range(4)]]

    assert [(codec, frame.shape) for codec, frame in asyncio.run(play())] == [("h264", (32, 32, 3))] * 4


def test_a_stepped_session_refuses_a_stream(server):
    answer = server.http.post(f"{server.url}/v1/sessions", json={"mode": "stepped", **H264})
    assert answer.status_code == 422 and answer.json()["code"] == "unsupported"
    assert answer.json()["param"] == "media.codec" and "jpeg, png, raw" in answer.json()["message"]


def test_without_libx264_it_is_neither_offered_nor_taken(server, monkeypatch):
    monkeypatch.setattr(models, "offered_codecs", lambda: CODECS)
    assert server.http.get(f"{server.url}/v1/models").json()["models"][0]["codecs"] == ["jpeg", "png", "raw"]
    answer = server.http.post(f"{server.url}/v1/sessions", json=H264)
    assert answer.status_code == 422 and "libx264" in answer.json()["message"]


def test_the_benchmark_of_codecs_prints_a_row_for_each(monkeypatch, capsys):
    frames = np.stack([scene(index) for index in range(8)])
    monkeypatch.setattr(codec_bench, "dream", lambda folder, count: (frames[:count], 30.0))
    codec_bench.main(codec_bench.CodecBenchConfig(Path("world"), frames=8, sides=((33, 35),)))
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[:2] for row in rows] == [
        [size, name] for size in ("64x48", "35x33") for name in ("jpeg", "h264", "vp8")
    ]
    assert all(float(row[2]) > 0 and float(row[3]) > 0 and float(row[5]) > 25 for row in rows)

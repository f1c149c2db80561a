"""A real Chromium decodes frames, with and without a worker, draws their times, and saves what it shows."""

import dataclasses
import io
import json
import struct
import zipfile
from fractions import Fraction

import av
import numpy as np
import pytest
from av.video.reformatter import Colorspace

from tests.serving.test_page import RECORD, dream_all

pytestmark = pytest.mark.browser

NO_OFFSCREEN = "delete HTMLCanvasElement.prototype.transferControlToOffscreen"


def test_a_browser_without_a_worker_draws_the_same(open_page, server):
    pages = [open_page(server), open_page(server, script=NO_OFFSCREEN)]
    assert [page.evaluate("__wm.decodes") for page in pages] == ["worker", "page"]
    for page in pages:
        page.evaluate(f"() => {{ {RECORD} }}")
    asked = [*((page, ("ArrowRight",)) for page in pages), (pages[1], ())]
    worker, here, free = dream_all(*asked, frames=15)
    common = sorted(worker.keys() & here.keys() & free.keys())
    assert len(common) >= 3
    assert all(worker[frame] == here[frame] for frame in common)
    assert any(free[frame] != here[frame] for frame in common), "keys change nothing"


def message(seq: int, codec: str, payload: bytes, key: bool = True) -> list[int]:
    """A picture of 63x47, which as video is one pixel larger either way."""
    header = dict(type="frames", seq=seq, frame_id=seq, n=1, codec=codec, w=63, h=47, lengths=[len(payload)], key=key)
    config = {"config": "avc1.42c01e"} if codec == "h264" and key else {}
    head = json.dumps(header | config | {"pts_ms": 0, "t": {}}).encode()
    return list(struct.pack("<I", len(head)) + head + payload)


def h264(colors: list[tuple[int, int, int]]) -> list[tuple[bytes, bool]]:
    """Access units in Annex B, the parameter sets in the first, and whether each is a key."""
    encoder = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt = 64, 48, "yuv420p"
    encoder.framerate, encoder.time_base = Fraction(30), Fraction(1, 30)
    encoder.color_range = encoder.colorspace = encoder.color_primaries = encoder.color_trc = 1  # BT.709
    encoder.options = {"tune": "zerolatency", "profile": "baseline", "g": "1000", "crf": "2"}
    pictures = [av.VideoFrame.from_ndarray(np.full((48, 64, 3), color, np.uint8)) for color in colors]
    frames = [one.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709) for one in pictures]
    packets = [packet for frame in [*frames, None] for packet in encoder.encode(frame)]
    return [(bytes(packet), packet.is_keyframe) for packet in packets]


DECODE = """async (messages) => {
  const { Painter } = await import("/page/decode.js");
  const shown = [];
  const painter = new Painter(new OffscreenCanvas(1, 1), (one) => shown.push(one));
  painter.isWatched = true;
  for (const [index, bytes] of messages.entries()) {
    painter.take(new Uint8Array(bytes).buffer, 7);
    while (shown.length <= index) await new Promise((resolve) => setTimeout(resolve, 5));
  }
  return shown.map(({ header, stream, pixels, problem, isLost }) => (
    { seq: header.seq, stream, isLost, problem, middle: pixels && [...new Uint8Array(pixels, 4 * (24 * 63 + 32), 4)] }
  ));
}"""


def test_video_and_raw_frames_are_decoded_and_what_cannot_be_is_told(open_page, server):
    page = open_page(server)
    red, green, blue = (220, 30, 30), (30, 200, 40), (20, 30, 210)
    units = h264([red, green, blue])
    assert [key for _, key in units] == [True, False, False]
    raw = np.full((47, 63, 3), green, np.uint8).tobytes()
    messages = [message(0, "h264", units[1][0], key=False)]
    messages += [message(1 + seq, "h264", unit, key) for seq, (unit, key) in enumerate(units)]
    messages += [message(4, "raw", raw), message(5, "jpeg", b"no picture")]
    early, *video, plain, broken = page.evaluate(DECODE, messages)
    assert early["isLost"] and "key frame" in early["problem"]
    assert [one["seq"] for one in video] == [1, 2, 3] and {one["stream"] for one in video} == {7}
    for one, color in zip(video, (red, green, blue), strict=True):
        assert np.abs(np.subtract(one["middle"], [*color, 255])).max() < 12, (
            one,
            color,
        )  # by the matrix of BT.601 it were 26
    assert plain["middle"] == [*green, 255]
    assert broken["problem"] and not broken["isLost"] and broken["seq"] == 5


def test_what_is_shown_can_be_recorded_and_saved(open_page, server):
    page = open_page(server)
    page.click("#record")
    page.wait_for_function("/^Stop 0:(0[1-9]|[1-5]\\d)$/.test(document.getElementById('record').textContent)")
    with page.expect_download() as saved:
        page.click("#record")
    assert saved.value.suggested_filename.startswith("tiny-seed0-") and saved.value.suggested_filename.endswith(".webm")
    with av.open(io.BytesIO(saved.value.path().read_bytes()), "r") as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(frames) >= 5 and frames[0].shape == (512, 512, 3)
    assert np.ptp(frames[-1]) > 50 and np.abs(frames[-1].astype(int) - frames[0]).mean() > 1, "the world stands still"
    assert page.text_content("#record") == "Record"


def test_the_graph_shows_the_last_frames_and_is_remembered(open_page, server):
    page = open_page(server)
    assert page.locator("#graph").is_hidden()
    page.keyboard.press("KeyG")
    page.keyboard.press("ArrowLeft")
    page.wait_for_function(
        "[...document.querySelectorAll('#graph tbody td')].every((cell) => Number(cell.textContent) > 0)"
    )
    drawn = page.evaluate("""() => {
      const c = document.querySelector("#graph canvas");
      return c.getContext("2d").getImageData(0, 0, c.width, c.height).data.some((value) => value > 0);
    }""")
    assert drawn and page.get_attribute("#graph-button", "aria-expanded") == "true"
    page.reload()
    page.locator("#graph").wait_for(state="visible")


def test_a_token_in_the_address_opens_a_session_and_leaves_the_address(open_page, server, monkeypatch):
    monkeypatch.setattr(server.service, "config", dataclasses.replace(server.service.config, auth="se-sa_me.1"))
    page = open_page(server, address="/#token=se-sa_me.1")
    assert "token" not in page.url and page.evaluate("__wm.problems") == []
    page.evaluate("__wm.player.leave()")
    assert server.free_slots() == 2, "a session ends by its own token"


def test_a_scene_can_be_chosen(open_page, server):
    page = open_page(server)
    first = page.evaluate("__wm.session")
    page.select_option("#scene", label="3")
    page.wait_for_function(f"__wm.session && __wm.session !== '{first}' && __wm.state === 'playing'")
    assert server.service.lobby.find(page.evaluate("__wm.session")).session.opening.prompt == 2
    assert page.locator("#scene option").count() == 4


def test_what_the_server_kept_can_be_downloaded(open_page, server):
    page = open_page(server)
    with page.expect_download() as saved:
        page.click("#download")
    assert saved.value.suggested_filename.endswith(".zip")
    with zipfile.ZipFile(io.BytesIO(saved.value.path().read_bytes())) as kept:
        assert {"session.json", "events.jsonl", "video.mp4"} <= set(kept.namelist())
        with av.open(io.BytesIO(kept.read("video.mp4")), "r") as video:
            assert sum(1 for _ in video.decode(video=0)) > 5
    page.wait_for_function("document.getElementById('download').textContent === 'Download'")
    server.create()  # the other slot: no video can be made
    with page.expect_download() as saved:
        page.click("#download")
    with zipfile.ZipFile(io.BytesIO(saved.value.path().read_bytes())) as kept:
        assert "events.jsonl" in kept.namelist() and "video.mp4" not in kept.namelist()
    page.wait_for_function("document.getElementById('notice').textContent.startsWith('Saved without a video')")
    refused = page.complaints.pop()
    assert "503" in refused, "a browser tells its console of the first answer"

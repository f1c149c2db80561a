"""A real Chromium plays a session whose frames come as one H.264 stream."""

import itertools

import numpy as np
import pytest

pytestmark = pytest.mark.browser

WATCH = """() => {
  window.seen = [];
  __wm.player.addEventListener("frame", ({ detail }) => {
    if (detail.pixels) seen.push([detail.codec, detail.key, [...new Uint8Array(detail.pixels)]]);
  });
  __wm.player.screen.watch(true);
}"""


def test_a_session_travels_as_video_and_goes_on_after_a_lost_connection(open_page, server):
    page = open_page(server, script="""localStorage.setItem("wm.codec", '"h264"')""")
    page.evaluate(WATCH)
    page.keyboard.down("ArrowRight")
    page.wait_for_function("seen.length > 10")
    session, frame = page.evaluate("[__wm.session, __wm.frameId]")
    page.evaluate("__wm.loseConnection()")
    page.wait_for_function(f"__wm.state === 'playing' && __wm.frameId > {frame + 10}")
    assert page.evaluate("__wm.session") == session and page.evaluate("__wm.problems") == []
    page.keyboard.up("ArrowRight")
    seen = page.evaluate("seen")
    assert {codec for codec, _, _ in seen} == {"h264"} and any(key for _, key, _ in seen)
    pictures = [np.reshape(pixels, (32, 32, 4))[..., :3] for _, _, pixels in seen]
    changes = [np.abs(now - then).mean() for then, now in itertools.pairwise(pictures)]
    assert np.mean(changes) > 0.1, "the world stands still"

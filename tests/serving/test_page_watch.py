"""A real Chromium watches what somebody else plays."""

import pytest

pytestmark = pytest.mark.browser


def test_a_spectator_sees_the_frames_and_has_no_word_in_the_matter(open_page, server):
    player = open_page(server)
    session = player.evaluate("__wm.session")
    ticket = server.http.post(f"{server.url}/v1/sessions/{session}/spectators").json()
    watching = open_page(server, address=f"/#join={session}.{ticket['token']}")
    assert "join" not in watching.url and watching.evaluate("[__wm.session, __wm.state]") == [session, "watching"]
    assert watching.locator("#pause").is_hidden() and watching.locator("#record").is_visible()
    watching.keyboard.press("ArrowRight")
    watching.keyboard.press("KeyR")
    watching.evaluate("__wm.loseConnection()")
    frame = watching.evaluate("__wm.frameId")
    watching.wait_for_function(f"__wm.state === 'watching' && __wm.frameId > {frame + 5}")
    assert watching.evaluate("__wm.problems") == []
    watching.evaluate("__wm.player.leave()")
    assert server.http.get(f"{server.url}/v1/sessions/{session}").json()["status"] == "running"
    player.evaluate("__wm.player.leave()")
    watching.wait_for_selector("text=Session ended")

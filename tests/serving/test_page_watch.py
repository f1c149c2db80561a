"""A real Chromium watches what somebody else plays."""

import dataclasses

import pytest

from tests.serving.conftest import Talk

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


def test_whoever_watches_follows_the_session_and_is_told_why_it_cannot(open_page, server, monkeypatch):
    session = server.create()
    address = f"{server.url}/v1/sessions/{session['session_id']}"
    link = f"join={session['session_id']}." + server.http.post(f"{address}/spectators").json()["token"]
    with server.connect(session) as played:
        Talk(played).wait_for_frames(1)
        page = open_page(server, address=f"/#{link}")
        page.route("**/spectators", lambda asked: asked.fulfill(status=404, json={"code": "unknown_session"}))
        page.evaluate("__wm.loseConnection()")
        page.wait_for_function("__wm.player.attempt >= 2 && __wm.state === 'reconnecting'")
        page.unroute("**/spectators")
        page.wait_for_function("__wm.state === 'watching'")
        with monkeypatch.context() as full:
            full.setattr(server.service.lobby, "config", dataclasses.replace(server.service.config, spectators=0))
            page.evaluate(f"location.hash = '{link}'")
            page.wait_for_selector("#overlay:has-text('No room to watch') >> text=as many as may")
            page.evaluate("dispatchEvent(new PageTransitionEvent('pagehide'))")
            page.evaluate("__wm.player.leaving")
        page.click("text='Try again'")
        page.wait_for_function("__wm.state === 'watching'")
        page.route("**/spectators", lambda asked: asked.fulfill(status=404, json={"code": "unknown_session"}))
        page.evaluate("__wm.player.missingSince = -15000; __wm.loseConnection()")
        page.wait_for_selector("text=Session ended")
        page.unroute("**/spectators")
        page.evaluate(f"location.hash = 'join={session['session_id']}.a.b.c'")
        page.wait_for_selector("#overlay:has-text('You cannot watch this') >> text=not made by this server")
        assert server.http.get(address).json()["status"] == "running" and server.free_slots() == 1
    assert all("404" in told or "401" in told for told in page.complaints), "a browser tells its console of both"
    page.complaints.clear()

"""A real Chromium goes back in time, forks, waits in line, and finds its world again after the server was started anew."""

import asyncio

import pytest

import wm_jax as wm
from tests.serving.conftest import serving, tiny_prompts
from tests.serving.test_page import RECORD

pytestmark = pytest.mark.browser


def test_the_timeline_goes_back_and_the_world_goes_on_from_there(open_page, server):
    page = open_page(server)
    page.evaluate(f"() => {{ {RECORD} }}")
    page.evaluate("__wm.player.addEventListener('ack', ({ detail }) => { window.ack = detail; })")
    page.wait_for_function("drawn.length > 40")
    pairs: list[tuple[str, str]] = []
    for _ in range(5):  # a busy machine draws few of the frames, and few of them twice
        before = page.evaluate("window.ack = undefined, __wm.frameId")
        page.locator("#timeline input").fill("-30")
        page.wait_for_function("window.ack?.restored_frame !== undefined")
        applied, restored = page.evaluate("[ack.applied_at_frame, ack.restored_frame]")
        # 30 frames before the one it showed then, or the last state kept before that, of which there is one every 15 frames.
        assert before - 45 < restored < applied - 30 and page.text_content("#timeline output") == "now"
        page.wait_for_function(f"__wm.frameId > {applied + 45}")
        drawn = dict(page.evaluate("drawn"))
        both = ((restored + n, applied + n) for n in range(applied - restored))
        pairs += [(drawn[then], drawn[now]) for then, now in both if {then, now} <= drawn.keys()]
        if len(pairs) >= 3:
            break
    assert len(pairs) >= 3
    assert all(then == now for then, now in pairs)


def test_a_fork_goes_on_in_a_tab_of_its_own(open_page, server):
    page = open_page(server)
    with page.context.expect_page() as opened:
        page.click("#fork")
    fork = opened.value
    fork.wait_for_function("window.__wm?.frames > 10", timeout=60_000)
    assert fork.evaluate("__wm.session") != page.evaluate("__wm.session") and server.free_slots() == 0
    assert "join" not in fork.url, "the token leaves the address bar"
    before = page.evaluate("__wm.frames")
    page.wait_for_function(f"__wm.frames > {before + 5}")
    fork.close()


def watch(page, server, session: str) -> None:
    address = f"{server.url}/v1/sessions/{session}/spectators"
    token = server.http.post(address, headers={"Authorization": "Bearer secret"}).json()["token"]
    page.add_init_script("const later = setTimeout; window.setTimeout = (act, ms) => later(act, ms / 5)")
    page.goto(f"{server.url}/#join={session}.{token}")
    page.wait_for_function("window.__wm?.frames > 10", timeout=60_000)


async def keep(server, session: str) -> int:
    """Writes a session to the disk; the frame that it would go on with."""
    place = server.service.lobby.find(session)
    assert await server.service.lobby._keep(place)
    return place.kept_at


def test_who_waits_is_told_and_a_server_that_starts_anew_is_found_again(browser, tmp_path, free_port):
    world = (*wm.tiny_world(0), tiny_prompts())
    settings = dict(slots=1, queue=1, port=free_port, snapshots=str(tmp_path), auth="secret")
    pages = [browser.new_page() for _ in range(3)]
    try:
        with serving(*world, **settings) as server:
            pages[0].goto(f"{server.url}/#token=secret")
            pages[0].wait_for_function("window.__wm?.frames > 10", timeout=60_000)
            pages[1].goto(f"{server.url}/#token=secret")
            pages[1].wait_for_selector("text=You are number 1 of 1 who wait")
            pages[0].close()
            pages[1].wait_for_function("window.__wm?.frames > 10", timeout=60_000)
            session = pages[1].evaluate("__wm.session")
            watch(pages[2], server, session)
            assert server.service.loop is not None
            kept = asyncio.run_coroutine_threadsafe(keep(server, session), server.service.loop).result(20)
            written = (tmp_path / f"{session}.safetensors").read_bytes()
            pages[1].wait_for_function(f"__wm.frameId > {kept + 5}")
            server.stop()
            pages[1].wait_for_selector("text=Reconnecting")
        shown = pages[1].evaluate("__wm.frameId")
        (tmp_path / f"{session}.safetensors").write_bytes(written)  # as if it had been killed
        with serving(*world, **settings):
            pages[1].wait_for_selector(f"#notice.shown:text('The server was lost: back to frame {kept}.')")
            pages[1].wait_for_function(f"__wm.state === 'playing' && __wm.frameId > {shown}", timeout=60_000)
            assert pages[1].evaluate("__wm.session") == session
            pages[2].wait_for_function(f"__wm.state === 'watching' && __wm.frameId > {shown}", timeout=60_000)
            assert pages[2].evaluate("__wm.session") == session
    finally:
        for page in pages:
            page.close()

"""A real Chromium plays the served page."""

import time
from typing import Any

import pytest

from tests.serving.conftest import wait_until
from wm_jax.serving.batcher import Stage

pytestmark = pytest.mark.browser


@pytest.fixture
def page(open_page, server):
    return open_page(server)


RECORD = """
  window.acks = {};
  window.drawn = [];
  __wm.player.addEventListener("ack", ({ detail }) => { acks[detail.event_id] = detail.applied_at_frame; });
  __wm.player.addEventListener("frame", ({ detail }) => {
    if (detail.pixels) drawn.push([detail.frame_id, new Uint8Array(detail.pixels).join()]);
  });
  __wm.player.screen.watch(true);
"""


def dream(page, keys: tuple[str, ...], frames: int = 25) -> dict[int, str]:
    """The canvas after each frame the page drew, by frames since a reset, while these keys are held."""
    for key in keys:
        page.keyboard.down(key)
    page.click("#reset")
    event = page.evaluate("__wm.player.eventId")
    page.wait_for_function(f"acks[{event}] !== undefined && __wm.frameId >= acks[{event}] + {frames}")
    for key in keys:
        page.keyboard.up(key)
    page.wait_for_function("__wm.held.length === 0")
    first, drawn = page.evaluate(f"[acks[{event}], drawn]")
    return {frame - first: shown for frame, shown in drawn if first <= frame < first + frames}


def dream_all(*asked: tuple[Any, tuple[str, ...]], frames: int = 25) -> list[dict[int, str]]:
    """The dream of each page under its keys; all again until they share frames: a busy machine draws few of them."""
    drawn = [dict[int, str]() for _ in asked]
    deadline = time.monotonic() + 60
    while len(set.intersection(*map(set, drawn))) < 3 and time.monotonic() < deadline:
        for known, (page, keys) in zip(drawn, asked, strict=True):
            known |= dream(page, keys, frames)
    return drawn


def test_held_keys_change_the_picture_and_nothing_else_does(page):
    assert page.evaluate("__wm.decodes") == "worker"
    page.evaluate(f"() => {{ {RECORD} }}")
    free, again, held = dream_all((page, ()), (page, ()), (page, ("ArrowRight", "ArrowUp")))
    common = sorted(free.keys() & again.keys() & held.keys())
    assert len(common) >= 3
    assert [free[frame] for frame in common] == [again[frame] for frame in common]
    assert all(free[frame] != held[frame] for frame in common)
    assert len({free[frame] for frame in common}) == len(common), "the world stands still"


def test_the_page_plays_and_measures(page, server, monkeypatch):
    before = page.evaluate("__wm.frames")
    page.keyboard.down("ArrowRight")
    page.keyboard.down("ArrowUp")
    assert sorted(page.evaluate("__wm.held")) == ["ArrowRight", "ArrowUp"]
    assert page.locator(".key.held").count() == 2
    page.wait_for_function(f"__wm.frames > {before + 20} && __wm.latency.count >= 1")
    page.keyboard.up("ArrowRight")
    page.keyboard.up("ArrowUp")
    page.wait_for_function("__wm.held.length === 0")
    assert page.evaluate("__wm.fps") > 5
    assert page.evaluate("__wm.latency.p50") > 0
    pace = server.service.batcher.pace
    monkeypatch.setattr(pace, "_run", lambda share: None)
    monkeypatch.setattr(pace, "fps", pace.wanted / 2)
    page.wait_for_selector(f"text='{pace.wanted / 2:g} of {pace.wanted:g} fps: the server is busy'")
    pace.fps = pace.wanted
    page.wait_for_function("document.getElementById('slow').textContent === ''")


def test_the_page_tells_how_far_the_start_is(page, server, monkeypatch):
    with monkeypatch.context() as starting:
        starting.setattr(server.service.batcher, "stage", Stage("compiling", 0.4))
        page.wait_for_selector("text=Warming up")
        page.wait_for_selector("text=compiling")
        assert page.evaluate("document.getElementById('overlay-fill').style.width") == "40%"
    page.wait_for_selector("#overlay.gone", state="attached")
    assert page.evaluate("__wm.problems") == []


@pytest.mark.parametrize("is_told", [False, True], ids=["by itself", "by its button"])
def test_a_page_that_finds_no_room_says_why_and_tries_again(browser, server, is_told):
    tickets = [server.create(), server.create()]
    page = browser.new_page()
    page.set_default_timeout(60_000)
    if is_told:  # and would never do so by itself
        page.add_init_script("const later = setTimeout; setTimeout = (what, ms) => (ms < 2000 ? later(what, ms) : 0)")
    try:
        page.goto(server.url)
        page.wait_for_selector("text=No room now")
        page.wait_for_selector("text=all 2 slots are taken")
        server.delete(tickets[0])
        if is_told:
            page.click("text=Try now")
        page.wait_for_function("window.__wm?.frames > 10")
    finally:
        page.close()
        for ticket in tickets:
            server.delete(ticket)


def test_keycaps_can_be_clicked(page):
    page.hover("[data-code=ArrowLeft]")
    page.mouse.down()
    page.wait_for_function("__wm.held.includes('ArrowLeft')")
    page.mouse.up()
    page.wait_for_function("__wm.held.length === 0")


def test_pause_reset_and_seed(page, server):
    page.click("#pause")
    page.wait_for_selector("text=The world waits.")
    where = f"{server.url}/v1/sessions/{page.evaluate('__wm.session')}"
    wait_until(lambda: server.http.get(where).json()["status"] == "paused")
    stopped = server.http.get(where).json()["frames"] - 1
    page.wait_for_function(f"__wm.frameId === {stopped}")
    page.wait_for_timeout(300)
    assert page.evaluate("__wm.frameId") == stopped
    page.fill("#seed", "42")
    page.press("#seed", "Enter")
    page.wait_for_function(f"__wm.seed === 42 && __wm.frameId > {stopped + 3}")
    assert page.evaluate("__wm.problems") == []
    page.evaluate("for (let seed = 0; seed < 12; seed++) __wm.player.reset(seed)")
    page.wait_for_selector("#notice.shown:text('a session restarts at most 4 times a second')")


# As a proxy ends a connection whose server is gone: with the code of a server that stops, and no word of the session.
CUT_OFF = """() => {
  const { socket } = __wm.player;
  const lose = socket.onclose;
  socket.onclose = null;
  socket.close(4000);
  lose({ code: 1012 });
}"""


def test_a_lost_connection_resumes_the_same_session_and_one_that_is_gone_is_told(page, server):
    for lose in ("__wm.loseConnection()", CUT_OFF):
        session, frame = page.evaluate("[__wm.session, __wm.frameId]")
        page.evaluate(lose)
        page.wait_for_function(f"__wm.state === 'playing' && __wm.frameId > {frame + 5}")
        assert page.evaluate("__wm.session") == session and page.text_content("#notice") == ""
    server.http.delete(f"{server.url}/v1/sessions/{session}")
    page.wait_for_selector("#notice.shown:text('Your world is gone: this is a new one.')")
    assert page.evaluate("[__wm.state, __wm.problems]") == ["playing", []]


def test_the_switch_plays_the_real_game(page):
    page.click("[data-source=real]")
    frame = page.evaluate("__wm.frameId")
    page.wait_for_function(f"__wm.frameId > {frame + 10}")
    assert page.text_content("#badge") == "real game"
    page.click("[data-source=dream]")
    page.wait_for_function(f"__wm.frameId > {frame + 20}")
    assert page.evaluate("__wm.problems") == []


def test_leaving_the_page_frees_its_slot(page, server):
    free = server.free_slots()
    place = server.service.lobby.find(page.evaluate("__wm.session"))
    page.click("#pause")
    page.wait_for_selector("text=The world waits.")
    page.evaluate("dispatchEvent(new PageTransitionEvent('pagehide', { persisted: true }))")
    wait_until(lambda: place.connection is None)
    assert place.ended is None and place.linger_s == 60, "it may be shown again"
    page.evaluate("document.getElementById('pause').click()")  # nobody hears it
    page.evaluate("dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true }))")
    page.wait_for_function("__wm.state === 'playing'")
    assert page.evaluate("__wm.session") == place.session.id and not place.session.is_paused
    page.goto("about:blank")
    for _ in range(100):
        if server.free_slots() == free + 1:
            return
        page.wait_for_timeout(50)
    assert server.free_slots() == free + 1


def test_a_phone_sees_everything_without_scrolling_sideways(open_page, server):
    phone = open_page(server, viewport={"width": 390, "height": 844}, has_touch=True)
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
    phone.tap("[data-code=ArrowRight]")
    phone.wait_for_function("__wm.latency.count >= 1")


def test_a_world_without_a_mouse_leaves_the_mouse_alone(page):
    page.click("#view")
    page.mouse.wheel(0, 100)
    page.wait_for_timeout(200)
    assert page.evaluate("[__wm.isCaptured, __wm.moved, __wm.held]") == [False, [0, 0], []]
    assert page.locator("#hint, #look").evaluate_all("shown => shown.map((one) => one.hidden)") == [True, True]
    assert page.evaluate("__wm.problems") == []

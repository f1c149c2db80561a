"""A real Chromium plays the served page."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ON_PATH = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = ON_PATH or playwright.chromium.executable_path
        assert Path(path).exists(), (
            "no Chromium: not on PATH, and playwright has none; `make chromium` (or `.venv/bin/playwright install "
            "--no-shell chromium`) brings one, -m 'not browser' leaves these tests out"
        )
        opened = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def page(browser, server) -> Iterator[Any]:
    opened = browser.new_page(viewport={"width": 1280, "height": 800})
    opened.set_default_timeout(60_000)
    opened.complaints = []
    opened.on("console", lambda said: opened.complaints.append(said.text) if said.type == "error" else None)
    opened.on("pageerror", lambda error: opened.complaints.append(str(error)))
    opened.goto(server.url)
    opened.wait_for_function("window.__wm?.frames > 10")
    yield opened
    opened.close()


RECORD = """
  window.acks = {};
  window.drawn = [];
  __wm.player.addEventListener("ack", ({ detail }) => { acks[detail.event_id] = detail.applied_at_frame; });
  __wm.player.addEventListener("frame", ({ detail }) => {
    const c = document.getElementById("view");
    drawn.push([detail.frame_id, c.getContext("2d").getImageData(0, 0, c.width, c.height).data.join()]);
  });
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


def test_held_keys_change_the_picture_and_nothing_else_does(page):
    page.evaluate(f"() => {{ {RECORD} }}")
    free, again, held = dream(page, ()), dream(page, ()), dream(page, ("ArrowRight", "ArrowUp"))
    common = sorted(free.keys() & again.keys() & held.keys())
    assert len(common) >= 3, "a busy machine may draw few of the frames"
    assert [free[frame] for frame in common] == [again[frame] for frame in common]
    assert all(free[frame] != held[frame] for frame in common)
    assert len({free[frame] for frame in common}) == len(common), "the world stands still"
    assert page.complaints == []


def test_the_page_plays_and_measures(page):
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
    assert page.complaints == []


def test_keycaps_can_be_clicked(page):
    page.hover("[data-code=ArrowLeft]")
    page.mouse.down()
    page.wait_for_function("__wm.held.includes('ArrowLeft')")
    page.mouse.up()
    page.wait_for_function("__wm.held.length === 0")
    assert page.complaints == []


def test_pause_reset_and_seed(page):
    page.click("#pause")
    page.wait_for_selector("text=The world waits.")
    stopped = page.evaluate("__wm.frameId")
    page.wait_for_timeout(300)
    assert page.evaluate("__wm.frameId") == stopped
    page.fill("#seed", "42")
    page.press("#seed", "Enter")
    page.wait_for_function(f"__wm.seed === 42 && __wm.frameId > {stopped + 3}")
    assert page.evaluate("__wm.problems") == []
    assert page.complaints == []


def test_a_lost_connection_resumes_the_same_session(page):
    session, frame = page.evaluate("[__wm.session, __wm.frameId]")
    page.evaluate("__wm.loseConnection()")
    page.wait_for_function(f"__wm.state === 'playing' && __wm.frameId > {frame + 5}")
    assert page.evaluate("__wm.session") == session
    assert page.complaints == []


def test_the_switch_plays_the_real_game(page):
    page.click("[data-source=real]")
    frame = page.evaluate("__wm.frameId")
    page.wait_for_function(f"__wm.frameId > {frame + 10}")
    assert page.text_content("#badge") == "real game"
    page.click("[data-source=dream]")
    page.wait_for_function(f"__wm.frameId > {frame + 20}")
    assert page.evaluate("__wm.problems") == []
    assert page.complaints == []


def test_leaving_the_page_frees_its_slot(page, server):
    free = server.free_slots()
    page.goto("about:blank")
    for _ in range(100):
        if server.free_slots() == free + 1:
            return
        page.wait_for_timeout(50)
    assert server.free_slots() == free + 1


def test_a_phone_sees_everything_without_scrolling_sideways(browser, server):
    phone = browser.new_page(viewport={"width": 390, "height": 844}, has_touch=True)
    phone.set_default_timeout(60_000)
    phone.goto(server.url)
    phone.wait_for_function("window.__wm?.frames > 5")
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
    phone.tap("[data-code=ArrowRight]")
    phone.wait_for_function("__wm.latency.count >= 1")
    phone.close()

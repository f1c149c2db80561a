"""A real Chromium plays a world with a mouse: looking, buttons, wheel, fingers; and starts from a picture."""

import io

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.browser


@pytest.fixture
def page(open_page, mouse_server):
    return open_page(mouse_server)


def capture(page) -> tuple[float, float, float]:
    """Clicks the picture, which captures the mouse; where it was clicked, and the picture's height."""
    box = page.locator("#view").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.click(x, y)
    page.wait_for_function("__wm.isCaptured")
    return x, y, box["height"]


def look(page, x: float, y: float, way: tuple[int, int], told: list[float]) -> None:
    """Moves the mouse from here by so many pixels, and waits until all of it is told, and then whether more is."""
    page.mouse.move(x + way[0], y + way[1], steps=5)
    page.wait_for_function(f"Math.hypot(__wm.moved[0] - {told[0]}, __wm.moved[1] - {told[1]}) < 1e-6")
    page.wait_for_timeout(200)


def total(told) -> list[float]:
    return np.sum([mouse for _, mouse in told], axis=0).tolist()


def wait_until_told(page, told, is_it) -> None:
    for _ in range(200):
        if told and is_it(told):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never told: {[row for row in told if row[0] or any(row[1])]}")


def test_what_the_captured_mouse_is_moved_reaches_the_world_once(page, told):
    x, y, height = capture(page)
    page.keyboard.down("KeyW")
    look(page, x, y, (60, -40), [60 / height, -40 / height])
    page.keyboard.up("KeyW")
    assert page.evaluate("__wm.moved") == pytest.approx([60 / height, -40 / height])
    wait_until_told(page, told, lambda told: total(told) == pytest.approx([60 / height, -40 / height], abs=1e-5))
    assert any(held == ["KeyW"] and any(mouse) for held, mouse in told), "keys are told with the movement"
    page.wait_for_timeout(300)
    assert total(told) == pytest.approx([60 / height, -40 / height], abs=1e-5)


def test_a_free_mouse_moves_nothing(page, told):
    x, y, _ = capture(page)
    page.evaluate("document.exitPointerLock()")
    page.wait_for_function("!__wm.isCaptured")
    page.mouse.move(x + 50, y + 50)
    page.wait_for_timeout(200)
    assert page.evaluate("__wm.moved") == [0, 0] and total(told) == [0, 0]
    assert page.locator("#hint").is_visible()


def test_speed_and_direction_are_the_players_and_are_remembered(page, mouse_server):
    page.fill("#speed", "2")
    page.check("#invert")
    page.reload()
    page.wait_for_function("window.__wm?.frames > 5")
    assert page.text_content("#speed-value") == "2.00×" and page.is_checked("#invert")
    x, y, height = capture(page)
    look(page, x, y, (30, 20), [60 / height, -40 / height])
    assert page.evaluate("__wm.moved") == pytest.approx([60 / height, -40 / height])


@pytest.mark.parametrize(("button", "code"), [("left", "Mouse0"), ("right", "Mouse2"), ("middle", "Mouse1")])
def test_a_button_is_a_key_while_the_mouse_is_captured(page, told, button, code):
    page.mouse.move(300, 200)
    page.mouse.down(button="right")
    assert page.evaluate("__wm.held") == []
    page.mouse.up(button="right")
    capture(page)
    assert page.evaluate("__wm.held") == [], "the click that captures is none of the world's"
    page.mouse.down(button=button)
    assert page.evaluate("__wm.held") == [code]
    wait_until_told(page, told, lambda told: told[-1][0] == [code])
    page.mouse.up(button=button)
    wait_until_told(page, told, lambda told: told[-1][0] == [])


def test_a_mouse_that_is_let_go_holds_no_button(page):
    capture(page)
    page.mouse.down()
    page.keyboard.down("KeyW")
    page.evaluate("document.exitPointerLock()")
    page.wait_for_function("__wm.held.join() === 'KeyW'")


def test_a_pause_gives_the_mouse_back(page):
    capture(page)
    page.keyboard.press("KeyP")
    page.wait_for_function("__wm.isPaused && !__wm.isCaptured")


def slots(told) -> list[str]:
    """The slots that were chosen, one after the other."""
    chosen = ["".join(code for code in held if code.startswith("Digit")) for held, _ in told]
    return [code for before, code in zip(["", *chosen], chosen, strict=False) if code and code != before]


# What the page sends of the hotbar, and when.
DIGITS = """() => {
  const send = __wm.player.send.bind(__wm.player);
  window.sent = [];
  __wm.player.send = (message) => {
    if (message.held) sent.push([performance.now(), message.held.filter((code) => code.startsWith("Digit"))]);
    send(message);
  };
}"""


def test_the_wheel_turns_through_the_hotbar_one_slot_a_frame(page, told):
    page.mouse.move(300, 200)
    page.mouse.wheel(0, 100)
    wait_until_told(page, told, lambda told: slots(told) == ["Digit2"])
    page.wait_for_function("__wm.held.length === 0")
    page.mouse.wheel(0, -100)
    wait_until_told(page, told, lambda told: slots(told) == ["Digit2", "Digit1"])
    page.wait_for_function("__wm.held.length === 0")
    page.mouse.wheel(0, -120)
    wait_until_told(page, told, lambda told: slots(told)[2:] == ["Digit9"])
    page.wait_for_function("__wm.held.length === 0")
    page.keyboard.press("Digit4")
    wait_until_told(page, told, lambda told: slots(told)[3:] == ["Digit4"])
    page.wait_for_function("__wm.held.length === 0")
    page.mouse.wheel(0, 30)
    page.mouse.wheel(0, 30)
    page.mouse.wheel(0, 30)
    wait_until_told(page, told, lambda told: slots(told)[3:] == ["Digit4", "Digit5"])
    page.wait_for_function("__wm.held.length === 0")
    page.evaluate(DIGITS)
    for _ in range(3):
        page.mouse.wheel(0, 100)
    wait_until_told(page, told, lambda told: any("Digit8" in held for held, _ in told))
    page.wait_for_function("__wm.held.length === 0")
    # By the page's clock: where the server is busy, two that come one after the other are of one frame all the same.
    sent = page.evaluate("sent")
    pressed = [at for at, digits in sent if digits]
    assert all(len(digits) <= 1 for _, digits in sent) and [digits for _, digits in sent][-2:] == [["Digit8"], []]
    assert np.diff(pressed).min(initial=np.inf) > 2 * 1000 / 30, "two slots in one frame say nothing"


def test_the_worlds_own_keys_win_over_shortcuts_and_modifiers(page, told):
    page.evaluate("""() => {
      const send = __wm.player.send.bind(__wm.player);
      window.sent = [];
      __wm.player.send = (message) => { sent.push(message.type); send(message); };
    }""")
    page.keyboard.down("ControlLeft")
    page.keyboard.down("KeyR")
    page.keyboard.down("KeyD")
    wait_until_told(page, told, lambda told: told[-1][0] == ["KeyD", "ControlLeft", "KeyR"])
    for key in ("KeyD", "KeyR", "ControlLeft"):
        page.keyboard.up(key)
    assert "control" not in page.evaluate("sent")
    assert "(R)" not in page.get_attribute("#reset", "title") and "(P)" in page.get_attribute("#pause", "title")


def test_ctrl_and_w_together_do_not_close_the_page_unasked(page):
    asked = []
    page.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.accept()))
    capture(page)
    page.keyboard.down("ControlLeft")
    page.reload()
    assert asked == ["beforeunload"]
    page.keyboard.up("ControlLeft")
    page.reload()
    assert asked == ["beforeunload"]


def test_every_key_of_the_world_has_a_cap_with_a_name(page, mouse_server):
    codes = page.locator(".key").evaluate_all("caps => caps.map((cap) => cap.dataset.code)")
    assert sorted(codes) == sorted(mouse_server.world.config.controls.codes)
    assert page.locator(".hotbar .key").count() == 9 and page.locator(".mouse .key").count() == 3
    assert page.get_by_role("button", name="hotbar 7 (7)").count() == 1
    assert page.get_by_role("button", name="attack (left mouse button)").count() == 1


def test_a_finger_that_drags_the_picture_looks_around(open_page, mouse_server, told):
    phone = open_page(mouse_server, viewport={"width": 390, "height": 844}, has_touch=True)
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
    box = phone.locator("#view").bounding_box()
    x, y, height = box["x"] + 40, box["y"] + 40, box["height"]
    finger = phone.context.new_cdp_session(phone)
    for kind, points in (
        ("touchStart", [{"x": x, "y": y}]),
        ("touchMove", [{"x": x + 60, "y": y + 10}]),
        ("touchMove", [{"x": x + 90, "y": y + 30}]),
        ("touchEnd", []),
    ):
        finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    wait_until_told(phone, told, lambda told: total(told) == pytest.approx([90 / height, 30 / height], abs=1e-5))
    assert phone.evaluate("__wm.isCaptured") is False
    phone.tap("[data-code=Mouse0]")
    wait_until_told(phone, told, lambda told: any(held == ["Mouse0"] for held, _ in told))


def picture() -> bytes:
    """Twice as wide as high: a red quarter, a green and a blue middle, a red quarter."""
    columns = np.repeat(np.asarray([[250, 0, 0], [0, 250, 0], [0, 0, 250], [250, 0, 0]], np.uint8), 32, axis=0)
    buffer = io.BytesIO()
    Image.fromarray(np.broadcast_to(columns, (64, 128, 3))).save(buffer, "png")
    return buffer.getvalue()


CARRY = """([bytes, type, name]) => {
  const carried = new DataTransfer();
  carried.items.add(new File([new Uint8Array(bytes)], name, { type }));
  return carried;
}"""


def give(page, way: str, data: bytes, kind: str = "image/png", name: str = "sky.png") -> None:
    """Hands a file to the page, as a person would."""
    if way == "choose":
        with page.expect_file_chooser() as chooser:
            page.click("#choose")
        chooser.value.set_files({"name": name, "mimeType": kind, "buffer": data})
        return
    carried = page.evaluate_handle(CARRY, [list(data), kind, name])
    if way == "paste":
        page.evaluate("(data) => dispatchEvent(new ClipboardEvent('paste', { clipboardData: data }))", carried)
        return
    page.dispatch_event("body", "dragover", {"dataTransfer": carried})
    assert page.locator("#drop.shown").count() == 1
    page.dispatch_event("body", "drop", {"dataTransfer": carried})
    assert page.locator("#drop.shown").count() == 0


@pytest.mark.parametrize("way", ["drop", "paste", "choose"])
def test_a_picture_starts_a_session_from_its_middle(page, mouse_server, way):
    free, first = mouse_server.free_slots(), page.evaluate("__wm.session")
    give(page, way, picture())
    page.wait_for_function(f"__wm.session && __wm.session !== '{first}' && __wm.state === 'playing'")
    image = mouse_server.service.lobby.find(page.evaluate("__wm.session")).session.opening.image
    assert image is not None and image.shape == (32, 32, 3)
    assert np.abs(image[:, :14].astype(int) - [0, 250, 0]).max() < 8
    assert np.abs(image[:, 18:].astype(int) - [0, 0, 250]).max() < 8
    assert mouse_server.free_slots() == free, "the session before gave its slot back"
    second = page.evaluate("__wm.session")
    page.click("#forget")
    page.wait_for_function(f"__wm.session && __wm.session !== '{second}' && __wm.state === 'playing'")
    assert mouse_server.service.lobby.find(page.evaluate("__wm.session")).session.opening.image is None
    assert page.locator("#own").is_hidden()


def test_of_two_pictures_at_once_the_last_one_counts_and_no_slot_is_lost(page, mouse_server):
    free, first = mouse_server.free_slots(), page.evaluate("__wm.session")
    buffer = io.BytesIO()
    Image.fromarray(np.full((32, 32, 3), 99, np.uint8)).save(buffer, "png")
    carried = [
        page.evaluate_handle(CARRY, [list(data), "image/png", "a.png"]) for data in (picture(), buffer.getvalue())
    ]
    page.evaluate("""(both) => {
      for (const dataTransfer of both) document.body.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true }));
    }""", carried)  # fmt: skip
    page.wait_for_function(f"__wm.session && __wm.session !== '{first}' && __wm.state === 'playing'")
    page.wait_for_timeout(500)
    image = mouse_server.service.lobby.find(page.evaluate("__wm.session")).session.opening.image
    assert image is not None and np.all(image == 99)
    assert mouse_server.free_slots() == free


def test_a_file_that_is_no_picture_is_named_and_play_goes_on(page):
    session, frame = page.evaluate("[__wm.session, __wm.frameId]")
    give(page, "drop", b"once upon a time", "text/plain", "tale.txt")
    page.wait_for_selector("#notice.shown >> text=tale.txt is no picture")
    page.wait_for_function(f"__wm.frameId > {frame + 5}")
    assert page.evaluate("__wm.session") == session


def test_a_world_that_takes_no_picture_does_not_offer_to(page, mouse_server, monkeypatch):
    monkeypatch.setattr(mouse_server.service, "takes_image", False)
    page.reload()
    page.wait_for_function("window.__wm?.frames > 5")
    session = page.evaluate("__wm.session")
    assert page.locator("#choose").is_hidden()
    carried = page.evaluate_handle(CARRY, [list(picture()), "image/png", "sky.png"])
    for kind in ("dragover", "drop"):
        page.dispatch_event("body", kind, {"dataTransfer": carried})
        assert page.locator("#drop.shown").count() == 0
    page.wait_for_timeout(300)
    assert page.evaluate("__wm.session") == session

"""A real Chromium is played by thumbs, by a pad, and by keys that the player chose."""

import pytest

from tests.serving.test_page_mouse import wait_until_told

pytestmark = pytest.mark.browser

PHONE = dict(viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)


def middle(page, selector: str) -> tuple[float, float]:
    box = page.locator(selector).bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_two_thumbs_play(open_page, mouse_server, told):
    phone = open_page(mouse_server, **PHONE)
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
    fingers = phone.context.new_cdp_session(phone)
    (x, y), (u, v) = middle(phone, ".stick"), middle(phone, ".buttons [data-code=Space]")
    assert v < 844, "the buttons are on the first screen"

    def touch(kind: str, *points: tuple[float, float]) -> None:
        touches = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(points)]
        fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})

    touch("touchStart", (x, y))
    touch("touchMove", (x + 4, y - 60))
    wait_until_told(phone, told, lambda told: told[-1][0] == ["KeyW"])
    touch("touchStart", (x + 4, y - 60), (u, v))
    wait_until_told(phone, told, lambda told: told[-1][0] == ["KeyW", "Space"])
    touch("touchMove", (x + 50, y - 50), (u, v))
    wait_until_told(phone, told, lambda told: told[-1][0] == ["KeyW", "KeyD", "Space"])
    touch("touchEnd")
    wait_until_told(phone, told, lambda told: told[-1][0] == [])
    codes = set(phone.locator("#keys [data-code]").evaluate_all("caps => caps.map((cap) => cap.dataset.code)"))
    assert codes == set(mouse_server.world.config.controls.codes), "every key can be reached"


def test_a_key_that_was_chosen_counts_after_a_reload_and_clashes_are_shown(open_page, mouse_server, told):
    page = open_page(mouse_server)
    page.focus("#controls-button")
    page.keyboard.press("Enter")
    page.focus("[data-action=KeyW]")
    page.keyboard.press("Enter")
    page.keyboard.press("KeyI")
    page.wait_for_selector("text=I is forward now")
    assert page.get_attribute("[data-action=KeyW]", "aria-label").startswith("forward: key I")
    page.click("[data-action=Space]")
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 1, "Esc only leaves the key as it is"
    page.click("[data-action=KeyQ]")
    page.keyboard.press("KeyE")
    page.wait_for_selector("text=E is drop now, and inventory too.")
    assert page.locator(".binding .clash").count() == 2
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0 and page.evaluate("__wm.held") == []
    page.reload()
    page.wait_for_function("window.__wm?.frames > 5")
    page.keyboard.down("KeyI")
    page.keyboard.down("KeyE")
    wait_until_told(page, told, lambda told: told[-1][0] == ["KeyW", "KeyQ", "KeyE"])
    page.keyboard.up("KeyE")
    page.keyboard.up("KeyI")
    page.keyboard.down("KeyW")
    page.wait_for_timeout(200)
    assert page.evaluate("__wm.held") == []
    page.keyboard.up("KeyW")
    page.click("#controls-button")
    page.click(".defaults")
    page.click("dialog .primary")
    page.keyboard.down("KeyW")
    wait_until_told(page, told, lambda told: told[-1][0] == ["KeyW"])
    page.keyboard.up("KeyW")
    assert page.locator("#keys [data-code=KeyW] b").text_content() == "W"


PAD = """
  window.pads = [];
  navigator.getGamepads = () => pads;
  window.plug = () => {
    const buttons = Array.from({ length: 17 }, () => ({ pressed: false, value: 0 }));
    pads = [{ connected: true, mapping: "standard", buttons, axes: [0, 0, 0, 0] }];
    dispatchEvent(new Event("gamepadconnected"));
  };
"""


def test_a_pad_plays_and_its_buttons_can_be_chosen(open_page, mouse_server, told):
    page = open_page(mouse_server, script=PAD)
    assert page.locator("#pads").is_hidden()
    page.evaluate("plug()")
    assert page.locator("#pads").is_visible()
    page.evaluate("pads[0].axes[1] = -0.9; pads[0].buttons[0].pressed = true")
    wait_until_told(page, told, lambda told: told[-1][0] == ["KeyW", "Space"])
    page.evaluate("pads[0].axes[1] = -0.2; pads[0].buttons[0].pressed = false")
    wait_until_told(page, told, lambda told: told[-1][0] == [])
    assert page.evaluate("__wm.moved") == [0, 0]
    page.evaluate("pads[0].axes[2] = 0.15")
    page.wait_for_timeout(150)
    assert page.evaluate("__wm.moved") == [0, 0], "a stick at rest is never quite in the middle"
    page.evaluate("pads[0].axes[2] = 1")
    page.wait_for_function("__wm.moved[0] > 0.1")
    page.evaluate("pads[0].axes[2] = 0")
    assert page.evaluate("__wm.moved[1]") == 0
    page.click("#controls-button")
    page.click("[data-action=KeyE]")
    page.evaluate("pads[0].buttons[0].pressed = true")
    page.wait_for_selector("text=A is inventory now, and jump too.")
    page.evaluate("pads[0].buttons[0].pressed = false")
    page.click("dialog .primary")
    page.evaluate("pads[0].buttons[0].pressed = true")
    wait_until_told(page, told, lambda told: told[-1][0] == ["Space", "KeyE"])
    page.evaluate("pads = []")
    wait_until_told(page, told, lambda told: told[-1][0] == [])
    page.wait_for_function("document.getElementById('pads').hidden")


def test_a_button_reached_by_tab_takes_the_space_bar_and_one_that_was_clicked_does_not(open_page, mouse_server, told):
    page = open_page(mouse_server)
    page.click("#reset")
    page.keyboard.down("Space")
    wait_until_told(page, told, lambda told: told[-1][0] == ["Space"])
    page.keyboard.up("Space")
    wait_until_told(page, told, lambda told: told[-1][0] == [])
    before = len(told)
    page.keyboard.press("Tab")
    for _ in range(20):
        if page.evaluate("document.activeElement.id") == "pause":
            break
        page.keyboard.press("Shift+Tab")
    page.keyboard.press("Space")
    page.wait_for_function("__wm.isPaused")
    assert "Space" not in page.evaluate("__wm.held")  # Shift, with which Tab goes back, may be: a tap lasts a frame
    assert all("Space" not in held for held, _ in told[before:])


def test_whatever_takes_the_focus_has_a_name(open_page, mouse_server):
    """As a screen reader is told of the page by Chromium."""
    page = open_page(mouse_server)
    reader = page.context.new_cdp_session(page)

    def focusable() -> list[tuple[str, str]]:
        nodes = [node for node in reader.send("Accessibility.getFullAXTree")["nodes"] if not node["ignored"]]
        found = {
            node["nodeId"]: (node["role"]["value"], node["name"]["value"].strip())
            for node in nodes
            for told in node.get("properties", [])
            if told["name"] == "focusable" and told["value"]["value"]
        }
        return list(found.values())

    shown = focusable()
    page.click("#controls-button")
    asked = focusable()
    assert {role for role, _ in shown} >= {"button", "textbox", "slider", "checkbox"} and len(asked) > 25
    assert [role for role, name in shown + asked if not name] == []

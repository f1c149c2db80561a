"""A published world is served as any other: the small random Oasis over real sockets, and on the page in a real Chromium."""

import base64
import io
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

import wm_jax as wm
from wm_jax.serving import engine

pytestmark = pytest.mark.oasis
FRAMES = 5


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)


def as_png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def dream(oasis_server, actions: list[Any], **init: Any) -> np.ndarray:
    """The frames of a session of its own, one under each action."""
    ticket = oasis_server.create(mode="stepped", media={"codec": "raw"}, init=init)
    with oasis_server.connect(ticket) as socket:
        talk = oasis_server.talk(socket)
        talk.send("step", step_id=1, n=len(actions), actions=actions)
        pixels: list[np.ndarray] = []
        while len(pixels) < len(actions):
            for header, payload in talk.wait_for_frames(1):
                pixels.extend(np.frombuffer(payload, np.uint8).reshape(header["n"], 24, 32, 3))
    oasis_server.delete(ticket)
    return np.stack(pixels)


def rolled(oasis_server, prompt: wm.Prompt, controls: wm.Controls, seed: int) -> np.ndarray:
    world, params = oasis_server.world, oasis_server.params
    state = wm.start(world, params, prompt, jax.random.key(seed))
    return np.asarray(wm.rollout(world, params, state, controls)[1])[0]


def controls_of(oasis_server, held: tuple[str, ...], mouse: tuple[float, float]) -> wm.Controls:
    codes = oasis_server.world.config.controls.codes
    keys = np.asarray([code in held for code in codes])
    return wm.Controls(np.tile(keys, (1, FRAMES, 1)), np.tile(np.asarray(mouse, np.float32), (1, FRAMES, 1)))


def close(frames: np.ndarray, others: np.ndarray) -> bool:
    """Alike but for a pixel that rounds differently: a scan orders its sums differently."""
    return bool(np.abs(frames.astype(int) - others).max() <= 1)


def test_a_session_dreams_what_the_rollout_of_its_keys_and_its_mouse_dreams(oasis_server):
    actions = [{"held": ["KeyW", "Mouse0"], "mouse": [0.1, -0.05]}] * FRAMES
    frames = dream(oasis_server, actions, seed=3)
    wanted = rolled(oasis_server, wm.Prompt(), controls_of(oasis_server, ("KeyW", "Mouse0"), (0.1, -0.05)), seed=3)
    assert close(frames, wanted)
    still = [{"held": ["KeyW", "Mouse0"]}] * FRAMES
    assert not close(dream(oasis_server, still, seed=3), wanted), "the mouse is not heard"


def test_a_session_goes_on_from_the_image_it_is_given(oasis_server):
    first = picture(1)
    frames = dream(oasis_server, [{"held": []}] * FRAMES, seed=3, image=base64.b64encode(as_png(first)).decode())
    wanted = rolled(oasis_server, wm.Prompt(first[None, None]), controls_of(oasis_server, (), (0, 0)), seed=3)
    assert close(frames, wanted)
    assert not close(dream(oasis_server, [{"held": []}] * FRAMES, seed=3), wanted), "the image is not seen"


def test_what_the_world_listens_to_is_told(oasis_server):
    (model,) = oasis_server.http.get(f"{oasis_server.url}/v1/models").json()["models"]
    assert model["mouse"] is True and model["image"] is True and model["prompts"] == 0
    labels = {key["code"]: key["label"] for key in model["keymap"]}
    assert labels["KeyW"] == "forward" and labels["Mouse0"] == "attack" and labels["Digit9"] == "hotbar 9"


@pytest.mark.browser
def test_the_page_plays_it_and_takes_a_dropped_picture(open_page, oasis_server):
    page = open_page(oasis_server)
    assert page.locator(".key").count() == 23
    page.keyboard.down("KeyW")
    assert page.evaluate("__wm.held") == ["KeyW"]
    page.keyboard.up("KeyW")
    before, shown = page.evaluate("[__wm.session, __wm.frames]")
    page.set_input_files("input[type=file]", {"name": "a.png", "mimeType": "image/png", "buffer": as_png(picture(2))})
    page.wait_for_function(f"__wm.session && __wm.session !== {before!r} && __wm.frames > {shown + 5}")
    session = oasis_server.service.lobby.find(page.evaluate("__wm.session")).session
    assert np.array_equal(session.opening.image, picture(2)) and page.evaluate("__wm.problems") == []


def test_a_new_seed_keeps_the_image_and_another_size_is_refused(oasis_server):
    image = base64.b64encode(as_png(picture(1))).decode()
    ticket = oasis_server.create(mode="stepped", media={"codec": "raw"}, init={"seed": 3, "image": image})
    with oasis_server.connect(ticket) as socket:
        talk = oasis_server.talk(socket)
        talk.send("control", op="reset", seed=4)
        talk.send("step", step_id=1, n=FRAMES, actions=[{"held": []}])
        payloads = [payload for _, payload in talk.wait_for_frames(FRAMES)]
    frames = np.stack([np.frombuffer(payload, np.uint8).reshape(24, 32, 3) for payload in payloads])
    prompt = wm.Prompt(picture(1)[None, None])
    assert close(frames, rolled(oasis_server, prompt, controls_of(oasis_server, (), (0, 0)), seed=4))
    small = base64.b64encode(as_png(picture(1)[:12])).decode()
    answer = oasis_server.http.post(f"{oasis_server.url}/v1/sessions", json={"init": {"image": small}})
    assert answer.status_code == 422 or answer.json()["code"] == "wrong_image", answer.text


def test_a_real_game_is_not_promised_where_there_is_none(oasis_server):
    answer = oasis_server.http.post(f"{oasis_server.url}/v1/sessions", json={"source": "real"})
    assert "has no real game" in answer.text


@pytest.mark.parametrize("platforms", [(), ("cpu",)], ids=["drawn", "given"])
@pytest.mark.parametrize("image", [None, picture(1)], ids=["noise", "image"])
def test_a_slot_dreams_the_same_whoever_sat_there_before(
    small_oasis: tuple[wm.Playable[Any], Any], monkeypatch, platforms, image
):
    monkeypatch.setattr(engine, "NEEDS_GIVEN_NOISE", platforms)
    world, params = small_oasis
    served = engine.Engine(world, params, engine.Scenes(wm.Prompt()), 2)
    served.compile(lambda name, share: None)
    held = wm.Controls(np.ones((2, 23), bool), np.full((2, 2), 0.1, np.float32))

    def play(slot: int) -> np.ndarray:
        served.seat(slot, engine.Opening(7, image=image))
        active = np.arange(2) == slot
        return np.stack([np.asarray(served.step(held, active))[slot] for _ in range(FRAMES)])

    first = play(0)
    served.seat(1, engine.Opening(8, image=picture(5)))
    assert np.array_equal(play(0), first) and close(play(1), first)

"""The HTTP half of wm.v1, over a real server, and what it refuses."""

import asyncio
import base64
import io
import struct
import zlib
from importlib.metadata import version

import httpx
import jax
import numpy as np
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

import wm_jax as wm
from wm_jax.serving.app import make_app
from wm_jax.serving.bodies import CreateSession, SessionInit
from wm_jax.serving.config import ServeConfig
from wm_jax.serving.protocol import Refusal
from wm_jax.serving.routes import PAGE
from wm_jax.serving.service import Service


def png(width: int, height: int) -> str:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(buffer, "png")
    return base64.b64encode(buffer.getvalue()).decode()


def boastful_png(side: int) -> str:
    """A PNG of a few bytes whose header claims a huge square."""
    data = bytearray(base64.b64decode(png(1, 1)))
    data[16:24] = struct.pack(">II", side, side)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return base64.b64encode(data).decode()


def test_health_readiness_and_models_tell_the_world(server):
    assert server.http.get(f"{server.url}/healthz").json()["status"] == "ok"
    ready = server.http.get(f"{server.url}/readyz")
    assert ready.status_code == 200 and ready.json()["ready"] is True
    (model,) = server.http.get(f"{server.url}/v1/models").json()["models"]
    assert (model["id"], model["width"], model["height"], model["fps"]) == ("tiny", 32, 32, 30.0)
    assert [key["code"] for key in model["keymap"]] == ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"]
    assert model["action_space"]["properties"]["raw"]["minItems"] == 4
    assert server.http.get(f"{server.url}/v1/models/tiny").json() == model
    assert "/v1/sessions" in server.http.get(f"{server.url}/openapi.json").json()["paths"]


def test_prometheus_reads_what_the_server_measures(server, even_pace, talk):
    talk.wait_for_frames(5)
    talk.send("action", held=["ArrowUp"])
    talk.wait_for_frames(5)
    answer = server.http.get(f"{server.url}/metrics")
    found = {metric.name: metric for metric in text_string_to_metric_families(answer.text)}
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    value = {name: metric.samples[0].value for name, metric in found.items() if metric.type != "histogram"}
    assert value["wm_slots_free"] == 1 and value["wm_fps"] == server.world.config.fps and value["wm_recompile"] == 0
    assert {sample.labels["state"]: sample.value for sample in found["wm_sessions"].samples} == {"running": 1}
    assert 0 < value["wm_batch_occupancy"] <= 1 and value["wm_frames"] >= value["wm_steps"] >= 10
    for name in ("wm_step_seconds", "wm_ttff_seconds", "wm_action_to_frame_seconds"):
        assert next(sample.value for sample in found[name].samples if sample.name == f"{name}_count") >= 1


def test_the_version_is_told(server):
    told = server.http.get(f"{server.url}/v1/version").json()
    assert told == {"wm_jax": version("wm_jax"), "jax": jax.__version__, "protocol": {"major": 1, "minor": 0}}


def test_an_unknown_model_is_named_beside_the_known_one(server):
    answer = server.http.get(f"{server.url}/v1/models/mars")
    assert answer.status_code == 404
    assert answer.json()["code"] == "unknown_model" and "'mars'" in answer.json()["message"]
    assert "'tiny'" in answer.json()["message"]


def test_a_session_lives_from_post_to_delete(server):
    ticket = server.create(init={"seed": 3})
    assert ticket["ws_url"].endswith(f"/v1/sessions/{ticket['session_id']}/ws")
    url = f"{server.url}/v1/sessions/{ticket['session_id']}"
    assert server.http.get(url).json()["status"] == "ready"
    assert server.http.delete(url).json()["status"] == "ended"
    gone = server.http.get(url)
    assert gone.status_code == 404 and gone.json()["code"] == "unknown_session"


def test_a_full_server_says_when_to_come_again(server):
    tickets = [server.create(), server.create()]
    answer = server.http.post(f"{server.url}/v1/sessions", json={})
    assert answer.status_code == 503
    assert answer.json()["code"] == "full" and "2 slots" in answer.json()["message"]
    assert int(answer.headers["Retry-After"]) >= 1
    server.delete(tickets[0])
    server.create()


@pytest.mark.parametrize(
    ("body", "status", "code", "says"),
    [
        ({"model": "mars"}, 404, "unknown_model", "tiny"),
        ({"mode": "dance"}, 422, "bad_message", "mode"),
        ({"init": {"seed": -1}}, 422, "bad_message", "seed"),
        ({"init": {"prompt": 99}}, 422, "unsupported", "ships 3"),
        ({"init": {"image": png(16, 8)}}, 422, "wrong_image", "16x8 pixels, this world dreams 32x32"),
        ({"init": {"image": boastful_png(12_000)}}, 422, "wrong_image", "12000x12000 pixels, this world dreams 32x32"),
        ({"init": {"image": boastful_png(20_000)}}, 422, "wrong_image", "20000x20000 pixels, this world dreams 32x32"),
        ({"init": {"image": "!!"}}, 422, "wrong_image", ""),
        ({"init": {"snapshot": "x"}}, 422, "unsupported", "snapshot"),
        ({"media": {"codec": "av9"}}, 422, "bad_message", "codec"),
    ],
)
def test_a_wrong_request_is_refused_by_name_and_takes_no_slot(server, body, status, code, says):
    free = server.free_slots()
    answer = server.http.post(f"{server.url}/v1/sessions", json=body)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert says in answer.json()["message"]
    assert server.free_slots() == free


def test_an_image_of_the_right_size_starts_a_session(server):
    server.create(init={"image": png(32, 32)})


class AnyImage(wm.World):
    takes_image = True


@pytest.mark.parametrize(("kind", "scenes", "takes"), [(AnyImage, 0, True), (wm.World, 3, True), (wm.World, 0, False)])
def test_a_world_takes_an_image_that_says_so_or_ships_first_frames(kind, scenes, takes):
    model = kind(wm.tiny_world(0)[0].config)
    prompts = wm.Prompt(np.zeros((scenes, 2, 32, 32, 3), np.uint8)) if scenes else wm.Prompt()
    service = Service(ServeConfig(), model, {}, prompts)
    assert service.info().image is takes
    body = CreateSession(init=SessionInit(image=png(32, 32)))
    if takes:
        assert asyncio.run(service.create(body)).session.opening.image is not None
    else:
        with pytest.raises(Refusal, match="takes no image"):
            asyncio.run(service.create(body))


def test_a_foreign_page_may_not_open_sessions(server):
    answer = server.http.post(f"{server.url}/v1/sessions", json={}, headers={"Origin": "https://evil.example"})
    assert answer.status_code == 403 and answer.json()["code"] == "forbidden_origin"
    own = server.http.post(f"{server.url}/v1/sessions", json={}, headers={"Origin": server.url})
    assert own.status_code == 201
    server.delete(own.json())


def test_a_page_of_an_invited_site_may_ask_and_read():
    friend, stranger = "https://friend.example", "https://evil.example"
    config = ServeConfig(allow_origins=(friend,), auth="sesame")
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization, content-type"}

    def send(method: str, origin: str, **headers: str) -> httpx.Response:
        body = {"json": {}} if method == "POST" else {}
        return asyncio.run(ask(config, method, "/v1/sessions", headers={"Origin": origin, **headers}, **body))

    assert send("OPTIONS", friend, **asks).headers["access-control-allow-origin"] == friend
    assert send("POST", friend, Authorization="Bearer sesame").headers["access-control-allow-origin"] == friend
    refused = send("POST", friend)
    assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == friend
    for answer in (send("OPTIONS", stranger, **asks), send("POST", stranger, Authorization="Bearer sesame")):
        assert answer.status_code >= 400 and "access-control-allow-origin" not in answer.headers


def test_a_body_that_is_too_long_or_no_json_is_refused(server):
    long = server.http.post(f"{server.url}/v1/sessions", content=b"x" * (2**20 + 1))
    assert long.status_code == 413 and long.json()["code"] == "too_large"
    broken = server.http.post(f"{server.url}/v1/sessions", content=b"{", headers={"Content-Type": "application/json"})
    assert broken.status_code == 422 and broken.json()["code"] == "bad_message"


@pytest.mark.parametrize("body", [b"[" * 60_000, b'{"init": {"seed": ' + b"9" * 5000 + b"}}", b"\xff\xfe"])
def test_a_body_that_python_cannot_read_is_refused_like_any_other(server, body):
    answer = server.http.post(f"{server.url}/v1/sessions", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422)
    assert (answer.json()["type"], answer.json()["code"]) == ("error", "bad_message")
    assert answer.json()["message"]


def test_an_unknown_path_is_refused_in_the_words_of_the_protocol(server):
    answer = server.http.get(f"{server.url}/v1/nothing")
    assert answer.status_code == 404
    assert answer.json()["type"] == "error" and "GET /v1/nothing" in answer.json()["message"]


async def ask(config: ServeConfig, method: str, path: str, **options) -> httpx.Response:
    """One request to an app that has not begun to compile."""
    app = make_app(config, *wm.tiny_world(0), wm.Prompt())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8000") as client:
        return await client.request(method, path, **options)


def test_a_server_with_a_secret_wants_it():
    import asyncio

    def post(**headers: str) -> httpx.Response:
        config = ServeConfig(auth="sesame")
        return asyncio.run(ask(config, "POST", "/v1/sessions", json={}, headers=headers))

    assert post().status_code == 401
    assert post(Authorization="Bearer wrong").json()["code"] == "unauthorized"
    assert post(Authorization="Bearer sesame").status_code == 201


def test_before_it_is_compiled_the_server_is_not_ready_but_seats_players():
    import asyncio

    ready = asyncio.run(ask(ServeConfig(), "GET", "/readyz"))
    assert ready.status_code == 503 and ready.json()["ready"] is False
    assert asyncio.run(ask(ServeConfig(), "POST", "/v1/sessions", json={})).json()["status"] == "starting"


def test_a_server_that_is_about_to_stop_takes_nobody_and_one_whose_device_hangs_says_so(server, monkeypatch):
    def readiness() -> tuple[int, str]:
        answer = server.http.get(f"{server.url}/readyz")
        return answer.status_code, answer.json()["status"]

    assert readiness() == (200, "ready")
    with monkeypatch.context() as stopping:
        stopping.setattr(server.service.lobby, "is_draining", True)
        assert readiness() == (503, "draining")
        refused = server.http.post(f"{server.url}/v1/sessions", json={})
        assert (refused.status_code, refused.json()["code"]) == (503, "draining") and "Retry-After" in refused.headers
    monkeypatch.setattr(type(server.service.batcher), "is_stuck", True)
    assert readiness() == (503, "failed")


def test_the_page_and_all_its_files_are_served(server):
    index = server.http.get(server.url)
    assert index.status_code == 200 and "frame-ancestors 'none'" in index.headers["Content-Security-Policy"]
    for path in PAGE.iterdir():
        assert server.http.get(f"{server.url}/page/{path.name}").status_code == 200, path.name

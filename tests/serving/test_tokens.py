"""Ephemeral tokens: what they allow, who may use them, and every way in which a wrong one is refused."""

import asyncio
import base64
import dataclasses
import json
import time

import jwt
import pytest

from tests.serving.conftest import Server, closing_code
from wm_jax.client import connect, open_session
from wm_jax.serving.bodies import CreateToken
from wm_jax.serving.protocol import ErrorCode, Refusal
from wm_jax.serving.tokens import Tokens

SECRET = "open sesame"
PAGE = "https://play.example"


@pytest.fixture(scope="module")
def tokens() -> Tokens:
    return Tokens(SECRET)


@pytest.fixture
def guarded(server: Server, tokens: Tokens, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The running server, from now on with a secret."""
    monkeypatch.setattr(server.service, "config", dataclasses.replace(server.service.config, auth=SECRET))
    monkeypatch.setattr(server.service, "tokens", tokens)
    monkeypatch.setattr(server.http, "headers", {**server.http.headers, "Authorization": f"Bearer {SECRET}"})
    return server


def token_for(server: Server, **body) -> str:
    answer = server.http.post(f"{server.url}/v1/tokens", json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()["token"]


def open_with(server: Server, token: str, body: dict | None = None, **headers: str):
    shown = {"Authorization": f"Bearer {token}", **headers}
    return server.http.post(f"{server.url}/v1/sessions", json=body or {}, headers=shown)


def test_a_token_opens_its_session_and_no_other_door(guarded):
    token = token_for(guarded, max_sessions=1)
    shown = {"Authorization": f"Bearer {token}"}
    for path in ("/v1/tokens", "/metrics"):
        answer = guarded.http.request("GET" if path == "/metrics" else "POST", guarded.url + path, headers=shown)
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized"), path
    others = guarded.create()
    mine = open_with(guarded, token).json()
    with guarded.connect(mine) as socket:
        guarded.talk(socket).wait_for_frames(1)
    url = f"{guarded.url}/v1/sessions"
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/fork"), ("POST", "/spectators")):
        refused = guarded.http.request(method, f"{url}/{others['session_id']}{path}", headers=shown)
        assert (refused.status_code, refused.json()["code"]) == (401, "unauthorized"), path
    assert guarded.http.get(f"{url}/{mine['session_id']}", headers=shown).json()["frames"] > 0
    assert guarded.http.delete(f"{url}/{mine['session_id']}", headers=shown).json()["status"] == "ended"


def test_a_token_opens_so_many_sessions_at_once(guarded):
    token = token_for(guarded)
    first = open_with(guarded, token)
    second = open_with(guarded, token)
    assert (second.status_code, second.json()["code"]) == (429, "too_many_sessions")
    assert int(second.headers["Retry-After"]) >= 1
    fork = guarded.http.post(
        f"{guarded.url}/v1/sessions/{first.json()['session_id']}/fork", headers={"Authorization": f"Bearer {token}"}
    )
    assert fork.json()["code"] == "too_many_sessions"
    assert open_with(guarded, token_for(guarded)).status_code == 201, "another token is counted by itself"
    guarded.delete(first.json())
    assert open_with(guarded, token).status_code == 201


def test_a_tokens_session_ends_when_its_time_is_up(guarded):
    before = time.time()
    ticket = open_with(guarded, token_for(guarded, max_session_s=60)).json()
    place = guarded.service.lobby.find(ticket["session_id"])
    assert before + 60 <= place.ends_at <= time.time() + 60
    with guarded.connect(ticket) as socket:
        guarded.talk(socket).wait_for_frames(1)
        place.ends_at = time.time()
        code, messages = closing_code(socket)
    assert code == 1000
    assert (messages[-1]["type"], messages[-1]["reason"]) == ("session.ended", "time is up")


def test_a_token_bound_to_a_page_works_from_there_alone(guarded, monkeypatch):
    token = token_for(guarded, origins=[guarded.url])
    refused = open_with(guarded, token)
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden_origin")
    assert guarded.url in refused.json()["message"] and "no page" in refused.json()["message"]
    ticket = open_with(guarded, token, Origin=guarded.url).json()
    with guarded.connect(ticket) as socket:
        assert closing_code(socket)[0] == 4403
    with guarded.connect(ticket, additional_headers={"Origin": guarded.url}) as socket:
        guarded.talk(socket).wait_for_frames(1)


def test_a_token_for_another_world_opens_none_here(guarded):
    refused = open_with(guarded, token_for(guarded, models=["mars"]))
    assert refused.status_code == 401 and "mars" in refused.json()["message"] and "tiny" in refused.json()["message"]
    assert open_with(guarded, token_for(guarded, models=["mars", "tiny"])).status_code == 201


@pytest.mark.parametrize(
    "body",
    [{"ttl_s": 0}, {"ttl_s": 1e9}, {"origins": ["play.example"]}, {"origins": [f"{PAGE}/game"]}, {"models": []},
     {"origins": ["null"]}, {"max_sessions": 0}, {"max_session_s": -1}],
)  # fmt: skip
def test_a_token_that_makes_no_sense_is_not_made(guarded, body):
    answer = guarded.http.post(f"{guarded.url}/v1/tokens", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "bad_message")
    assert next(iter(body)) in answer.json()["param"]


def part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


CLAIMS = {"aud": "wm.play", "jti": "x", "exp": 4_000_000_000}
OTHER_KEY = b"\x01" * 64


@pytest.mark.parametrize(
    ("token", "says"),
    [
        pytest.param(f"{part({'alg': 'none', 'typ': 'JWT'})}.{part(CLAIMS)}.", "HS256", id="alg none"),
        pytest.param(jwt.encode(CLAIMS, OTHER_KEY, "HS512"), "HS256", id="alg HS512"),
        pytest.param(jwt.encode(CLAIMS, OTHER_KEY, "HS256"), "not made by this server", id="another key"),
        pytest.param(jwt.encode(CLAIMS, SECRET.encode().ljust(32), "HS256"), "not made by", id="the secret itself"),
        pytest.param("a.b.c", "not made by", id="no base64"),
        pytest.param("..", "not made by", id="nothing"),
        pytest.param(f"{part([])}.{part(CLAIMS)}.AAAA", "not made by", id="no head"),
        pytest.param(
            f"{base64.urlsafe_b64encode(b'[' * 20_001).decode()}.{part(CLAIMS)}.AAAA", "not made by", id="deep head"
        ),
        pytest.param(f"{'A' * 30_000}.{part(CLAIMS)}.AAAA", "not made by", id="long head"),
    ],
)
def test_a_token_that_is_not_ours_is_refused(guarded, token, says):
    answer = open_with(guarded, token)
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
    assert says in answer.json()["message"]


def test_an_expired_token_opens_nothing(guarded):
    token, expired_at = guarded.service.tokens.to_play(CreateToken.model_construct(ttl_s=-2))
    assert expired_at <= time.time()
    answer = open_with(guarded, token)
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
    assert "has expired" in answer.json()["message"]


def test_servers_with_one_secret_take_each_others_tokens_and_a_server_without_one_nobodys():
    before = time.time()
    token, expires_at = Tokens(SECRET).to_play(CreateToken(origins=[PAGE], max_session_s=9))
    assert before + 300 <= expires_at <= time.time() + 301
    permit = Tokens(SECRET).permit(token)
    assert (permit.origins, permit.max_sessions, permit.max_session_s) == ((PAGE,), 1, 9)
    for stranger in (Tokens("another"), Tokens(None)):
        with pytest.raises(Refusal) as refused:
            stranger.permit(token)
        assert refused.value.code == ErrorCode.UNAUTHORIZED


def test_a_token_to_watch_opens_nothing_and_one_to_play_watches_nothing():
    tokens = Tokens(None)
    with pytest.raises(Refusal, match="not one to play with"):
        tokens.permit(tokens.to_watch("one", 60)[0])
    with pytest.raises(Refusal, match="not one to watch with"):
        tokens.check_watches(tokens.to_play(CreateToken())[0], "one")
    with pytest.raises(Refusal, match="another one"):
        tokens.check_watches(tokens.to_watch("one", 60)[0], "two")


def test_without_a_secret_a_token_limits_whoever_shows_it(server):
    token = token_for(server)
    assert open_with(server, token).status_code == 201
    assert open_with(server, token).status_code == 429
    assert server.http.post(f"{server.url}/v1/sessions", json={}).status_code == 201


def test_a_client_whose_token_has_expired_ends_its_session_all_the_same(guarded, monkeypatch):
    def expire() -> None:
        monkeypatch.setattr(guarded.service, "tokens", Tokens("another secret"))

    async def play() -> None:
        async with open_session(guarded.url, token_for(guarded)) as client:
            await client.resume()  # and so the ticket's own is spent
            expire()

    free = guarded.free_slots()
    asyncio.run(play())
    assert guarded.free_slots() == free
    monkeypatch.undo()


def test_a_script_whose_token_has_expired_ends_its_session_all_the_same(guarded, monkeypatch):
    free = guarded.free_slots()
    with connect(guarded.url, auth=token_for(guarded)) as session:
        session.step()
        monkeypatch.setattr(guarded.service, "tokens", Tokens("another secret"))
    assert guarded.free_slots() == free

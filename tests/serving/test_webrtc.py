"""A session over WebRTC, played by aiortc on this machine."""

import asyncio
import contextlib
import dataclasses
import gc
import importlib.util
import itertools
import json
import re
import weakref
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError

from wm_jax.serving import webrtc
from wm_jax.serving.app import make_app
from wm_jax.serving.config import ServeConfig, ServeConfigError
from wm_jax.serving.webrtc import ice_links, ice_servers


@dataclasses.dataclass
class Player:
    """The client's end: what came over `control`, and the video."""

    peer: RTCPeerConnection
    control: Any
    input: Any
    answer: httpx.Response
    messages: list[dict[str, Any]]
    came: asyncio.Event
    video: Any = None

    def say(self, kind: str, **fields: Any) -> None:
        self.control.send(json.dumps({"type": kind, **fields}))

    async def wait_for(self, kind: str, **fields: Any) -> dict[str, Any]:
        async with asyncio.timeout(30):
            while True:
                for message in self.messages:
                    if message["type"] == kind and fields.items() <= message.items():
                        return message
                self.came.clear()
                await self.came.wait()

    async def picture(self) -> np.ndarray:
        async with asyncio.timeout(30):
            return (await self.video.recv()).to_ndarray(format="rgb24")


async def post(ticket: dict[str, Any], offer: str, token: str, **headers: str) -> httpx.Response:
    headers = {"Content-Type": "application/sdp", "Authorization": f"Bearer {token}", **headers}
    async with httpx.AsyncClient() as http:
        return await http.post(ticket["webrtc_url"], content=offer, headers=headers)


async def make_offer(peer: RTCPeerConnection) -> str:
    peer.addTransceiver("video", direction="recvonly")
    await peer.setLocalDescription(await peer.createOffer())
    return peer.localDescription.sdp


@contextlib.asynccontextmanager
async def playing(ticket: dict[str, Any], token: str | None = None) -> AsyncIterator[Player]:
    peer = RTCPeerConnection(RTCConfiguration([]))
    control = peer.createDataChannel("control")
    actions = peer.createDataChannel("input", ordered=False, maxRetransmits=0)
    player = Player(peer, control, actions, httpx.Response(0), [], asyncio.Event())

    def hear(text: str) -> None:
        player.messages.append(json.loads(text))
        player.came.set()

    control.on("message", hear)
    peer.on("track", lambda track: setattr(player, "video", track))
    try:
        offer = await make_offer(peer)
        player.answer = await post(ticket, offer, token or ticket["token"])
        assert player.answer.status_code == 201, player.answer.text
        await peer.setRemoteDescription(RTCSessionDescription(player.answer.text, "answer"))
        await player.wait_for("session.created")
        yield player
    finally:
        await peer.close()


async def until(condition) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.05)


@pytest.fixture
def peers(monkeypatch) -> "weakref.WeakSet[webrtc.Peer]":
    """The server's ends that are in memory still."""
    alive: weakref.WeakSet[webrtc.Peer] = weakref.WeakSet()

    class Watched(webrtc.Peer):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            alive.add(self)

    monkeypatch.setattr(webrtc, "Peer", Watched)
    return alive


async def are_freed(peers: "weakref.WeakSet[webrtc.Peer]", count: int = 0) -> None:
    """Waits until no more than this many are left: what is refused is on the stack for a moment longer than its answer."""

    def is_freed() -> bool:
        if len(peers) > count:
            gc.collect()
        return len(peers) <= count

    await until(is_freed)


def test_a_session_plays_over_webrtc_and_leaves_nothing(server, even_pace, peers):
    async def play() -> None:
        ticket, free = server.create(init={"seed": 3}), server.free_slots()
        place = server.service.lobby.find(ticket["session_id"])
        async with playing(ticket) as player:
            assert player.messages[0]["type"] == "session.created" and player.messages[0]["resume_token"]
            assert player.answer.headers["location"].startswith(f"/v1/sessions/{ticket['session_id']}/webrtc/")
            assert (await player.picture()).shape == (32, 32, 3)
            head = await player.wait_for("frames")
            assert (head["codec"], head["lengths"], head["w"]) == ("raw", [], 32)
            assert head["pts_ms"] == pytest.approx(head["frame_id"] * 1000 / 30, abs=0.01)

            player.input.send(json.dumps({"type": "action", "event_id": "e", "seq": 2, "held": ["ArrowRight"]}))
            ack = await player.wait_for("ack", event_id="e")
            obeying = await player.wait_for("frames", last_event_id="e")
            assert obeying["frame_id"] >= ack["applied_at_frame"]
            player.input.send(json.dumps({"type": "action", "event_id": "late", "seq": 1, "held": []}))
            player.input.send(json.dumps({"type": "control", "op": "pause", "event_id": "p"}))
            assert (await player.wait_for("error", event_id="p"))["code"] == "unsupported"
            assert not [message for message in player.messages if message.get("event_id") == "late"]

            pictures = [await player.picture() for _ in range(3)]
            assert any(np.abs(one.astype(int) - two).max() > 16 for one, two in itertools.pairwise(pictures))
            player.say("control", op="pause", event_id="q")
            await player.wait_for("ack", event_id="q")
            player.say("frame.ack", seq=10**6)
            player.control.send(b"bytes")
            assert "binary" in (await player.wait_for("error", code="bad_message"))["message"]
            assert not [message for message in player.messages if message.get("code") == "bad_ack"]
        await until(lambda: place.connection is None)
        server.delete(ticket)
        assert server.free_slots() == free + 1

        await are_freed(peers)

    asyncio.run(play())


def test_the_connection_moves_between_websocket_and_webrtc_and_tells_why_it_ends(server, peers):
    async def play() -> None:
        ticket = server.create(linger_s=30)
        with server.connect(ticket) as socket:
            talk = server.talk(socket)
            await asyncio.to_thread(talk.wait_for_frames, 2)
            talk.acknowledges = False
            async with playing(ticket) as player:
                await asyncio.to_thread(talk.wait_for, "error", code="taken_over")
                await player.picture()
                resume = player.messages[0]["resume_token"]
                with server.connect(ticket, resume) as again:
                    back = server.talk(again)
                    frames = await asyncio.to_thread(back.wait_for_frames, 3)
                    assert (await player.wait_for("error", code="taken_over"))["fatal"] is True
                    assert {head["codec"] for head, _ in frames} == {"jpeg"}
                    assert all(payload.startswith(b"\xff\xd8") for _, payload in frames)
                await until(lambda: player.control.readyState == "closed")
        async with playing(ticket, resume) as player:
            await player.picture()
            async with httpx.AsyncClient(base_url=server.url, headers={"Authorization": f"Bearer {resume}"}) as http:
                where = player.answer.headers["location"]
                patched = await http.patch(where, content="a=candidate:1")
                assert patched.status_code == 405 and patched.headers["allow"] == "DELETE"
                assert "iceGatheringState" in patched.json()["message"]
                assert (await http.delete(where, headers={"Authorization": "Bearer other"})).status_code == 401
                assert (await http.delete(where)).status_code == 200
                assert (await http.delete(where)).status_code == 404
            await until(lambda: player.control.readyState == "closed")
        async with playing(ticket, resume) as player:
            await player.picture()
            await asyncio.to_thread(server.delete, ticket)
            assert (await player.wait_for("session.ended"))["reason"] == "deleted"
            await until(lambda: player.control.readyState == "closed")

        await are_freed(peers)

    asyncio.run(play())


def test_what_is_too_long_or_too_much_ends_the_connection(server, peers, monkeypatch):
    # How fast SCTP carries a flood is the machine's matter: here a few messages are one.
    config = dataclasses.replace(server.service.config, messages_per_s=4.0, burst=8)
    monkeypatch.setattr(server.service.lobby, "config", config)

    async def play() -> None:
        ticket = server.create()
        async with playing(ticket) as player:
            player.say("action", held=["x" * 70_000])
            error = await player.wait_for("error", code="too_large")
            assert error["fatal"] is True and "65536" in error["message"]
            await until(lambda: player.control.readyState == "closed")
        async with playing(ticket, player.messages[0]["resume_token"]) as player:
            for _ in range(200):
                player.say("action", held=[])
            await player.wait_for("error", code="rate_limited", fatal=True)

        await are_freed(peers)

    asyncio.run(play())


VIDEO = "v=0\r\no=- 1 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\nm=video 9 UDP/TLS/RTP/SAVPF 96\r\n"
DATA = "m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\n"


def test_an_offer_that_cannot_be_is_refused(server, peers):
    ticket = server.create()
    for offer, code, says in (
        ("", "bad_message", "no media"),
        (VIDEO, "bad_message", "the offer has video; one video"),
        (VIDEO + DATA + "m=audio 9 UDP/TLS/RTP/SAVPF 0\r\n", "bad_message", "application, audio, video"),
        (VIDEO + DATA + "a=candidate:1\r\n" * 65, "too_large", "65 candidates, 64"),
        (VIDEO + DATA, "bad_message", "cannot be answered"),
        (VIDEO + "a=inactive\r\n" + DATA, "bad_message", "the video of the offer is inactive"),
        (VIDEO + DATA + "a=sendonly\r\n", "bad_message", "cannot be answered"),
        (VIDEO.replace("m=", "a=sendonly\r\nm=") + DATA, "bad_message", "is sendonly; it must be received: sendrecv"),
        (VIDEO + "a=rtpmap:x\r\na=fmtp\r\n" + DATA + "a=candidate:?\r\n", "bad_message", "cannot be answered"),
    ):
        answer = asyncio.run(post(ticket, offer, ticket["token"]))
        status = 413 if code == "too_large" else 422
        assert (answer.status_code, answer.json()["code"]) == (status, code) and says in answer.json()["message"]
    asyncio.run(are_freed(peers))


def test_at_most_one_frame_waits_for_the_encoder():
    async def play() -> None:
        taken: list[int] = []
        track = webrtc.FrameTrack(taken.append)
        for seq in range(3):
            track.show(np.full((16, 16, 3), seq, np.uint8), 100.0 * seq, seq)
        frame = await track.recv()
        assert taken == [2] and frame.pts == 18_000
        track.show(np.zeros((16, 16, 3), np.uint8), 300.0, 3)
        track.stop()
        with pytest.raises(MediaStreamError):
            await track.recv()

    asyncio.run(play())


def test_a_client_that_can_be_told_nothing_leaves_the_session_to_the_next(server, peers):
    async def play() -> None:
        ticket = server.create(linger_s=30)
        place = server.service.lobby.find(ticket["session_id"])
        peer = RTCPeerConnection(RTCConfiguration([]))
        peer.createDataChannel("control")
        offer = re.sub(r"max-message-size:\d+", "max-message-size:64", await make_offer(peer))
        assert "max-message-size:64" in offer
        answer = await post(ticket, offer, ticket["token"])
        await peer.setRemoteDescription(RTCSessionDescription(answer.text, "answer"))
        await until(lambda: place.was_connected and place.connection is None)
        async with playing(ticket) as player:
            await player.picture()
        await peer.close()
        await are_freed(peers)

    asyncio.run(play())


def test_who_may_not_play_gets_no_answer(server, peers, monkeypatch):
    monkeypatch.setattr(webrtc, "OFFERS_PER_S", 0.001)  # a burst uses them up however slow the machine is

    async def play() -> None:
        ticket, other = server.create(), server.create()
        peer = RTCPeerConnection(RTCConfiguration([]))
        peer.createDataChannel("control")
        offer = await make_offer(peer)
        for token in ("nonsense", other["token"]):
            answer = await post(ticket, offer, token)
            assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
        assert (await post(ticket, offer, ticket["token"], Origin="https://evil.example")).status_code == 403
        assert (await post(ticket, offer, ticket["token"], **{"Content-Type": "text/plain"})).status_code == 415
        assert not peers
        answers = [await post(ticket, offer, ticket["token"]) for _ in range(webrtc.MAX_OFFERS_AT_ONCE + 1)]
        assert [answer.status_code for answer in answers[:-1]] == [201] * webrtc.MAX_OFFERS_AT_ONCE
        assert (answers[-1].status_code, answers[-1].json()["code"]) == (429, "rate_limited")
        await are_freed(peers, 1)  # the others gave way to the next
        where = f"{server.url}{answers[-2].headers['location']}"
        server.http.delete(where, headers={"Authorization": f"Bearer {ticket['token']}"})
        await are_freed(peers)
        await peer.close()

    asyncio.run(play())


def test_an_offer_that_nobody_follows_up_is_forgotten(server, monkeypatch, peers):
    monkeypatch.setattr(webrtc, "CONNECT_S", 0.1)

    async def play() -> None:
        ticket = server.create()
        peer = RTCPeerConnection(RTCConfiguration([]))
        peer.createDataChannel("control")
        assert (await post(ticket, await make_offer(peer), ticket["token"])).status_code == 201
        await are_freed(peers)
        await peer.close()

    asyncio.run(play())


def test_a_stepped_session_has_no_video(server):
    ticket = server.create(mode="stepped")
    assert "webrtc_url" not in ticket or ticket["webrtc_url"] is None
    url = f"{server.url}/v1/sessions/{ticket['session_id']}/webrtc"
    answer = asyncio.run(post({"webrtc_url": url}, VIDEO + DATA, ticket["token"]))
    assert (answer.status_code, answer.json()["code"]) == (422, "wrong_mode")


def test_without_aiortc_there_is_no_route_and_no_address(server, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    app = make_app(ServeConfig(), server.world, server.params, server.prompts)
    assert not [route for route in app.routes if "webrtc" in getattr(route, "path", "")]
    with pytest.raises(ServeConfigError, match="rtc"):
        make_app(ServeConfig(ice_servers=("stun:a.example",)), server.world, server.params, server.prompts)
    monkeypatch.setattr(server.service, "has_webrtc", False)
    assert not server.create().get("webrtc_url")


def test_ice_servers_are_given_and_told():
    given = ("stun:a.example:3478", "turn:ann:secret@b.example:3478?transport=tcp")
    assert ice_servers(()) == [], "aiortc would ask a public server"
    stun, turn = ice_servers(given)
    assert (stun.urls, stun.username) == ("stun:a.example:3478", None)
    assert (turn.urls, turn.username, turn.credential) == ("turn:b.example:3478?transport=tcp", "ann", "secret")
    assert ice_links(given) == (
        '<stun:a.example:3478>; rel="ice-server", <turn:b.example:3478?transport=tcp>; rel="ice-server"; '
        'username="ann"; credential="secret"; credential-type="password"'
    )
    for wrong in ("a.example", "http://a.example", "turn:b.example", "stun:ann:secret@a.example", "stun:a\r\nX: y"):
        with pytest.raises(ServeConfigError, match="ice_servers"):
            ServeConfig(ice_servers=(wrong,))


PLAY_IN_A_BROWSER = """async () => {
  const create = await fetch("/v1/sessions", { method: "POST", headers: { "Content-Type": "application/json" }, body: "{}" });
  const ticket = await create.json();
  const peer = new RTCPeerConnection();
  const heard = [];
  const control = peer.createDataChannel("control");
  control.onmessage = ({ data }) => heard.push(JSON.parse(data));
  const video = document.createElement("video");
  video.muted = true;
  peer.ontrack = ({ track }) => { video.srcObject = new MediaStream([track]); video.play(); };
  peer.addTransceiver("video", { direction: "recvonly" });
  await peer.setLocalDescription();
  while (peer.iceGatheringState !== "complete") await new Promise((next) => setTimeout(next, 10));
  const headers = { "Content-Type": "application/sdp", "Authorization": `Bearer ${ticket.token}` };
  const answer = await fetch(ticket.webrtc_url, { method: "POST", headers, body: peer.localDescription.sdp });
  await peer.setRemoteDescription({ type: "answer", sdp: await answer.text() });
  await new Promise((next) => video.requestVideoFrameCallback(next));
  await new Promise((next) => video.requestVideoFrameCallback(next));
  const shown = [video.videoWidth, video.videoHeight, heard[0].type, heard.some((one) => one.type === "frames")];
  peer.close();
  return shown;
}"""


@pytest.mark.browser
def test_a_browser_plays_over_webrtc(browser, server):
    page = browser.new_page()
    try:
        page.goto(f"{server.url}/healthz")
        assert page.evaluate(PLAY_IN_A_BROWSER) == [32, 32, "session.created", True]
    finally:
        page.close()

"""A session over WebRTC, played by aiortc on this machine."""

import asyncio
import contextlib
import dataclasses
import gc
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription

from wm_jax.serving import webrtc
from wm_jax.serving.webrtc import check_offer, ice_links, ice_servers


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


def left_over() -> int:
    gc.collect()
    return sum(isinstance(one, webrtc.Peer | webrtc.FrameTrack) for one in gc.get_objects())


async def until(condition) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.05)


def test_a_session_plays_over_webrtc_and_leaves_nothing(server):
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
            assert any(np.abs(one.astype(int) - two).max() > 16 for one, two in zip(pictures, pictures[1:], strict=False))
            player.say("control", op="pause", event_id="q")
            await player.wait_for("ack", event_id="q")
            player.control.send(b"bytes")
            assert "binary" in (await player.wait_for("error", code="bad_message"))["message"]
        await until(lambda: place.connection is None)
        server.delete(ticket)
        assert server.free_slots() == free + 1

    asyncio.run(play())
    assert left_over() == 0

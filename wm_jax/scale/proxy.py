"""A player's socket carried through the gateway, for networks that let one port through; everywhere else it goes straight."""

import asyncio
import contextlib

import aiohttp
from starlette.websockets import WebSocket, WebSocketDisconnect

from wm_jax.serving.protocol import CloseCode

GONE = (None, 1005, 1006)
"""Close codes that never travel: the replica ended without a word."""


async def carry(websocket: WebSocket, http: aiohttp.ClientSession, url: str) -> None:
    """Hands messages on in both directions, as they are, until one side closes; the other gets its close code.

    Raises:
      aiohttp.ClientError: nobody answers there, or not as our servers do; the player's socket is not accepted yet.
    """
    offered: list[str] = websocket.scope.get("subprotocols", [])
    page = websocket.headers.get("origin")  # a token may be good for some pages only
    async with http.ws_connect(url, protocols=offered, origin=page, max_msg_size=0) as replica:
        await websocket.accept(replica.protocol)
        ways = [asyncio.ensure_future(way) for way in (_up(websocket, replica), _down(replica, websocket))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)


async def _up(websocket: WebSocket, replica: aiohttp.ClientWebSocketResponse) -> None:
    while True:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            await replica.close(code=message.get("code") or CloseCode.NORMAL)
            return
        text: str | None = message.get("text")
        if text is not None:
            await replica.send_str(text)
        else:
            await replica.send_bytes(message["bytes"])


async def _down(replica: aiohttp.ClientWebSocketResponse, websocket: WebSocket) -> None:
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):  # the player has left meanwhile
        async for message in replica:
            if message.type == aiohttp.WSMsgType.TEXT:
                await websocket.send_text(message.data)
            elif message.type == aiohttp.WSMsgType.BINARY:
                await websocket.send_bytes(message.data)
        code = replica.close_code
        await websocket.close(CloseCode.GO_AWAY if code is None or code in GONE else code)

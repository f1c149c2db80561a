"""A session for asyncio: every call of `Session` to be awaited, and messages and frames as they come."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
from jaxtyping import UInt8
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as connect_socket
from websockets.exceptions import ConnectionClosed

from wm_jax.client.dialogue import (
    Call,
    ConnectionLost,
    Deed,
    Dial,
    Dialogue,
    HangUp,
    Heard,
    Held,
    Listen,
    Say,
    Shown,
    Talk,
    Wait,
    WireName,
    session_body,
    singles,
    wire_named,
)
from wm_jax.client.recordings import record
from wm_jax.rest import ServerError
from wm_jax.serving.protocol import Mode
from wm_jax.serving.wire import Wire

KEPT_MESSAGES = 1024

T = TypeVar("T")


class Client(Dialogue):
    """An open session, of which several tasks may use one: what waits for an answer is done one after the other, and `act`
    goes out at once. An async context manager, which ends it.

    In a stepped session nothing comes unasked, so that a task which waits there in `receive` or `frames` would hold up all
    others: they are refused meanwhile.

    Attributes: those of `Dialogue`, and
      socket: The connection.
      messages: Those that arrived while `frames` were awaited, the newest 1,024.
    """

    socket: ClientConnection

    def __init__(self, url: str, auth: str | None, wire: Wire) -> None:
        super().__init__(url, auth, wire)
        self.messages: deque[dict[str, Any]] = deque(maxlen=KEPT_MESSAGES)
        self._ear = asyncio.Lock()
        """Held by whoever listens."""
        self._waits_for_anything = False

    @classmethod
    async def connect(
        cls,
        url: str,
        *,
        seed: int = 0,
        prompt: int | None = None,
        image: UInt8[np.ndarray, "h w 3"] | None = None,
        snapshot: str | None = None,
        resume: tuple[str, str] | None = None,
        auth: str | None = None,
        codec: str = "png",
        mode: Mode = "stepped",
        wire: WireName = "json",
    ) -> Self:
        """A session of the server at `url`, with its socket; arguments and errors are those of `Session.connect`."""
        client = cls(url, auth, wire_named(wire))
        body = session_body(mode, codec, seed, prompt, image, snapshot)
        await client._perform(client._opening(body) if resume is None else client._returning(*resume))
        return client

    @classmethod
    async def create(cls, url: str, body: dict[str, Any], auth: str | None = None, wire: WireName = "json") -> Self:
        """A session of this body of `POST /v1/sessions`, with its socket; may wait in line for its slot.

        Raises:
          ServerError: the server is full, does not know the model, or refuses the connection.
        """
        client = cls(url, auth, wire_named(wire))
        await client._perform(client._opening(body, may_wait=True))
        return client

    async def step(
        self, held: Held = (), frames: int = 1, mouse: tuple[float, float] | None = None
    ) -> UInt8[np.ndarray, "t h w 3"]:
        """The next frames while these keys are held; see `Session.step`. One that was cancelled is unfinished.

        Raises:
          ServerError: a key that the world has not, too many frames at once, another step is unfinished, or the connection
            is lost.
        """
        return await self._listen_to(self._stepping(held, frames, mouse))

    async def finish(self) -> UInt8[np.ndarray, "t h w 3"]:
        """All frames of the step that was interrupted; see `Session.finish`.

        Raises:
          ServerError: none was, or the connection is lost.
        """
        return await self._listen_to(self._finishing())

    async def act(self, held: Held = (), mouse: tuple[float, float] | None = None) -> str:
        """From the next frame on these keys are held, and the mouse moves once; see `Session.act`.

        Raises:
          ServerError: the session is stepped, or the connection is lost. An input that the world has not is told by `frame`.
        """
        return await self._perform(self._acting(held, mouse))

    async def frame(self) -> Shown:
        """The newest frame that was not shown before, with its header; waits for one, passes over older ones.

        Raises:
          ServerError: the session is stepped, an action was refused, or the connection is lost.
        """
        return await self._listen_to(self._seeing())

    async def reset(self, seed: int | None = None) -> None:
        """The next frame begins anew; without a seed with the same one. Frames of an unfinished step are given up."""
        await self._listen_to(self._restarting("reset", seed=seed))

    async def seek(self, frame_id: int) -> int:
        """Goes back to the newest frame that is kept up to this one, and says which; an unfinished step is given up.

        Raises:
          ServerError: none that old is kept.
        """
        return (await self._listen_to(self._restarting("seek", frame=frame_id)))["restored_frame"]

    async def snapshot(self) -> str:
        """Writes the session to the server's disk; `connect(url, snapshot=...)` starts from it.

        Raises:
          ServerError: the server was started without `--snapshots`.
        """
        return (await self._listen_to(self._asking("session.snapshot", answer="session.snapshotted")))["snapshot"]

    async def record(self, path: str | Path, video: bool = True) -> Path:
        """Writes the session's recording so far to a file; see `Session.record`.

        Raises:
          ServerError: no slot is free for the video, or the server records nothing.
        """
        return await asyncio.to_thread(record, self._url, self.id, Path(path), self.resume_token, video)

    async def kept(self) -> list[int]:
        """The frames that `seek` and `fork` can go back to, oldest first.

        Raises:
          ServerError: the session is gone.
        """
        return await self._perform(self._looking_back())

    async def fork(self, at: int | None = None) -> "Client":
        """A session of its own that goes on as this one is, or was at the newest kept frame up to `at`.

        Raises:
          ServerError: every slot is taken, or none that old is kept.
        """
        other = Client(self._url, self._auth, self.wire)
        await other._perform(other._beginning(await self._perform(self._forking(at))))
        return other

    async def resume(self, patience_s: float = 30.0) -> dict[str, Any]:
        """Comes back after the connection was lost, wherever the session is now; the new `session.created`.

        A step that was interrupted is finished by the same `step` again, or by `finish`; see `Session.resume`.

        Raises:
          ServerError: the session is gone, or nobody took it up within that time.
        """
        await self._perform(self._resuming(patience_s))
        return self.created

    async def close(self, keep: bool = False) -> None:
        """Ends the session; with `keep` it only hangs up, and the session waits to be resumed."""
        await self._perform(self._closing(keep))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._perform(self._leaving())

    # ---- message by message

    async def send(self, kind: str, **fields: Any) -> None:
        """One message: `send("action", held=["KeyW"], mouse=[0.1, 0.0])`."""
        with _as_the_socket_says():
            await self._perform(self._saying(kind, **fields))

    async def receive(self) -> Heard:
        """The next message, or the next frames, decoded and acknowledged.

        Raises:
          ServerError: the server reports an error.
          ConnectionClosed: the connection is lost.
        """
        with _as_the_socket_says():
            heard = await self._listen_to(self._anything())
        assert heard is not None, "listened without end"
        return heard

    async def frames(self) -> AsyncIterator[Shown]:
        """Frames as they come.

        Raises:
          ServerError: the server reports an error.
          ConnectionClosed: the connection is lost.
        """
        while True:
            got = await self.receive()
            if isinstance(got, dict):
                self.messages.append(got)
                continue
            for shown in singles(*got):
                yield shown

    # ---- inside

    def _anything(self) -> Talk[Heard | None]:
        self._waits_for_anything = True
        try:
            return (yield from self._listening())
        finally:
            self._waits_for_anything = False

    async def _listen_to(self, talk: Talk[T]) -> T:
        if self._waits_for_anything and self.mode == "stepped":
            raise ServerError(
                "busy: another task waits in receive() or frames(), and nothing comes unasked in a stepped session"
            )
        async with self._ear:
            return await self._perform(talk)

    async def _perform(self, talk: Talk[T]) -> T:
        """Does one deed after the other, and tells the talk what came of each."""
        try:
            deed = next(talk)
            while True:
                try:
                    answer = await self._do(deed)
                except BaseException as error:  # noqa: BLE001 (thrown on, into the talk)
                    deed = talk.throw(error)
                else:
                    deed = talk.send(answer)
        except StopIteration as done:
            return done.value

    async def _do(self, deed: Deed) -> Any:
        match deed:
            case Call(function):
                return await asyncio.to_thread(function)
            case Wait(seconds):
                await asyncio.sleep(seconds)
            case Dial(address, protocols):
                self.socket = await connect_socket(address, subprotocols=protocols, max_size=None, compression=None)
            case HangUp():
                await self.socket.close()
            case Say(data):
                await self.socket.send(data)
            case Listen(patience_s):
                try:
                    async with asyncio.timeout(patience_s):
                        return await self.socket.recv()
                except TimeoutError:
                    return None


@contextlib.asynccontextmanager
async def open_session(
    url: str, auth: str | None = None, wire: WireName = "json", **body: Any
) -> AsyncIterator[Client]:
    """A session of the server at `url`, connected; ended when the block is left. `body` as `CreateSession`.

    It may have to wait in line for its slot, where `Client.connect` is refused.

    Raises:
      ServerError: the server is full, does not know the model, or refuses the connection.
    """
    async with await Client.create(url, body, auth, wire) as client:
        yield client


@contextlib.contextmanager
def _as_the_socket_says() -> Iterator[None]:
    try:
        yield
    except ConnectionLost as lost:
        assert isinstance(lost.__cause__, ConnectionClosed)
        raise lost.__cause__ from None

"""A session for scripts: every call waits for its answer."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
from jaxtyping import UInt8
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as connect_socket

from wm_jax.client.dialogue import (
    Call,
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
from wm_jax.serving.protocol import Mode

T = TypeVar("T")


class Session(Dialogue):
    """One session. Stepped, the world waits for `step`, which gives every frame; in realtime it plays on, `act` tells what
    is held from now on, and `frame` shows where it is.

    Attributes: those of `Dialogue`.
    """

    _socket: ClientConnection
    _open: contextlib.ExitStack

    @classmethod
    def connect(
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
        """A session of the server at `url`.

        Args:
          seed: Of its dream.
          prompt: A scene that ships with the world, by number; where it is not given the seed's.
          image: The first frame, in the world's size, instead of a scene.
          snapshot: Starts from one that `snapshot` made.
          resume: Comes back to a session, by its id and resume token, instead of opening one.
          auth: The server's secret, if it has one.
          codec: How frames travel: png and raw lose nothing, jpeg is small, h264 (in realtime) smallest.
          mode: "stepped" or "realtime".
          wire: How messages travel.

        Raises:
          ServerError: the server is full, knows no such snapshot or session, or refuses the connection.
          OSError: nobody answers there.
        """
        session = cls(url, auth, wire_named(wire))
        body = session_body(mode, codec, seed, prompt, image, snapshot)
        session._perform(session._opening(body) if resume is None else session._returning(*resume))
        return session

    def step(
        self, held: Held = (), frames: int = 1, mouse: tuple[float, float] | None = None
    ) -> UInt8[np.ndarray, "t h w 3"]:
        """The next frames while these keys are held; the mouse (right and down, in heights of the frame) moves in the first.

        Where it was interrupted, by a lost connection or by the keyboard, the same step again (after `resume`) goes on with
        it and gives all of its frames, also those that had come; so does `finish`. The server makes each once.

        Raises:
          ServerError: a key that the world has not, too many frames at once, another step is unfinished, or the connection
            is lost.
        """
        return self._perform(self._stepping(held, frames, mouse))

    def finish(self) -> UInt8[np.ndarray, "t h w 3"]:
        """All frames of the step that was interrupted; see `step`.

        Raises:
          ServerError: none was, or the connection is lost.
        """
        return self._perform(self._finishing())

    def act(self, held: Held = (), mouse: tuple[float, float] | None = None) -> str:
        """From the next frame on these keys are held, and the mouse moves once; frames obey it from that one on whose header
        says so: its `last_event_id` is what this returns.

        Raises:
          ServerError: the session is stepped, or the connection is lost. An input that the world has not is told by `frame`.
        """
        return self._perform(self._acting(held, mouse))

    def frame(self) -> Shown:
        """The newest frame that was not shown before, with its header; waits for one, passes over older ones.

        Raises:
          ServerError: the session is stepped, an action was refused, or the connection is lost.
        """
        return self._perform(self._seeing())

    def frames(self) -> Iterator[Shown]:
        """Frames as they come, each with its header; a caller that is slow gets fewer.

        Raises:
          ServerError: as `frame`.
        """
        self._check_mode("realtime", "frames")
        while True:
            heard = self._receive()
            if isinstance(heard, tuple):
                yield from singles(*heard)

    def reset(self, seed: int | None = None) -> None:
        """The next frame begins anew; without a seed with the same one. Frames of an unfinished step are given up."""
        self._perform(self._restarting("reset", seed=seed))

    def seek(self, frame_id: int) -> int:
        """Goes back to the newest frame that is kept up to this one, and says which; an unfinished step is given up.

        Raises:
          ServerError: none that old is kept.
        """
        return self._perform(self._restarting("seek", frame=frame_id))["restored_frame"]

    def snapshot(self) -> str:
        """Writes the session to the server's disk; `connect(url, snapshot=...)` starts from it.

        Raises:
          ServerError: the server was started without `--snapshots`.
        """
        return self._perform(self._asking("session.snapshot", answer="session.snapshotted"))["snapshot"]

    def record(self, path: str | Path, video: bool = True) -> Path:
        """Writes the session's recording so far to a file: `python serve.py WORLD --replay FILE` makes every frame again.

        Args:
          video: With a video, which the server makes in a slot that no player needs; this waits for it.

        Raises:
          ServerError: no slot is free for the video, or the server records nothing.
        """
        return record(self._url, self.id, Path(path), self.resume_token, video)

    def kept(self) -> list[int]:
        """The frames that `seek` and `fork` can go back to, oldest first.

        Raises:
          ServerError: the session is gone.
        """
        return self._perform(self._looking_back())

    def fork(self, at: int | None = None) -> "Session":
        """A session of its own that goes on as this one is, or was at the newest kept frame up to `at`.

        Raises:
          ServerError: every slot is taken, or none that old is kept.
        """
        other = Session(self._url, self._auth, self.wire)
        other._perform(other._beginning(self._perform(self._forking(at))))
        return other

    def resume(self, patience_s: float = 30.0) -> int:
        """Comes back after the connection was lost, wherever the session is now; the frame it goes on with.

        That is the first of a step that was interrupted: the same `step` again, or `finish`, gives its frames. Behind a
        gateway it may be another server than before, which took the session up as it was last written (`resumed_at`) and
        goes on from there. Where that is before the step, or after frames that had not come, the step is given up.

        Raises:
          ServerError: the session is gone, or nobody took it up within that time.
        """
        self._perform(self._resuming(patience_s))
        return self.frame_id

    def close(self, keep: bool = False) -> None:
        """Ends the session; with `keep` it only hangs up, and the session waits to be resumed."""
        self._perform(self._closing(keep))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._perform(self._leaving())

    # ---- inside

    def _receive(self) -> Heard | None:
        return self._perform(self._listening())

    def _perform(self, talk: Talk[T]) -> T:
        """Does one deed after the other, and tells the talk what came of each."""
        try:
            deed = next(talk)
            while True:
                try:
                    answer = self._do(deed)
                except BaseException as error:  # noqa: BLE001 (thrown on, into the talk)
                    deed = talk.throw(error)
                else:
                    deed = talk.send(answer)
        except StopIteration as done:
            return done.value

    def _do(self, deed: Deed) -> Any:
        match deed:
            case Call(function):
                return function()
            case Wait(seconds):
                time.sleep(seconds)
            case Dial(address, protocols):
                self._open = contextlib.ExitStack()
                self._socket = self._open.enter_context(
                    connect_socket(address, subprotocols=protocols, max_size=None, compression=None)
                )
            case HangUp():
                self._open.close()
            case Say(data):
                self._socket.send(data)
            case Listen(patience_s):
                try:
                    return self._socket.recv(patience_s)
                except TimeoutError:
                    return None


connect = Session.connect

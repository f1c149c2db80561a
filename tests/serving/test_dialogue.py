"""What both clients share: a step that is interrupted and taken up again, in stepped sessions; what is seen, in realtime."""

import asyncio
import itertools
import socket
from typing import Any

import numpy as np
import pytest

from wm_jax.client import Client, ServerError, Session, connect
from wm_jax.client.dialogue import Dialogue, Listen, Say, Step, Wait
from wm_jax.serving.protocol import FramesHeader
from wm_jax.serving.wire import JsonWire

UP = ["ArrowUp"]
FRAMES = 60


def pixels(value: int) -> np.ndarray:
    return np.full((1, 2, 3), value, np.uint8)


def header(frame_id: int, step_id: str | None = "x") -> FramesHeader:
    return FramesHeader(
        seq=frame_id, frame_id=frame_id, n=1, codec="raw", w=2, h=1, lengths=[6], pts_ms=0, step_id=step_id
    )


def cut(session: Session, heard: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """After so many more messages the line is cut, and all that was on its way is lost."""
    line, receive, count = session._socket, session._socket.recv, itertools.count(1)

    def listen(timeout: float | None = None) -> Any:
        if next(count) > heard:
            line.socket.shutdown(socket.SHUT_RDWR)
            while True:
                receive(timeout)
        return receive(timeout)

    monkeypatch.setattr(line, "recv", listen)


@pytest.fixture(scope="module")
def wanted(server) -> np.ndarray:
    """What an uncut session shows."""
    with connect(server.url, seed=5, codec="raw") as session:
        return np.concatenate([session.step(UP, FRAMES), session.step(frames=3)])


@pytest.mark.parametrize("cuts", [(0,), (1,), (2, 12, 40)], ids=str)
def test_a_step_whose_line_was_cut_is_given_whole(server, wanted, cuts, monkeypatch):
    with connect(server.url, seed=5, codec="raw") as session:
        for heard in cuts:
            cut(session, heard, monkeypatch)
            with pytest.raises(ServerError, match="resume"):
                session.step(UP, FRAMES)
            assert session.resume() == session.frame_id == 0
        with pytest.raises(ServerError, match=f"frames 0 to {FRAMES - 1}.*finish"):
            session.step(["ArrowDown"], FRAMES)
        frames = session.finish() if len(cuts) > 1 else session.step(UP, FRAMES)
        assert session.frame_id == FRAMES
        np.testing.assert_array_equal(np.concatenate([frames, session.step(frames=3)]), wanted)
        with pytest.raises(ServerError, match="finished"):
            session.finish()


def test_a_step_that_the_keyboard_interrupts_at_any_place_is_given_whole(server, wanted, monkeypatch):
    with connect(server.url, seed=5, codec="raw") as session:
        decode, count = session._decode, itertools.count(1)

        def interrupted(*frame: Any) -> np.ndarray:
            if next(count) == 7:
                raise KeyboardInterrupt
            return decode(*frame)

        monkeypatch.setattr(session, "_decode", interrupted)
        with pytest.raises(KeyboardInterrupt):
            session.step(UP, FRAMES)
        np.testing.assert_array_equal(session.step(UP, FRAMES), wanted[:FRAMES])


def test_a_step_after_a_new_beginning_is_not_joined_to_frames_of_the_old_dream(server):
    with connect(server.url, seed=5, codec="raw") as session:
        session.step(UP, 4)
        session.reset(seed=6)
        session._unfinished = Step("x", tuple(UP), 8, None, 4, 4, [pixels(0)])
        created = {**session.created, "session": {**session.created["session"], "frames": 4, "resumed_at": 4}}
        session._know(created)  # another server took it up as it was written, perhaps before the new beginning
        with pytest.raises(ServerError, match="finished"):
            session.finish()


async def listen(client: Client) -> None:
    while True:
        await client.receive()


def test_a_task_that_waits_for_anything_holds_up_no_step(server, wanted):
    async def play() -> None:
        async with await Client.connect(server.url, seed=5, codec="raw") as client:
            waiting = asyncio.create_task(listen(client))
            await asyncio.sleep(0.3)
            with pytest.raises(ServerError, match="another task waits"):
                await client.step(UP, 3)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            np.testing.assert_array_equal(await client.step(UP, 3), wanted[:3])

    asyncio.run(play())


def test_who_goes_back_gives_up_what_was_not_finished(server, wanted, monkeypatch):
    with connect(server.url, seed=5, codec="raw") as session:
        cut(session, 5, monkeypatch)
        with pytest.raises(ServerError, match="resume"):
            session.step(UP, FRAMES)
        session.resume()
        session.reset()
        assert session.frame_id == FRAMES
        np.testing.assert_array_equal(session.step(UP, 4), wanted[:4])
        assert session.frame_id == FRAMES + 4


def test_a_step_that_the_server_refuses_is_not_left_unfinished(server):
    with connect(server.url) as session:
        with pytest.raises(ServerError, match="unknown_key"):
            session.step(["KeyZ"])
        with pytest.raises(ServerError, match="step_too_long"):
            session.step(frames=1000)
        assert session.step().shape == (1, *session.shape)


def test_a_step_goes_on_with_another_server_in_its_middle(server, wanted):
    with connect(server.url, seed=5, codec="raw") as session:
        step = Step("x", tuple(UP), FRAMES, None, 0, 0, [*session.step(UP, 4)])
        session._unfinished = step.after_resume(4, True, "y")
        np.testing.assert_array_equal(session.finish(), wanted[:FRAMES])
        assert session.frame_id == FRAMES


@pytest.mark.parametrize(
    ("frame_id", "is_elsewhere", "asked"),
    [
        (12, False, ("x", 8, [0.5, 0.0])),  # the server that knows the step sends it again
        (10, True, ("x", 8, [0.5, 0.0])),  # another one, where it began: no matter which one it is
        (11, True, ("y", 7, None)),  # in its middle: the mouse has been moved
        (13, True, ("y", 5, None)),  # what had come need not be made
        (14, True, None),  # frame 13 is gone with the server that made it
        (9, True, None),  # and here frame 9, under keys that nobody remembers
    ],
)
def test_what_is_asked_for_again(frame_id, is_elsewhere, asked):
    step = Step("x", tuple(UP), 8, (0.5, 0.0), 10, 10, [pixels(index) for index in range(3)], is_asked=True)
    again = step.after_resume(frame_id, is_elsewhere, "y")
    if asked is None:
        assert again is None
        return
    assert again is not None and not again.is_asked and (again.first, again.n, len(again.frames)) == (10, 8, 3)
    (action,) = again.message["actions"]
    assert (again.message["step_id"], again.message["n"], action.get("mouse")) == asked


def test_frames_that_are_sent_again_are_taken_once_and_in_order():
    step = Step("x", (), 3, None, 5, 5)
    for frame_id, step_id in ((7, "x"), (5, "y"), (5, "x"), (7, "x"), (5, "x"), (6, "x"), (7, "x"), (8, "x")):
        step.take(header(frame_id, step_id), pixels(frame_id))
    assert [frame[0, 0, 0] for frame in step.frames] == [5, 6, 7]


def test_a_step_that_comes_too_early_is_asked_for_again():
    """A server whose outbox is full sends a step again only later."""
    wire = JsonWire()
    dialogue = Dialogue("http://there", None, wire)
    dialogue._know(
        {
            "session": {"id": "s", "mode": "stepped", "keys": [], "mouse": False, "fps": 30, "height": 1, "width": 2, "frames": 0},
            "resume_token": "t",
        }
    )  # fmt: skip
    talk, said = dialogue._stepping((), 2, None), []
    answers = [{"type": "error", "code": "busy", "message": "read first"}, {"type": "ack", "applied_at_frame": 0}, 0, 1]
    deed, waited = next(talk), 0.0
    try:
        while True:
            answer = None
            if isinstance(deed, Say):
                said.append(wire.hear(deed.data))
            elif isinstance(deed, Wait):
                waited += deed.seconds
            else:
                assert isinstance(deed, Listen)
                told, step_id = answers.pop(0), said[0]["step_id"]
                answer = (
                    wire.write_frames(header(told, step_id), [bytes(6)])
                    if isinstance(told, int)
                    else wire.say({**told, "event_id": step_id})
                )
            deed = talk.send(answer)
    except StopIteration as done:
        assert done.value.shape == (2, 1, 2, 3)
    assert len(said) == 2 and said[0] == said[1] and waited > 0 and dialogue.frame_id == 2


@pytest.mark.parametrize("wire", ["json", "msgpack"])
def test_a_client_for_asyncio_shows_what_a_script_is_shown(server, wanted, tmp_path, wire):
    async def play() -> None:
        async with await Client.connect(server.url, seed=5, codec="raw", wire=wire) as client:
            assert (client.shape, client.mode) == ((32, 32, 3), "stepped")
            first = await client.step(UP, 18)
            assert await client.kept() == [0, 15] and await client.seek(17) == 15
            np.testing.assert_array_equal(await client.step(UP, 3), wanted[15:18])
            async with await client.fork() as fork:
                np.testing.assert_array_equal(await client.step(UP, 2), await fork.step(UP, 2))
                assert not np.array_equal(await client.step(UP, 3), await fork.step(["ArrowLeft"], 3))
            await client.reset()
            again = client.step(UP, 18), client.step(UP, FRAMES - 18), client.step(frames=3)
            again = np.concatenate([await one for one in again])
            np.testing.assert_array_equal(again, wanted)
            np.testing.assert_array_equal(first, wanted[:18])
            path = await client.record(tmp_path / "a.zip", video=False)
            with pytest.raises(ServerError, match="--snapshots"):
                await client.snapshot()
            assert path.exists()

    asyncio.run(play())
    assert server.free_slots() == 2


def test_a_client_for_asyncio_goes_on_with_a_step_that_was_cut_or_cancelled(server, wanted, monkeypatch):
    async def play() -> None:
        async with await Client.connect(server.url, seed=5, codec="raw") as client:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await client.step(UP, 8)
            frames = [await client.step(UP, 8)]
            receive, count = client.socket.recv, itertools.count(1)

            async def listen() -> Any:
                if next(count) > 10:
                    client.socket.transport.abort()
                    while True:
                        await receive()
                return await receive()

            monkeypatch.setattr(client.socket, "recv", listen)
            with pytest.raises(ServerError, match="resume"):
                await client.step(UP, FRAMES - 8)
            await client.resume()
            assert client.frame_id == 8
            frames += [await client.finish(), await client.step(frames=3)]
            np.testing.assert_array_equal(np.concatenate(frames), wanted)
            await client.close(keep=True)
        async with await Client.connect(server.url, resume=(client.id, client.resume_token)) as again:
            assert again.frame_id == FRAMES + 3

    asyncio.run(play())


def test_a_script_plays_in_realtime(server):
    free = server.free_slots()
    with connect(server.url, seed=5, codec="raw", mode="realtime") as session:
        first, still = session.frame()
        assert still.shape == session.shape
        event = session.act(UP)
        heads = [first, *(head for head, _ in itertools.islice(session.frames(), 8))]
        assert [head.frame_id for head in heads] == sorted({head.frame_id for head in heads})
        assert heads[-1].last_event_id == event and session.frame_id == heads[-1].frame_id + 1
        assert server.service.lobby.get(session.id).session._launched_keys.sum() == 1
        assert session.seek(0) == 0
        session.act(["KeyZ"])
        with pytest.raises(ServerError, match="unknown_key"):
            while True:
                session.frame()
        for call in (session.step, session.finish):
            with pytest.raises(ServerError, match="wrong_mode|finished"):
                call()
    with connect(server.url) as stepped:
        for call in (stepped.act, stepped.frame):
            with pytest.raises(ServerError, match='wrong_mode.*connect with mode="realtime"'):
                call()
    assert server.free_slots() == free


def test_who_sleeps_sees_the_newest_frame_and_those_between_were_dropped(server):
    async def play() -> None:
        async with await Client.connect(server.url, codec="raw", mode="realtime") as client:
            before, _ = await client.frame()
            made = server.service.lobby.get(client.id).session
            while made.frames < before.frame_id + 12:
                await asyncio.sleep(0.01)
            head, _ = await client.frame()
            # Up to three were on their way before it slept; of the twelve a few were not made to the end when it woke.
            assert head.frame_id >= before.frame_id + 8 and head.dropped > 0

    asyncio.run(play())


def test_a_task_acts_while_another_looks_and_what_is_seen_obeys(server):
    async def play() -> dict[int, np.ndarray]:
        """The first frames of a dream begun anew while a key is held, by their number in it."""
        async with await Client.connect(server.url, seed=5, codec="raw", mode="realtime") as client:
            looking = asyncio.ensure_future(client.frame())
            event = await client.act(UP)
            await looking
            while (await client.frame())[0].last_event_id != event:
                pass
            await client.reset(seed=6)
            begun = client.frame_id
            shown = [await client.frame() for _ in range(6)]
            return {head.frame_id - begun: frame for head, frame in shown if begun <= head.frame_id < begun + FRAMES}

    seen = asyncio.run(play())
    with connect(server.url, seed=6, codec="raw") as one, connect(server.url, seed=6, codec="raw") as other:
        obeyed, still = one.step(UP, FRAMES), other.step(frames=FRAMES)
    assert seen
    for number, frame in seen.items():
        np.testing.assert_array_equal(frame, obeyed[number])
        assert not np.array_equal(frame, still[number])

"""Our own clients and the stream example, against the served tiny world."""

import ast
import asyncio
import importlib.util
from typing import Any

import av
import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from websockets.exceptions import ConnectionClosed

import wm_jax as wm
import wm_jax.client
from tests.serving.conftest import serving, tiny_prompts
from wm_jax.client import RemoteWorldEnv, ServerError, connect, open_session
from wm_jax.serving.recording import read_info


def test_the_client_streams_loss_free(server):
    async def play() -> list[np.ndarray]:
        async with open_session(server.url, mode="stepped", media={"codec": "png"}, init={"seed": 2}) as client:
            await client.send("step", step_id=0, n=5, actions=[["ArrowUp"]])
            frames = client.frames()
            return [(await anext(frames))[1] for _ in range(5)]

    first, second = asyncio.run(play()), asyncio.run(play())
    assert np.array_equal(first, second) and first[0].shape == (32, 32, 3)


def test_the_client_repeats_the_servers_refusal(server):
    async def play() -> None:
        async with open_session(server.url, model="mars"):
            raise AssertionError("a session of no model")

    with pytest.raises(ServerError, match="mars"):
        asyncio.run(play())


def test_a_session_that_the_server_ended_does_not_hide_why_its_block_was_left(server):
    async def play() -> None:
        async with open_session(server.url) as client:
            await asyncio.to_thread(server.delete, {"session_id": client.created["session"]["id"]})
            async for _ in client.frames():
                pass

    with pytest.raises(ConnectionClosed):
        asyncio.run(play())


def test_a_script_steps_goes_back_and_forks(server):
    with connect(server.url, seed=2) as session:
        assert session.shape == (32, 32, 3) and len(session.codes) == 4
        first = session.step(["ArrowUp"], frames=18)
        assert first.shape == (18, 32, 32, 3) and session.frame_id == 18
        assert session.kept() == [0, 15] and session.seek(17) == 15
        np.testing.assert_array_equal(session.step(["ArrowUp"], frames=3), first[15:])
        with session.fork() as fork:
            np.testing.assert_array_equal(fork.step(frames=2), session.step(frames=2))
        session.reset()
        np.testing.assert_array_equal(session.step(["ArrowUp"], frames=4), first[:4])
        with pytest.raises(ServerError, match="unknown_key"):
            session.step(["KeyZ"])
        with pytest.raises(ServerError, match="--snapshots"):
            session.snapshot()
    assert server.free_slots() == 2


def test_a_script_may_go_back_as_often_as_it_likes(server):
    with connect(server.url, seed=2) as session:
        session.step()
        assert {session.seek(0) for _ in range(100)} == {0}, "the server asks for patience, and is given it"


def test_a_script_does_not_wait_in_line():
    with serving(*wm.tiny_world(0), tiny_prompts(), slots=1, queue=1) as server, connect(server.url) as session:
        for another in (lambda: connect(server.url), session.fork):
            with pytest.raises(ServerError, match="all slots are taken"):
                another()
        session.step()
        assert len(server.service.lobby.states()) == 1


def test_a_script_that_hung_up_comes_back(server):
    alone = connect(server.url, seed=4)
    wanted = alone.step(frames=6)
    alone.close()
    session = connect(server.url, seed=4)
    first = session.step(frames=2)
    session.close(keep=True)
    with pytest.raises(ServerError, match="resume="):
        session.step()
    with session:
        """Its block ends no session that only hung up."""
    with connect(server.url, resume=(session.id, session.resume_token)) as again:
        assert again.frame_id == 2
        np.testing.assert_array_equal(np.concatenate([first, again.step(frames=4)]), wanted)


def test_a_remote_world_is_a_gymnasium_environment(server):
    spec = EnvSpec("RemoteWorld-v0", "wm_jax.client:RemoteWorldEnv", kwargs={"url": server.url, "max_steps": 5})
    env = gymnasium.make(spec, render_mode="rgb_array").unwrapped
    check_env(env)
    frames = []
    for _ in range(2):
        frame, info = env.reset(seed=3)
        frames.append([frame])
        for step in range(5):
            frame, reward, terminated, truncated, info = env.step(np.array([0, 1, 0, 0], np.int8))
            frames[-1].append(frame)
            assert (reward, terminated, truncated) == (0.0, False, step == 4)
        assert info["frame_id"] == 5 and info["session_id"] in server.service.lobby.epochs()
    np.testing.assert_array_equal(*frames)
    np.testing.assert_array_equal(env.render(), frames[1][-1])
    env.close()
    assert server.free_slots() == 2


def test_a_remote_world_begins_with_a_prompt_or_an_image(server):
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    starts: dict[str, dict[str, Any]] = {"usual": {}, "prompt": {"prompt": 1}, "image": {"image": image}}
    env, shown = RemoteWorldEnv(server.url), {}
    for name, options in (*starts.items(), ("again", None)):
        shown[name] = np.stack([env.reset(seed=3, options=options)[0], env.step(np.ones(4, np.int8))[0]])
    for name, start in starts.items():
        with connect(server.url, seed=3, **start) as session:
            np.testing.assert_array_equal(shown[name], [*session.step(), *session.step(session.codes)])
    np.testing.assert_array_equal(shown["again"], shown["usual"])
    assert len({one.tobytes() for one in shown.values()}) == 3
    with pytest.raises(ServerError, match="init.prompt"):
        env.reset(options={"prompt": 9})
    with pytest.raises(ValueError, match="no option snow; there are prompt, image"):
        env.reset(options={"snow": 1})
    np.testing.assert_array_equal(env.reset(seed=3)[0], shown["usual"][0])
    env.close()
    assert server.free_slots() == 2


def test_a_remote_world_with_a_mouse_takes_keys_and_mouse(mouse_server, told):
    env = RemoteWorldEnv(mouse_server.url)
    check_env(env, skip_render_check=True)
    told.clear()
    env.reset(seed=1)
    keys = np.zeros(23, np.int8)
    keys[[0, 4]] = 1
    env.step({"keys": keys, "mouse": np.array([0.25, -0.5], np.float32)})
    env.close()
    assert told == [([], [0.0, 0.0]), (["KeyW", "Space"], [0.25, -0.5])]


@pytest.mark.parametrize("served", ["server", "mouse_server"])
def test_the_stream_example_writes_every_frame(served, request, tmp_path, root):
    server = request.getfixturevalue(served)
    spec = importlib.util.spec_from_file_location("stream", root / "examples" / "stream.py")
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    asyncio.run(example.stream(example.StreamConfig(url=server.url, out=tmp_path / "d.mp4", frames=20)))
    with av.open(str(tmp_path / "d.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 20
    assert len((root / "examples" / "stream.py").read_text().splitlines()) < 40


def test_a_script_keeps_what_it_played(server, tmp_path):
    async def play() -> None:
        async with open_session(server.url, mode="stepped", media={"codec": "png"}) as client:
            await client.send("step", step_id=0, n=3)
            frames = client.frames()
            for _ in range(3):
                await anext(frames)
            await client.record(tmp_path / "b.zip", video=False)

    with connect(server.url, seed=2) as session:
        with pytest.raises(ServerError, match="no frame"):
            session.record(tmp_path / "none.zip")
        session.step(["ArrowUp"], frames=4)
        path = session.record(tmp_path / "a.zip")
    asyncio.run(play())
    told = [read_info(tmp_path / name) for name in ("a.zip", "b.zip")]
    assert path == tmp_path / "a.zip" and [info.frames for info in told] == [4, 3]
    assert [info.frames_sha256 is None for info in told] == [False, True] and not (tmp_path / "none.zip").exists()


def test_what_the_sign_on_the_door_shows_runs(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = (wm_jax.client.__doc__ or "").partition("\n\nfrom ")
    text = (shown[1] + shown[2]).strip().replace("http://127.0.0.1:8000", server.url).replace("range(16)", "range(2)")
    names: dict[str, Any] = {}
    asyncio.run(eval(compile(text, "sign", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names))
    assert names["frames"].shape == (30, 32, 32, 3) and names["frame"].shape == (32, 32, 3)
    assert [dream.shape for dream in names["dreams"]] == [(60, 32, 32, 3)] * 2
    assert read_info(tmp_path / "recording.zip").frames == 30 and server.free_slots() == 2

"""Our own client, the bench and the stream example, against the served tiny world."""

import asyncio
import importlib.util

import av
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed

from wm_jax.serving import bench
from wm_jax.serving.client import ServerError, open_session


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


def test_the_bench_measures_what_the_bars_name(server):
    numbers = bench.run(bench.BenchConfig(server.url, seconds=1.5, warmup=0.3))
    assert set(bench.BARS) <= set(numbers)
    assert numbers["fps"] > 5 and numbers["key_to_pixel_p50_ms"] > 0
    assert "gap_p99_ms" in bench.show(numbers) and "< 75" in bench.show(numbers)


def test_the_bench_says_when_its_server_did_not_start(tmp_path):
    with pytest.raises(ServerError, match=r"serve\.py ended with exit status 2"):
        bench.run(bench.BenchConfig(str(tmp_path / "no_world")))


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

"""Stream a world without losing a frame: python serve.py worlds/coinrun, then python examples/stream.py --out dream.mp4.
Stepped mode: the world waits for each `step`, so a slow script still gets every frame."""

import asyncio
import dataclasses
import random
from pathlib import Path

import tyro

from wm_jax.client import open_session
from wm_jax.serving.codec import Mp4Writer


@dataclasses.dataclass(frozen=True)
class StreamConfig:
    """Where to stream from, what to write, and how many frames under random keys."""

    url: str = "http://127.0.0.1:8000"
    out: Path = Path("dream.mp4")
    frames: int = 150
    seed: int = 0


async def stream(config: StreamConfig) -> None:
    async with open_session(config.url, mode="stepped", init={"seed": config.seed}, media={"codec": "png"}) as client:
        info, rng = client.created["session"], random.Random(config.seed)
        codes, frames = [key["code"] for key in info["keys"]], client.frames()
        with Mp4Writer(config.out, info["fps"], (info["height"], info["width"])) as video:
            for first in range(0, config.frames, 15):
                count = min(15, config.frames - first)
                look = {"mouse": [rng.uniform(-0.1, 0.1), 0.0]} if info["mouse"] else {}  # heights of the picture
                await client.send("step", step_id=first, n=count, actions=[{"held": rng.sample(codes, k=1), **look}])
                for _ in range(count):
                    video.write((await anext(frames))[1])


if __name__ == "__main__":
    asyncio.run(stream(tyro.cli(StreamConfig, description=__doc__)))

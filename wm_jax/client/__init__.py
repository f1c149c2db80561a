"""Plays a served world from Python: `connect` for scripts, `Client` for asyncio, `RemoteWorldEnv` for Gymnasium.

Never computes a frame: it only speaks wm.v1. Imports the protocol and the codecs of serving.

from wm_jax.client import Client, connect, roll_out

with connect("http://127.0.0.1:8000", seed=7) as session:
    frames = session.step(["ArrowRight"], frames=30)         # uint8 [30 h w 3], none dropped
    with session.fork() as other:                            # goes on as this one is
        other.step(["ArrowLeft"])
    session.seek(15)                                         # and this one goes back
    session.record("recording.zip")                          # all that decided its frames, and a video

with connect("http://127.0.0.1:8000", mode="realtime") as session:
    session.act(["ArrowRight"])                              # held from now on
    header, frame = session.frame()                          # the newest, uint8 [h w 3]

async with await Client.connect("http://127.0.0.1:8000", seed=7) as client:
    frames = await client.step(["ArrowRight"], frames=30)    # the same calls, awaited

scripts = [{"frames": 60, "init": {"seed": seed}} for seed in range(16)]
dreams = roll_out("http://127.0.0.1:8000", scripts)          # 16 times [60 h w 3], in slots that no player needs
"""

from wm_jax.client.asynchronous import Client, open_session
from wm_jax.client.env import RemoteWorldEnv
from wm_jax.client.recordings import roll_out
from wm_jax.client.session import Session, connect
from wm_jax.rest import ServerError

__all__ = ["Client", "RemoteWorldEnv", "ServerError", "Session", "connect", "open_session", "roll_out"]

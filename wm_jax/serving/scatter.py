"""Pixels and the turn that asked for them -> a frame ready for the outbox, with all its times."""

import time
from typing import Any

from jaxtyping import UInt8

from wm_jax.serving.codec import encode
from wm_jax.serving.outbox import EncodedFrame
from wm_jax.serving.protocol import FrameTimes
from wm_jax.serving.session import Session, Turn


def is_wanted(session: Session, turn: Turn) -> bool:
    """Whether anybody will see this frame; a stepped one always counts."""
    return session.mode == "stepped" or (session.is_connected and turn.frame_id % session.stride == 0)


def encode_turn(
    session: Session, turn: Turn, pixels: UInt8[Any, "h w 3"], step_s: float, host_s: float = 0.0
) -> tuple[EncodedFrame, float]:
    """The frame and the seconds that encoding it took."""
    began = time.perf_counter()
    payload = encode(pixels, session.codec, session.quality)
    encode_s = time.perf_counter() - began
    waited_s = 0.0 if turn.pressed_at is None else turn.taken_at - turn.pressed_at
    frame = EncodedFrame(
        payload=payload,
        codec=session.codec,
        width=pixels.shape[1],
        height=pixels.shape[0],
        frame_id=turn.frame_id,
        pts_ms=round(1e3 * turn.frame_id / session.fps, 3),
        event_id=turn.event_id,
        client_ts=turn.client_ts,
        step_id=turn.step_id,
        times=FrameTimes(
            queue=round(1e3 * waited_s, 2),
            step=round(1e3 * step_s, 2),
            encode=round(1e3 * encode_s, 2),
            host=round(1e3 * host_s, 3),
        ),
    )
    return frame, encode_s

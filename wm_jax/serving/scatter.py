"""Pixels and the turn that asked for them -> a frame ready for the outbox, with all its times."""

import time
from typing import Any

from jaxtyping import UInt8

from wm_jax.serving.codec import encode
from wm_jax.serving.outbox import EncodedFrame, Spent
from wm_jax.serving.session import Session, Turn


def is_wanted(session: Session, turn: Turn) -> bool:
    """Whether anybody will see this frame; a stepped one always counts."""
    return session.mode == "stepped" or (session.is_connected and turn.frame_id % session.stride == 0)


def encode_turn(
    session: Session, turn: Turn, pixels: UInt8[Any, "h w 3"], step_s: float, host_s: float = 0.0
) -> tuple[EncodedFrame, float]:
    """The frame, and the processor seconds that encoding it took."""
    began, began_cpu = time.perf_counter(), time.thread_time()
    # The batch lies in one array, and a game may draw its next frame into this one: what waits has pixels of its own.
    payload = pixels.copy() if session.wants_pixels else encode(pixels, session.codec, session.quality)
    encode_s, encode_cpu_s = time.perf_counter() - began, time.thread_time() - began_cpu
    waited_s = 0.0 if turn.pressed_at is None else turn.taken_at - turn.pressed_at
    frame = EncodedFrame(
        payload=payload,
        codec=session.codec,
        width=pixels.shape[1],
        height=pixels.shape[0],
        frame_id=turn.frame_id,
        pts_ms=turn.pts_ms,
        event_id=turn.event_id,
        client_ts=turn.client_ts,
        step_id=turn.step_id,
        spent=Spent(waited_s, step_s, encode_s, host_s),
    )
    return frame, encode_cpu_s

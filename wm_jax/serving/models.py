"""What a world tells about itself: the model list, a session's capabilities, the schema of its keys."""

import base64
import binascii
from typing import Any

from jaxtyping import UInt8

from wm_jax.serving.bodies import CreateSession, Limits, ModelInfo
from wm_jax.serving.codec import CODECS, decode_image
from wm_jax.serving.config import ServeConfig
from wm_jax.serving.protocol import (
    MAX_MOUSE,
    Capabilities,
    Codec,
    ErrorCode,
    KeyInfo,
    Mode,
    Refusal,
    SessionInfo,
    Source,
)
from wm_jax.serving.session import Opening, Session
from wm_jax.serving.video import offered_codecs
from wm_jax.world.playable import PlayableConfig


def keymap(world: PlayableConfig) -> list[KeyInfo]:
    """The world's keys, in the order of `raw`."""
    return [KeyInfo(code=key.code, label=key.label) for key in world.controls.keys]


def action_schema(world: PlayableConfig) -> dict[str, Any]:
    """JSON Schema of what an `action` may hold in this world."""
    codes = list(world.controls.codes)
    held = {"type": "array", "items": {"enum": codes}, "uniqueItems": True}
    inputs = {"held": held, "raw": _numbers(len(codes), 0, 1, "one a key, in this order")}
    if world.controls.has_mouse:
        inputs["mouse"] = _numbers(2, -MAX_MOUSE, MAX_MOUSE, "moved right and down, in heights of the frame; adds up")
    return {"type": "object", "properties": inputs, "oneOf": [{"required": ["held"]}, {"required": ["raw"]}]}


def _numbers(count: int, least: float, most: float, meaning: str) -> dict[str, Any]:
    """JSON Schema of this many numbers."""
    number = {"type": "number", "minimum": least, "maximum": most}
    return {"type": "array", "items": number, "minItems": count, "maxItems": count, "description": meaning}


def model_info(
    world: PlayableConfig, config: ServeConfig, sources: list[Source], scenes: int, takes_image: bool, free_slots: int
) -> ModelInfo:
    """The world as `GET /v1/models/{id}` shows it."""
    height, width = world.image
    return ModelInfo(
        id=world.name,
        fps=config.fps or world.fps,
        width=width,
        height=height,
        action_space=action_schema(world),
        keymap=keymap(world),
        prompts=scenes,
        image=takes_image,
        mouse=world.controls.has_mouse,
        fork=True,
        sources=sources,
        codecs=list(offered_codecs()),
        limits=Limits(
            slots=config.slots,
            slots_free=free_slots,
            credit_window=config.credit_window,
            max_step_frames=config.max_step_frames,
            messages_per_s=config.messages_per_s,
            max_message_bytes=config.max_message_bytes,
        ),
    )


def capabilities(
    world: PlayableConfig, config: ServeConfig, sources: list[Source], takes_image: bool, kept_frames: int
) -> Capabilities:
    """What a session may ask for."""
    return Capabilities(
        snapshot=config.snapshots is not None,
        image=takes_image,
        kept_frames=kept_frames,
        kept_every=config.history_every,
        mouse=world.controls.has_mouse,
        sources=sources,
        codecs=list(offered_codecs()),
        credit_window=config.credit_window,
        max_step_frames=config.max_step_frames,
        messages_per_s=config.messages_per_s,
        max_message_bytes=config.max_message_bytes,
    )


def session_info(world: PlayableConfig, session: Session, status: str) -> SessionInfo:
    """The session as its own client sees it."""
    height, width = world.image
    return SessionInfo(
        id=session.id,
        model=world.name,
        mode=session.mode,
        source=session.source,
        status=status,
        fps=session.fps,
        width=width,
        height=height,
        frames=session.frames,
        resumed_at=session.resumed_at,
        seed=session.opening.seed,
        codec=session.codec,
        keys=keymap(world),
        mouse=world.controls.has_mouse,
    )


def check_request(
    body: CreateSession, world: PlayableConfig, sources: list[Source], scenes: int, takes_image: bool
) -> Opening:
    """What the new session starts from.

    Raises:
      Refusal: another model, a source or a prompt that is not there, or an image that is not wanted or of another size.
    """
    if body.model not in (None, world.name):
        text = f"model {body.model!r} is not served here, {world.name!r} is"
        raise Refusal(ErrorCode.UNKNOWN_MODEL, text, param="model")
    if body.source not in sources:
        text = f"the real game {world.env!r} is not installed where this server runs: `make games` installs it"
        text = text if world.env else f"the world {world.name!r} has no real game to switch to"
        raise Refusal(ErrorCode.UNSUPPORTED, text, param="source")
    if body.init.prompt is not None and body.init.prompt >= scenes:
        text = f"prompt {body.init.prompt} does not exist, this world ships {scenes} (from 0)"
        raise Refusal(ErrorCode.UNSUPPORTED, text, param="init.prompt")
    if body.init.image is not None and not takes_image:
        raise Refusal(ErrorCode.UNSUPPORTED, "this world starts from noise and takes no image", param="init.image")
    image = None if body.init.image is None else _first_image(body.init.image, world)
    return Opening(seed=body.init.seed, prompt=body.init.prompt, image=image)


def check_codec(codec: Codec, mode: Mode) -> None:
    """Passes where frames of such a session can travel so.

    Raises:
      Refusal: they cannot, here or at all.
    """
    if codec not in offered_codecs():
        text = f"{codec} is not offered here (PyAV without libx264), {', '.join(offered_codecs())} are"
        raise Refusal(ErrorCode.UNSUPPORTED, text, param="media.codec")
    if codec not in CODECS and mode == "stepped":
        text = (
            f"{codec} is a stream, and a stepped session sends frames again when asked: {', '.join(CODECS)} can do that"
        )
        raise Refusal(ErrorCode.UNSUPPORTED, text, param="media.codec")


def _first_image(text: str, world: PlayableConfig) -> UInt8[Any, "h w 3"]:
    try:
        return decode_image(base64.b64decode(text.rpartition(",")[2], validate=True), world.image)
    except (ValueError, binascii.Error) as error:
        raise Refusal(ErrorCode.WRONG_IMAGE, str(error), param="init.image") from None

"""Keys and mouse of a player as the 25 columns of an action, and back."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from wm_jax.ports.open_oasis.config import ACTIONS, CAMERA
from wm_jax.types import Controls

LOOK_DEGREES = 70.0
"""What the view turns by when the mouse is moved by the height of a frame: the game's own field of view."""
FULL_DEGREES = 20.0
"""What the camera columns call 1. Source: VPT, whose recordings it was trained on."""
BUTTONS = tuple(i for i, name in enumerate(ACTIONS) if name not in CAMERA)
DOWN, RIGHT = (ACTIONS.index(name) for name in CAMERA)


def to_actions(controls: Controls) -> Float[Array, "*b 25"]:
    """The columns under these controls; the camera turns 20 degrees a frame at most, as in the recordings."""
    keys, mouse = jnp.asarray(controls.keys), jnp.asarray(controls.mouse)
    turned = jnp.clip(mouse.astype(jnp.float32) * jnp.float32(LOOK_DEGREES / FULL_DEGREES), -1.0, 1.0)
    columns: list[Array] = [turned[..., 0]] * len(ACTIONS)
    columns[DOWN] = turned[..., 1]
    for column, button in enumerate(BUTTONS):
        columns[button] = keys[..., column].astype(jnp.float32)
    return jnp.stack(columns, axis=-1)


def from_actions(actions: Float[Any, "*b 25"]) -> Controls:
    """The controls of recorded actions: what is more than half pressed is held.

    Raises:
      ValueError: there is another number of columns.
    """
    actions = jnp.asarray(actions)
    if actions.shape[-1:] != (len(ACTIONS),):
        raise ValueError(f"actions are {actions.shape}, they must have {len(ACTIONS)} columns: {', '.join(ACTIONS)}")
    mouse = jnp.stack([actions[..., RIGHT], actions[..., DOWN]], axis=-1) * jnp.float32(FULL_DEGREES / LOOK_DEGREES)
    return Controls(actions[..., jnp.asarray(BUTTONS)] > 0.5, mouse.astype(jnp.float32))

"""The nouns all rooms share: what a user may press, what a session is given, what training reads.

Axis letters here and everywhere: `b` batch or slot, `t` frames, `h w` pixels, `y x` latent grid, `s` tokens of one
frame, `j` condition tokens of one frame, `d` width, `n` heads, `g` key-value heads, `k` head size, `c` channels,
`l` layers, `r` ring entries.
"""

import dataclasses
from typing import Any

import flax.struct
from jaxtyping import Bool, Float, UInt8

Params = dict[str, Any]
"""Weights: a pytree of plain arrays; in our worlds layers are stacked on a leading axis."""


@dataclasses.dataclass(frozen=True)
class KeyBinding:
    """One key of a world.

    Attributes:
      code: The physical key, as `KeyboardEvent.code` names it ("ArrowLeft", "KeyW", "Space"): the name on the wire.
        "Mouse0", "Mouse1" and "Mouse2" are the left, middle and right button of the mouse.
      label: What it does, for people ("left", "jump").
    """

    code: str
    label: str


@dataclasses.dataclass(frozen=True)
class ControlSpace:
    """Everything a user can do during one frame of a world; column i of `Controls.keys` is `keys[i]`.

    Attributes:
      has_mouse: It listens to how far the mouse is moved.
    """

    keys: tuple[KeyBinding, ...]
    has_mouse: bool = False

    @property
    def codes(self) -> tuple[str, ...]:
        return tuple(key.code for key in self.keys)


@flax.struct.dataclass
class Controls:
    """What the user does during a frame; `controls[t]` is what leads to frame t.

    Attributes:
      keys: Held during the frame, one column a key of the world's `ControlSpace`. `[b keys]` for one frame,
        `[b t keys]` for many.
      mouse: How far the mouse was moved during the frame, right and down, in heights of the frame, so that it does not
        depend on the size of a window; None where the world has no mouse.
    """

    keys: Bool[Any, "b *t keys"]
    mouse: Float[Any, "b *t 2"] | None = None


@flax.struct.dataclass
class Prompt:
    """What a session is given once. Without frames the world dreams its first frame from noise.

    Attributes:
      frames: The first p frames of the session, or None.
      controls: What led to each of them, or None: unknown, which is what the world makes of it (ours learned a null).
    """

    frames: UInt8[Any, "b p h w 3"] | None = None
    controls: Controls | None = None


@flax.struct.dataclass
class Clip:
    """A cut of t frames of a recording.

    Attributes:
      frames: RGB.
      controls: `controls[t]` leads to frame t.
      is_first: Frame t starts an episode: its controls mean nothing and it does not follow frame t-1.
    """

    frames: UInt8[Any, "b t h w 3"]
    controls: Controls
    is_first: Bool[Any, "b t"]

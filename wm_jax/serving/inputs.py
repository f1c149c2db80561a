"""What a message holds -> what the world reads: a row of keys, and how far the mouse was moved; or a typed refusal."""

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool

from wm_jax.serving.protocol import MAX_MOUSE, ErrorCode, EventId, Held, Refusal
from wm_jax.types import ControlSpace

Mouse = tuple[float, float] | None
"""Right and down, in heights of the frame; None in a world without a mouse."""


class Input(NamedTuple):
    """What one frame is told: held keys, and the mouse, which is moved in this frame alone."""

    keys: Bool[Any, " keys"]
    mouse: Mouse


def moved(one: Mouse, other: Mouse) -> Mouse:
    """Both movements, one after the other."""
    return None if one is None or other is None else (one[0] + other[0], one[1] + other[1])


class InputReader:
    """Reads messages for one world.

    Attributes:
      still: A mouse that is not moved; None where the world has none.
    """

    def __init__(self, controls: ControlSpace) -> None:
        self.still: Mouse = (0.0, 0.0) if controls.has_mouse else None
        self._columns = {code: index for index, code in enumerate(controls.codes)}

    def nothing(self) -> Input:
        """No key, no movement."""
        return Input(np.zeros(len(self._columns), bool), self.still)

    def read(self, held: Held, event_id: EventId | None) -> Input:
        """What the world reads.

        Raises:
          Refusal: a key this world does not have, a row of another length, an input it does not listen to, or a mouse
            that is no movement.
        """
        if held.axes is not None:
            raise Refusal(ErrorCode.UNSUPPORTED, "this world does not listen to axes", param="axes", event_id=event_id)
        return Input(self._keys(held, event_id), self._mouse(held.mouse, event_id))

    def _mouse(self, mouse: list[float] | None, event_id: EventId | None) -> Mouse:
        if mouse is None:
            return self.still
        if self.still is None:
            code, text = ErrorCode.UNSUPPORTED, "this world listens to keys only, not to a mouse"
        elif len(mouse) != 2:
            code, text = ErrorCode.WRONG_DIMENSION, f"mouse has {len(mouse)} numbers, it is [right, down]"
        elif not all(math.isfinite(way) and abs(way) <= MAX_MOUSE for way in mouse):
            code = ErrorCode.BAD_MESSAGE
            text = f"mouse is {mouse}; it is counted in heights of the frame, at most {MAX_MOUSE:g} a message"
        else:
            return mouse[0], mouse[1]
        raise Refusal(code, text, param="mouse", event_id=event_id)

    def _keys(self, held: Held, event_id: EventId | None) -> Bool[Any, " keys"]:
        if held.raw is not None:
            return self._raw(held.raw, event_id)
        if held.held is None:
            text = "an action needs `held` (key names) or `raw` (one number a key)"
            raise Refusal(ErrorCode.BAD_MESSAGE, text, param="held", event_id=event_id)
        row = np.zeros(len(self._columns), bool)
        for code in held.held:
            column = self._columns.get(code)
            if column is None:
                text = f"key {code!r} is unknown, this world listens to {', '.join(self._columns)}"
                raise Refusal(ErrorCode.UNKNOWN_KEY, text, param="held", event_id=event_id)
            row[column] = True
        return row

    def _raw(self, raw: list[float], event_id: EventId | None) -> Bool[Any, " keys"]:
        if len(raw) != len(self._columns):
            text = f"raw has {len(raw)} numbers, this world has {len(self._columns)} keys: {', '.join(self._columns)}"
            raise Refusal(ErrorCode.WRONG_DIMENSION, text, param="raw", event_id=event_id)
        return np.asarray(raw) > 0.5

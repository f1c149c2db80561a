"""A ball in a box, in pure JAX: the smallest world, for tests and the quick start.

`start`, `move` and `draw` are functions that jit, vmap and scan; `BouncingBall` is the same world as a Gymnasium game.
Arrow keys push the ball, walls throw it back, nothing slows it down. Even levels are held out, odd ones are for training.
"""

from typing import Any, ClassVar

import flax.struct
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from wm_jax.envs.base import Frame, Game, Keys, Policy, Split, keys_of

SIZE = 32
RADIUS = 3.5
PUSH = 0.15
TOP_SPEED = 2.0
_WALL = 1.0
_COLOURS = ((255, 220, 60), (90, 220, 255), (255, 110, 160), (140, 255, 120))
_FLOOR, _BORDER = (24, 28, 48), (130, 130, 150)
_LEVELS = 2**30


@flax.struct.dataclass
class BallState:
    """Where the ball is.

    Attributes:
      position: x right, y down, in pixels.
      velocity: Pixels a frame.
      colour: Which of the colours.
    """

    position: Float[Array, "2"]
    velocity: Float[Array, "2"]
    colour: Int[Array, ""]


def start(level: Int[Array, ""] | int) -> BallState:
    """The first state of a level."""
    where, how, which = jax.random.split(jax.random.key(level), 3)
    low, high = _WALL + RADIUS, SIZE - _WALL - RADIUS
    return BallState(
        position=jax.random.uniform(where, (2,), minval=low, maxval=high),
        velocity=jax.random.uniform(how, (2,), minval=-TOP_SPEED, maxval=TOP_SPEED) * 0.6,
        colour=jax.random.randint(which, (), 0, len(_COLOURS)),
    )


def move(state: BallState, keys: Bool[Array, "4"]) -> BallState:
    """One frame later, with left, right, up and down held or not."""
    left, right, up, down = keys.astype(jnp.float32)
    velocity = state.velocity + PUSH * jnp.stack([right - left, down - up])
    velocity = jnp.clip(velocity, -TOP_SPEED, TOP_SPEED)
    position = state.position + velocity
    low, high = _WALL + RADIUS, SIZE - _WALL - RADIUS
    bounced = (position < low) | (position > high)
    position = jnp.where(position < low, 2 * low - position, position)
    position = jnp.where(position > high, 2 * high - position, position)
    velocity = jnp.where(bounced, -velocity, velocity)
    return state.replace(position=position, velocity=velocity)  # type: ignore[attr-defined]


def draw(state: BallState) -> UInt8[Array, "h w 3"]:
    """The picture of a state; the edge of the ball is smooth, so that half a pixel of motion shows."""
    centre = jnp.arange(SIZE, dtype=jnp.float32) + 0.5
    inside = (centre > _WALL) & (centre < SIZE - _WALL)
    room = (inside[:, None] & inside[None, :])[..., None]
    picture = jnp.where(room, jnp.array(_FLOOR, jnp.float32), jnp.array(_BORDER, jnp.float32))
    away = jnp.hypot(centre[None, :] - state.position[0], centre[:, None] - state.position[1])
    cover = jnp.clip(RADIUS + 0.5 - away, 0.0, 1.0)[..., None]
    colour = jnp.array(_COLOURS, jnp.float32)[state.colour]
    return jnp.round(picture * (1 - cover) + colour * cover).astype(jnp.uint8)


@jax.jit
def _start_and_draw(level: Int[Array, ""]) -> tuple[BallState, Array]:
    state = start(level)
    return state, draw(state)


@jax.jit
def _move_and_draw(state: BallState, keys: Bool[Array, "4"]) -> tuple[BallState, Array]:
    state = move(state, keys)
    return state, draw(state)


class BouncingBall(Game):
    """Push the ball around its box. It never ends."""

    controls = keys_of(
        ("ArrowLeft", "push left"), ("ArrowRight", "push right"), ("ArrowUp", "push up"), ("ArrowDown", "push down")
    )
    combos: ClassVar[dict[tuple[str, ...], float]] = {
        (): 2.0,
        ("ArrowLeft",): 1.0,
        ("ArrowRight",): 1.0,
        ("ArrowUp",): 1.0,
        ("ArrowDown",): 1.0,
        ("ArrowLeft", "ArrowUp"): 0.5,
        ("ArrowLeft", "ArrowDown"): 0.5,
        ("ArrowRight", "ArrowUp"): 0.5,
        ("ArrowRight", "ArrowDown"): 0.5,
    }

    def __init__(self, *, split: Split = "train", render_mode: str | None = None):
        super().__init__((SIZE, SIZE), 30.0, split, render_mode)
        self._state: BallState | None = None
        self._level = -1

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frame, dict[str, Any]]:
        gymnasium.Env.reset(self, seed=seed)
        odd = self.split == "train"
        self._level = self.choose_level(options, 0, _LEVELS)
        if self._level % 2 != odd:
            if options and "level" in options:
                raise ValueError(
                    f"level {self._level} is not one of the {self.split} levels: those are {'odd' if odd else 'even'}"
                )
            self._level ^= 1
        self._state, frame = _start_and_draw(jnp.int32(self._level))
        self._frame = np.array(frame)
        return self._frame, self._info()

    def step(self, action: Keys) -> tuple[Frame, float, bool, bool, dict[str, Any]]:
        self.held(action)
        if self._state is None:
            raise gymnasium.error.ResetNeeded("no level is being played: call reset()")
        self._state, frame = _move_and_draw(self._state, jnp.asarray(action, bool))
        self._frame = np.array(frame)
        return self._frame, 0.0, False, False, self._info()

    def runner(self, rng: np.random.Generator) -> Policy:
        """Drives the ball towards one random place after another."""
        target = rng.uniform(RADIUS, SIZE - RADIUS, 2)

        def towards(frame: np.ndarray, info: dict[str, Any]) -> np.ndarray:
            nonlocal target
            if rng.random() < 0.05:
                target = rng.uniform(RADIUS, SIZE - RADIUS, 2)
            x, y = target - np.array(info["position"]) - 4 * np.array(info["velocity"])
            return np.array([x < -1, x > 1, y < -1, y > 1])

        return towards

    def _info(self) -> dict[str, Any]:
        assert self._state is not None
        position, velocity = np.asarray(self._state.position), np.asarray(self._state.velocity)
        return {"level": self._level, "position": tuple(position.tolist()), "velocity": tuple(velocity.tolist())}

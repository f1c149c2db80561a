"""What is asked of a world by start, step, rollout, put and take: of ours (`World`), and of those in `wm_jax.ports`."""

from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import jax
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from wm_jax.types import Controls, ControlSpace, Params


@runtime_checkable
class PlayableConfig(Protocol):
    """What is known of a world without looking inside.

    Attributes:
      name: For people and for the model list.
      env: The real game it was recorded from, a name of `wm_jax.envs`; empty where there is none.
      image: Height and width of a frame in pixels.
      fps: Frames a second at which it is played.
      controls: What a player can do.
      latent_shape: Of a frame `[y x c]`.
      longest_prompt: Frames that a prompt may have.
    """

    @property
    def name(self) -> str: ...
    @property
    def env(self) -> str: ...
    @property
    def image(self) -> tuple[int, int]: ...
    @property
    def fps(self) -> float: ...
    @property
    def controls(self) -> ControlSpace: ...
    @property
    def latent_shape(self) -> tuple[int, int, int]: ...
    @property
    def longest_prompt(self) -> int: ...


@runtime_checkable
class PlayableState(Protocol):
    """All that a batch of sessions remembers: a pytree of arrays, of which two are known to everybody.

    Attributes:
      frame: Index of each session's next frame.
      key: Random key of each session.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def frame(self) -> Int[Array, " b"]: ...
    @property
    def key(self) -> Key[Array, " b"]: ...

    def slot_axes(self) -> Any:
        """A tree of the same form that names the slot axis of every leaf."""
        ...


State = TypeVar("State", bound=PlayableState)


@runtime_checkable
class Playable(Protocol[State]):
    """The static half of a world: hashable, the same for all sessions. Its last two methods are traced.

    Attributes:
      noises: How many arrays of noise, each of the shape of a latent, a frame is made of.
      is_prompt_blurred: Whether the frames of a prompt are remembered with noise, one array each.
      takes_image: Whether it goes on from any single image, and does not need the first frames that ship with it.
    """

    noises: ClassVar[int]
    is_prompt_blurred: ClassVar[bool]
    takes_image: ClassVar[bool]

    @property
    def config(self) -> PlayableConfig: ...

    def shapes(self) -> Params:
        """The tree of weights as shapes, without making them."""
        ...

    def for_playing(self, params: Params) -> Params:
        """The weights as playing reads them."""
        ...

    def empty(self, batch: int, key: jax.Array) -> State:
        """A batch of slots that have shown nothing yet, with these keys, one a row."""
        ...

    def see(
        self,
        params: Params,
        frames: UInt8[Array, "b p h w 3"],
        controls: Controls,
        is_known: Bool[Array, "b p"],
        seen: State,
        noise: Float[Array, "b p y x c"] | None,
    ) -> State:
        """The state after a prompt; where `is_known` is false nobody knows what led to a frame."""
        ...

    def next_frame(
        self,
        params: Params,
        past: State,
        controls: Controls,
        active: Bool[Array, " b"],
        noise: Float[Array, "b m y x c"],
    ) -> tuple[State, UInt8[Array, "b h w 3"]]:
        """The state after the next frame, and the frame; draws nothing. What is not `active` keeps its state to the bit."""
        ...

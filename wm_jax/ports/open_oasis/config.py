"""What Oasis-500M is, as numbers; smaller ones are the same with other numbers."""

import dataclasses
from typing import Literal, get_args

from wm_jax.types import ControlSpace, KeyBinding

ACTIONS = (
    "inventory", "ESC",
    *(f"hotbar.{i}" for i in range(1, 10)),
    "forward", "back", "left", "right",
    "cameraX", "cameraY",
    "jump", "sneak", "sprint", "swapHands", "attack", "use", "pickItem", "drop",
)  # fmt: skip
"""The columns of an action: 0 or 1, the two of the camera in [-1, 1]."""
CAMERA = ("cameraX", "cameraY")
"""How far the view turns down and right: the published program takes them from the recordings in this order."""
# As Minecraft has them, but for what a browser keeps for itself: Escape frees the mouse, Control with W closes the page.
_KEYS = {
    "inventory": "KeyE", "ESC": "KeyM", **{f"hotbar.{i}": f"Digit{i}" for i in range(1, 10)},
    "forward": "KeyW", "back": "KeyS", "left": "KeyA", "right": "KeyD",
    "jump": "Space", "sneak": "ShiftLeft", "sprint": "KeyC", "swapHands": "KeyF",
    "attack": "Mouse0", "use": "Mouse2", "pickItem": "Mouse1", "drop": "KeyQ",
}  # fmt: skip
_LABELS = {"ESC": "menu", "swapHands": "swap", "pickItem": "pick item"}
CONTROLS = ControlSpace(
    tuple(KeyBinding(_KEYS[name], _LABELS.get(name, name.replace(".", " "))) for name in ACTIONS if name not in CAMERA),
    has_mouse=True,
)
"""What a player has: a key for every column but the camera's, and the mouse."""
EightBits = Literal["int8", "float8_e4m3fn"]
EIGHT_BITS: tuple[EightBits, ...] = get_args(EightBits)
Solver = Literal["ddim", "dpmpp2m"]
SOLVERS: tuple[Solver, ...] = get_args(Solver)


def _check_heads(width: int, heads: int, parts: int, what: str) -> None:
    if width % heads or (width // heads) % parts:
        raise ValueError(f"{what}: width {width} over {heads} heads does not give heads of a multiple of {parts}")


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """The diffusion transformer. Each of its layers is a half that sees its own frame and one that sees its own site.

    Attributes:
      depth: Layers.
      width: Channels of a token.
      heads: Attention heads of both halves.
      hidden: Channels inside an MLP.
      patch: Latent cells a side of a token.
      channels: Of a latent.
      actions: Columns of an action.
      frequencies: Cosines and sines of the timestep together.
      window_frames: How many past frames a frame may see: the published `max_frames` less the frame itself.
      dtype: In which it is played.
      weights: In which the large weights of its layers are kept to be played, and their inputs rounded to: "int8" or
        "float8_e4m3fn"; None: in `dtype`.
    """

    depth: int = 16
    width: int = 1024
    heads: int = 16
    hidden: int = 4096
    patch: int = 2
    channels: int = 16
    actions: int = len(ACTIONS)
    frequencies: int = 256
    window_frames: int = 31
    dtype: str = "float32"
    weights: EightBits | None = None

    def __post_init__(self):
        _check_heads(self.width, self.heads, 4, "transformer")
        if self.weights not in (None, *EIGHT_BITS):
            raise ValueError(f"weights is {self.weights!r}: it must be None or one of {', '.join(EIGHT_BITS)}")
        if self.window_frames < 1:
            raise ValueError(f"window_frames is {self.window_frames}: a frame sees one past frame at least")

    @property
    def head_size(self) -> int:
        return self.width // self.heads


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
    """The autoencoder of single frames, one token a latent cell.

    Attributes:
      image: Height and width of a frame in pixels.
      patch: Pixels a side of a latent cell.
      width: Channels of a token.
      heads: Attention heads.
      hidden: Channels inside an MLP.
      encoder_depth: Layers from pixels to latents.
      decoder_depth: Layers back.
      channels: Of a latent.
      dtype: In which it is played.
    """

    image: tuple[int, int] = (360, 640)
    patch: int = 20
    width: int = 1024
    heads: int = 16
    hidden: int = 4096
    encoder_depth: int = 6
    decoder_depth: int = 12
    channels: int = 16
    dtype: str = "float32"

    def __post_init__(self):
        _check_heads(self.width, self.heads, 8, "autoencoder")
        if self.image[0] % self.patch or self.image[1] % self.patch:
            raise ValueError(f"image {self.image} cannot be cut into patches of {self.patch} pixels")

    @property
    def grid(self) -> tuple[int, int]:
        """Latent cells down and across."""
        return self.image[0] // self.patch, self.image[1] // self.patch


@dataclasses.dataclass(frozen=True)
class OasisConfig:
    """The whole world; the defaults are those of the released one.

    Attributes:
      name: For people and for messages.
      fps: Frames a second at which it is played.
      transformer: What happens next.
      autoencoder: Pixels to latents and back.
      latent_scale: The transformer's latents are the autoencoder's times this.
      context_timestep: The noise that the past is labelled with, of `timesteps`; the past itself is clean.
      timesteps: Of the diffusion that it was trained on.
      steps: Denoising passes a frame.
      solver: What brings a frame from pass to pass: "ddim" as published, or "dpmpp2m" (DPM-Solver++ 2M), which remembers the
        pass before and needs fewer of them.
      noise_limit: The noise that a frame starts from is clipped to this.
    """

    name: str = "oasis-500m"
    fps: float = 20.0
    transformer: TransformerConfig = TransformerConfig()
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    latent_scale: float = 0.07843137255
    context_timestep: int = 14
    timesteps: int = 1000
    steps: int = 10
    solver: Solver = "ddim"
    noise_limit: float = 20.0

    def __post_init__(self):
        grid, patch = self.autoencoder.grid, self.transformer.patch
        if grid[0] % patch or grid[1] % patch:
            raise ValueError(f"a latent grid of {grid} cannot be cut into patches of {patch}")
        if self.transformer.channels != self.autoencoder.channels:
            raise ValueError(
                f"the transformer's latents have {self.transformer.channels} channels, the autoencoder's "
                f"{self.autoencoder.channels}"
            )
        if self.transformer.actions != len(ACTIONS):
            raise ValueError(f"the transformer knows {self.transformer.actions} actions, Oasis has {len(ACTIONS)}")
        if self.solver not in SOLVERS:
            raise ValueError(f"solver is {self.solver!r}: it must be one of {', '.join(SOLVERS)}")
        if not 1 <= self.steps <= self.timesteps:
            raise ValueError(f"steps is {self.steps}: it must be 1 to {self.timesteps}")

    @property
    def env(self) -> str:
        """No game of `wm_jax.envs`."""
        return ""

    @property
    def controls(self) -> ControlSpace:
        return CONTROLS

    @property
    def image(self) -> tuple[int, int]:
        return self.autoencoder.image

    @property
    def longest_prompt(self) -> int:
        return self.transformer.window_frames + 1

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return *self.autoencoder.grid, self.autoencoder.channels

    @property
    def cells(self) -> tuple[int, int]:
        """Tokens of the transformer down and across."""
        patch = self.transformer.patch
        return self.autoencoder.grid[0] // patch, self.autoencoder.grid[1] // patch


RELEASED = OasisConfig()
"""Oasis-500M as it was released."""

"""The inverse-dynamics model: a small convolutional network that tells from a few frames which keys led to one of them.

It is trained once (`inverse_training.py`) and kept beside the world, so that its judgement is the same wherever that world is
evaluated.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from wm_jax import checkpoint
from wm_jax.eval.control import Head, heads_of
from wm_jax.types import ControlSpace, KeyBinding, Params

OFFSETS = (-5, -3, -2, -1, 0, 1, 2, 3)
LARGEST = 64
FORMAT = "wm_jax.inverse_dynamics.1"


@dataclasses.dataclass(frozen=True)
class Inverse:
    """A trained model.

    Attributes:
      controls: The keys it knows.
      image: Height and width of the frames it was trained on.
      params: Weights.
      facts: How it was trained, for reports.
    """

    controls: ControlSpace
    image: tuple[int, int]
    params: Params
    facts: dict[str, Any]

    @property
    def heads(self) -> tuple[Head, ...]:
        return heads_of(self.controls)

    def likely(self, windows: UInt8[np.ndarray, "n t h w 3"], rows: int = 128) -> list[Float[np.ndarray, "n classes"]]:
        """For each head, how likely each class led to the frame at offset 0, all classes being equally frequent."""
        sizes, parts = tuple(head.classes for head in self.heads), []
        for start in range(0, len(windows), rows):
            part = windows[start : start + rows]
            padded = np.pad(part, ((0, rows - len(part)), *[(0, 0)] * 4))
            parts.append(np.asarray(_answer(self.params, padded))[: len(part)])
        logits = np.concatenate(parts)
        return [_softmax(part) for part in np.split(logits, np.cumsum(sizes)[:-1], axis=-1)]


def windows_of(frames: UInt8[np.ndarray, "b t h w 3"], places: range) -> UInt8[np.ndarray, "b places window h w 3"]:
    """The frames around each place; beyond an end of the clip its last frame repeats."""
    around = np.asarray(places)[:, None] + np.asarray(OFFSETS)[None]
    return frames[:, np.clip(around, 0, frames.shape[1] - 1)]


def init(heads: tuple[Head, ...], image: tuple[int, int], key: jax.Array) -> Params:
    """First weights for frames of this size."""
    shapes = {"conv0": (5, 5, len(OFFSETS), 32), "conv1": (3, 3, 32, 48), "conv2": (3, 3, 48, 32)}
    height, width = (-(-side // shrink_of(image)) for side in image)
    cells = -(-height // 8) * -(-width // 8)
    shapes |= {"hidden": (cells * 32, 128), "answer": (128, sum(head.classes for head in heads))}
    keys = jax.random.split(key, len(shapes))
    params: Params = {}
    for (name, shape), k in zip(shapes.items(), keys, strict=True):
        scale = 0.0 if name == "answer" else np.sqrt(2 / np.prod(shape[:-1]))
        kernel = jnp.float32(scale) * jax.random.normal(k, shape, jnp.float32)
        params[name] = {"kernel": kernel, "bias": jnp.zeros(shape[-1:], jnp.float32)}
    return params


def shrink_of(image: tuple[int, int]) -> int:
    """How many pixels a side are averaged into one, so that 64 at most are left."""
    return max(1, -(-max(image) // LARGEST))


def apply(params: Params, grey: Float[jax.Array, "b t h w"]) -> Float[jax.Array, "b classes"]:
    """Logits of all heads side by side, from windows that went through `greyed`."""
    x = _motion(grey)
    for name in ("conv0", "conv1", "conv2"):
        layer = params[name]
        x = jax.lax.conv_general_dilated(x, layer["kernel"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = jax.nn.silu(x + layer["bias"][None, None, None])
    x = x.reshape(x.shape[0], -1)
    x = (x - x.mean(-1, keepdims=True)) / (x.std(-1, keepdims=True) + 1e-3)
    x = jax.nn.silu(x @ params["hidden"]["kernel"] + params["hidden"]["bias"][None])
    return x @ params["answer"]["kernel"] + params["answer"]["bias"][None]


def greyed(windows: UInt8[jax.Array, "b t h w 3"]) -> Float[jax.Array, "b t h w"]:
    """Brightness from -1 to 1, large frames shrunk."""
    grey = windows.astype(jnp.float32).mean(-1) / 127.5 - 1
    cell = shrink_of((grey.shape[2], grey.shape[3]))
    if cell == 1:
        return grey
    grey = jnp.pad(grey, ((0, 0), (0, 0), (0, -grey.shape[2] % cell), (0, -grey.shape[3] % cell)), mode="edge")
    b, t, h, w = grey.shape
    return grey.reshape(b, t, h // cell, cell, w // cell, cell).mean((3, 5))


def _motion(grey):
    """The changes from frame to frame and the frame in question, as channels `[b h w t]`."""
    now = grey[:, OFFSETS.index(0)][:, None]
    return jnp.moveaxis(jnp.concatenate([3 * (grey[:, 1:] - grey[:, :-1]), now], axis=1), 1, -1)


@jax.jit
def _answer(params, windows):
    return apply(params, greyed(windows))


def _softmax(logits: np.ndarray) -> np.ndarray:
    likely = np.exp(logits - logits.max(-1, keepdims=True))
    return likely / likely.sum(-1, keepdims=True)


def save(inverse: Inverse, path: Path) -> None:
    """Writes weights (half precision) and facts into one safetensors file, whole or not at all."""
    from safetensors.numpy import save_file

    flat = {f"{layer}.{name}": np.asarray(leaf, np.float16)
            for layer, leaves in inverse.params.items() for name, leaf in leaves.items()}  # fmt: skip
    keys = [[key.code, key.label] for key in inverse.controls.keys]
    facts = {"format": FORMAT, "keys": json.dumps(keys), "image": json.dumps(inverse.image),
             "facts": json.dumps(inverse.facts)}  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    save_file(flat, unfinished, metadata=facts)
    unfinished.rename(path)


def load(path: Path) -> Inverse:
    """What `save` wrote.

    Raises:
      ValueError: the file is broken, of another kind, or weights are missing or of another shape.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.numpy import load_file

    try:
        with safe_open(path, framework="numpy") as file:
            facts = file.metadata() or {}
        flat = {name: leaf.astype(np.float32) for name, leaf in load_file(path).items()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: is broken or cut off ({error})") from error
    if facts.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {facts.get('format')!r}, this wm_jax reads {FORMAT!r}: train it again "
            f"(python -m wm_jax.eval.inverse_training)"
        )
    controls = ControlSpace(tuple(KeyBinding(*key) for key in json.loads(facts["keys"])))
    params: Params = {}
    for name, leaf in flat.items():
        layer, kind = name.split(".")
        params.setdefault(layer, {})[kind] = leaf
    height, width = json.loads(facts["image"])
    inverse = Inverse(controls, (height, width), params, json.loads(facts["facts"]))
    wanted = jax.eval_shape(lambda: init(inverse.heads, inverse.image, jax.random.key(0)))
    checkpoint.check_tree(wanted, params, path)
    return inverse

"""The released tensors by name: what there must be, and how our arrays are made of them. Nothing is ever unpickled."""

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wm_jax import checkpoint
from wm_jax.checkpoint import CheckpointError
from wm_jax.ports.open_oasis import layers
from wm_jax.ports.open_oasis.config import AutoencoderConfig, OasisConfig, TransformerConfig
from wm_jax.ports.open_oasis.transformer import HIGHEST_RATE
from wm_jax.types import Params

FILES = {"transformer": "oasis500m.safetensors", "autoencoder": "vit-l-20.safetensors"}
RATES_ROUNDED_TO = 1e-2
"""A release in bfloat16 has its rates rounded to this; what they are rounded from is known."""


@dataclasses.dataclass(frozen=True)
class Source:
    """What one array of ours is made of.

    Attributes:
      name: The released tensor.
      shape: Of the released tensor.
      arrange: From the released order of axes to ours.
    """

    name: str
    shape: tuple[int, ...]
    arrange: Callable[[np.ndarray], np.ndarray]

    def ours(self) -> tuple[int, ...]:
        """The shape of our array."""
        return self.arrange(np.broadcast_to(np.float32(0), self.shape)).shape


def sources(config: OasisConfig) -> dict[str, dict[str, Source]]:
    """Of every array of ours by its path, room by room."""
    return {
        "transformer": dict(_transformer(config.transformer)),
        "autoencoder": dict(_autoencoder(config.autoencoder)),
    }


def shapes(config: OasisConfig) -> Params:
    """The tree of our arrays as shapes."""

    def shape(source):
        return jax.ShapeDtypeStruct(source.ours(), jnp.float32)

    return {
        room: checkpoint.nest_tree({path: shape(source) for path, source in table.items()})
        for room, table in sources(config).items()
    }


def read(folder: Path, config: OasisConfig) -> Params:
    """Our arrays from the two released files; the rotary buffers may be among them or not.

    Raises:
      CheckpointError: as `check`.
    """
    opened = check(folder, config)
    return {
        room: checkpoint.nest_tree({path: _ours(opened[room], source) for path, source in table.items()})
        for room, table in sources(config).items()
    }


def check(folder: Path, config: OasisConfig) -> dict[str, Any]:
    """The two files, opened, no tensor read but the rotary buffers.

    Raises:
      CheckpointError: a file is missing or broken; tensors are missing, extra or mis-shaped, all of both files named;
        rotary buffers that say other rates than the published ones.
    """
    rates = _rotary_rates(config)
    opened = {room: _open(folder / file) for room, file in FILES.items()}
    found = {room: _shapes(file) for room, file in opened.items()}
    expected = {
        room: {source.name: source.shape for source in table.values()} for room, table in sources(config).items()
    }
    rotary = [name for name in rates if name in found["transformer"]]
    expected["transformer"] |= {name: rates[name].shape for name in rotary}
    checkpoint.check_tree(_by_file(expected), _by_file(found), folder)
    given = {name: opened["transformer"].get_tensor(name) for name in rotary}
    _check_rotary(given, rates, folder / FILES["transformer"])
    return opened


def geometry(folder: Path, config: OasisConfig) -> OasisConfig:
    """`config` with all that the released files themselves tell: depths, widths, patches; heads where rotary buffers are.

    Image, window and the autoencoder's heads stand in no tensor.

    Raises:
      CheckpointError: a file is missing or broken, or has not even the tensors that tell.
    """
    net, eye = (_shapes(_open(folder / FILES[room])) for room in ("transformer", "autoencoder"))
    try:
        width, channels, patch, _ = net["x_embedder.proj.weight"]
        heads = config.transformer.heads
        if "temporal_rotary_emb.freqs" in net:
            heads = width // (2 * net["temporal_rotary_emb.freqs"][0])
        transformer = dataclasses.replace(
            config.transformer,
            depth=_depth(net, "blocks"),
            width=width,
            heads=heads,
            hidden=net["blocks.0.s_mlp.fc1.weight"][0],
            patch=patch,
            channels=channels,
            actions=net["external_cond.weight"][1],
            frequencies=net["t_embedder.mlp.0.weight"][1],
        )
        autoencoder = dataclasses.replace(
            config.autoencoder,
            patch=eye["patch_embed.proj.weight"][2],
            width=eye["patch_embed.proj.weight"][0],
            hidden=eye["encoder.0.mlp.fc1.weight"][0],
            encoder_depth=_depth(eye, "encoder"),
            decoder_depth=_depth(eye, "decoder"),
            channels=eye["post_quant_conv.weight"][1],
        )
    except KeyError as error:
        raise CheckpointError(
            f"{folder}: no geometry can be read from these files, tensor {error} is missing"
        ) from error
    return dataclasses.replace(config, transformer=transformer, autoencoder=autoencoder)


def _transformer(config: TransformerConfig) -> Iterator[tuple[str, Source]]:
    width, hidden, token = config.width, config.hidden, config.channels * config.patch**2
    yield "embed/kernel", Source("x_embedder.proj.weight", (width, config.channels, config.patch, config.patch), _cells)
    yield "embed/bias", Source("x_embedder.proj.bias", (width,), _as_it_is)
    yield from _linear("timestep/hidden", "t_embedder.mlp.0", config.frequencies, width)
    yield from _linear("timestep/out", "t_embedder.mlp.2", width, width)
    yield from _linear("action", "external_cond", config.actions, width)
    for i, (half, letter) in itertools.product(range(config.depth), (("space", "s"), ("time", "t"))):
        ours, theirs = f"blocks/{i}/{half}", f"blocks.{i}.{letter}"
        yield from _linear(f"{ours}/modulation", f"{theirs}_adaLN_modulation.1", width, 6 * width)
        yield from list(_linear(f"{ours}/qkv", f"{theirs}_attn.to_qkv", width, 3 * width))[:1]
        yield from _linear(f"{ours}/merge", f"{theirs}_attn.to_out", width, width)
        yield from _linear(f"{ours}/mlp/hidden", f"{theirs}_mlp.fc1", width, hidden)
        yield from _linear(f"{ours}/mlp/out", f"{theirs}_mlp.fc2", hidden, width)
    yield from _linear("head_modulation", "final_layer.adaLN_modulation.1", width, 2 * width)
    yield from _linear("head", "final_layer.linear", width, token)


def _autoencoder(config: AutoencoderConfig) -> Iterator[tuple[str, Source]]:
    width, patch, pixels = config.width, config.patch, 3 * config.patch**2
    yield "embed/kernel", Source("patch_embed.proj.weight", (width, 3, patch, patch), _cells)
    yield "embed/bias", Source("patch_embed.proj.bias", (width,), _as_it_is)
    rooms = [("encoder", i) for i in range(config.encoder_depth)] + [
        ("decoder", i) for i in range(config.decoder_depth)
    ]
    for room, i in rooms:
        ours, theirs = f"{room}/{i}", f"{room}.{i}"
        yield from _norm(f"{ours}/norm", f"{theirs}.norm1", width)
        yield from _linear(f"{ours}/qkv", f"{theirs}.attn.qkv", width, 3 * width)
        yield from _linear(f"{ours}/merge", f"{theirs}.attn.proj", width, width)
        yield from _norm(f"{ours}/mlp_norm", f"{theirs}.norm2", width)
        yield from _linear(f"{ours}/mlp/hidden", f"{theirs}.mlp.fc1", width, config.hidden)
        yield from _linear(f"{ours}/mlp/out", f"{theirs}.mlp.fc2", config.hidden, width)
    yield from _norm("encoder_norm", "enc_norm", width)
    yield from _linear("to_latent", "quant_conv", width, 2 * config.channels)
    yield from _linear("from_latent", "post_quant_conv", config.channels, width)
    yield from _norm("decoder_norm", "dec_norm", width)
    yield "to_pixels/kernel", Source("predictor.weight", (pixels, width), _pixels)
    yield "to_pixels/bias", Source("predictor.bias", (pixels,), _pixels)


def _linear(ours: str, theirs: str, inputs: int, outputs: int):
    yield f"{ours}/kernel", Source(f"{theirs}.weight", (outputs, inputs), np.transpose)
    yield f"{ours}/bias", Source(f"{theirs}.bias", (outputs,), _as_it_is)


def _norm(ours: str, theirs: str, width: int):
    yield f"{ours}/gain", Source(f"{theirs}.weight", (width,), _as_it_is)
    yield f"{ours}/bias", Source(f"{theirs}.bias", (width,), _as_it_is)


def _as_it_is(tensor: np.ndarray) -> np.ndarray:
    return tensor


def _cells(tensor: np.ndarray) -> np.ndarray:
    """A convolution of patch and stride alike, `[d c p q]`, as a matrix of cells `[(p q c) d]`."""
    return tensor.transpose(2, 3, 1, 0).reshape(-1, tensor.shape[0])


def _pixels(tensor: np.ndarray) -> np.ndarray:
    """Outputs `[(c p q) ...]`, one plane a colour, as `[... (p q c)]`, one cell after the other."""
    planes = tensor.reshape(3, -1, *tensor.shape[1:])
    return np.moveaxis(np.moveaxis(planes, 0, 1).reshape(tensor.shape), 0, -1)


def _open(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file; the folder must hold {' and '.join(FILES.values())}")
    try:
        return safe_open(path, framework="np")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: is broken or cut off ({error})") from error


def _shapes(opened: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(opened.get_slice(name).get_shape()) for name in sorted(opened.keys())}


def _by_file(tree: Mapping[str, Mapping[str, tuple[int, ...]]]) -> dict[str, dict[str, Any]]:
    """Shapes under the names of their files, so that one message can name all."""
    return {
        FILES[room]: {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in names.items()}
        for room, names in tree.items()
    }


def _ours(opened: Any, source: Source) -> np.ndarray:
    return np.ascontiguousarray(source.arrange(opened.get_tensor(source.name)), np.float32)


def _rotary_rates(config: OasisConfig) -> dict[str, np.ndarray]:
    """The buffers that a release may hold, all known beforehand."""
    size, depth = config.transformer.head_size, config.transformer.depth
    space, time = layers.pixel_rates(size // 4, HIGHEST_RATE), layers.frame_rates(size)
    rates = {"spatial_rotary_emb.freqs": space, "temporal_rotary_emb.freqs": time}
    for i in range(depth):
        rates |= {f"blocks.{i}.s_attn.rotary_emb.freqs": space, f"blocks.{i}.t_attn.rotary_emb.freqs": time}
    return rates


def _check_rotary(given: Mapping[str, np.ndarray], rates: Mapping[str, np.ndarray], path: Path) -> None:
    def is_published(name):
        return np.allclose(given[name].astype(np.float32), rates[name], rtol=RATES_ROUNDED_TO, atol=0)

    if wrong := [name for name in given if not is_published(name)]:
        raise CheckpointError(f"{path}: rotary buffers of other rates than the published ones: {', '.join(wrong)}")


def _depth(names: Mapping[str, Any], room: str) -> int:
    found = [int(match[1]) for name in names if (match := re.match(rf"{room}\.(\d+)\.", name))]
    if not found:
        raise KeyError(f"{room}.0")
    return max(found) + 1

"""The released files: read by name, wrong ones refused with every name, geometry told by the tensors themselves."""

from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import wm_jax as wm
from wm_jax.checkpoint import CheckpointError
from wm_jax.ports import open_oasis
from wm_jax.ports.open_oasis import RELEASED, OasisConfig, OasisWorld
from wm_jax.ports.open_oasis.weights import FILES
from wm_jax.types import Params

pytestmark = pytest.mark.oasis
Small = tuple[open_oasis.OasisWorld, Params]


def copy(folder: Path, to: Path, change=lambda room, tensors: None) -> Path:
    """The files with something changed in them."""
    for room, file in FILES.items():
        tensors = load_file(folder / file)
        change(room, tensors)
        save_file(tensors, to / file)
    return to


def count(params) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))


def test_the_released_geometry_has_as_many_parameters_as_the_release():
    shapes, config = OasisWorld(RELEASED).shapes(), RELEASED
    rotary = config.transformer.head_size // 4 + config.transformer.head_size // 2  # buffers, shared by all layers
    assert count(shapes["transformer"]) + rotary == 607_943_792
    assert count(shapes["autoencoder"]) == 229_246_160
    back = ("from_latent", "decoder", "decoder_norm", "to_pixels")
    assert count([shapes["autoencoder"][part] for part in back]) == 152_404_144


def test_the_released_geometry_steps():
    """Shapes only: a frame of 360 x 640, and a ring of 279 MiB a session in bfloat16."""
    world = OasisWorld(RELEASED)
    state = jax.eval_shape(lambda: wm.empty(world, 2))
    held = wm.Controls(
        *(jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in (((2, 23), bool), ((2, 2), np.float32)))
    )
    new, frame = jax.eval_shape(lambda p, s, c: wm.step(world, p, s, c), world.shapes(), state, held)
    assert frame.shape == (2, 360, 640, 3) and frame.dtype == np.uint8
    assert jax.tree.map(lambda leaf: leaf.shape, new) == jax.tree.map(lambda leaf: leaf.shape, state)
    sessions, bytes_each = 2, 2
    assert count(state.past) * bytes_each / sessions / 2**20 == pytest.approx(279, abs=0.5)


def test_random_weights_have_the_shapes_of_loaded_ones(small: Small):
    drawn = small[0].init(jax.random.key(0))
    assert jax.tree.map(np.shape, drawn) == jax.tree.map(np.shape, small[1])
    assert jax.tree.map(lambda leaf: leaf.shape, small[0].shapes()) == jax.tree.map(np.shape, small[1])
    assert all(np.isfinite(leaf).all() and np.std(leaf) > 0 for leaf in jax.tree.leaves(drawn))


def test_the_tensors_tell_the_geometry(config):
    net, eye = config.transformer, config.autoencoder
    assert (net.depth, net.width, net.heads, net.hidden, net.patch) == (2, 64, 4, 256, 2)
    assert (net.channels, net.actions, net.frequencies) == (16, 25, 256)
    assert (eye.patch, eye.width, eye.hidden, eye.encoder_depth, eye.decoder_depth) == (4, 64, 256, 1, 2)


def test_rotary_buffers_may_be_there_or_not(folder, tmp_path, small: Small, config):
    def strip(_, tensors):
        for name in [name for name in tensors if "rotary" in name]:
            del tensors[name]

    stripped = copy(folder, tmp_path, strip)
    assert not any("rotary" in name for name in load_file(stripped / FILES["transformer"]))
    _, params = open_oasis.load(stripped, config)
    jax.tree.map(np.testing.assert_array_equal, params, small[1])


def test_rotary_buffers_of_other_rates_are_refused(folder, tmp_path, config):
    def shift(room, tensors):
        if room == "transformer":
            tensors["blocks.1.t_attn.rotary_emb.freqs"] *= np.float32(1.1)

    with pytest.raises(
        CheckpointError, match=r"other rates than the published ones: blocks\.1\.t_attn\.rotary_emb\.freqs$"
    ):
        open_oasis.load(copy(folder, tmp_path, shift), config)


def test_all_that_is_missing_extra_or_mis_shaped_is_named_at_once(folder, tmp_path, config):
    def spoil(room, tensors):
        if room == "transformer":
            del tensors["blocks.0.s_mlp.fc1.bias"], tensors["external_cond.weight"]
            tensors["blocks.1.t_attn.to_out.bias"] = np.zeros(65, np.float32)
        else:
            tensors["decoder.7.extra"] = np.zeros(3, np.float32)
            tensors["dec_norm.weight"] = np.zeros((64, 1), np.float32)

    with pytest.raises(CheckpointError) as refused:
        open_oasis.load(copy(folder, tmp_path, spoil), config)
    message = str(refused.value)
    for part in (
        str(tmp_path),
        "2 missing",
        "oasis500m.safetensors/blocks.0.s_mlp.fc1.bias",
        "oasis500m.safetensors/external_cond.weight",
        "1 not in this config: vit-l-20.safetensors/decoder.7.extra",
        "2 of another shape",
        "oasis500m.safetensors/blocks.1.t_attn.to_out.bias is [65], the config needs [64]",
        "vit-l-20.safetensors/dec_norm.weight is [64, 1], the config needs [64]",
    ):
        assert part in message, part


def test_a_hole_in_the_layers_is_a_missing_tensor_and_no_smaller_world(folder, tmp_path, config):
    def cut(_, tensors):
        for name in [name for name in tensors if name.startswith("blocks.0.")]:
            if "fc1.weight" not in name:
                del tensors[name]

    files = copy(folder, tmp_path, cut)
    assert open_oasis.geometry(files, config) == config
    with pytest.raises(CheckpointError, match=r"missing: oasis500m\.safetensors/blocks\.0\."):
        open_oasis.load(files, config)


def test_files_that_are_not_there_or_broken_are_named(folder, tmp_path, config):
    with pytest.raises(CheckpointError, match="oasis500m.safetensors: there is no such file; the folder must hold"):
        open_oasis.load(tmp_path, config)
    copy(folder, tmp_path)
    broken = tmp_path / FILES["autoencoder"]
    broken.write_bytes(broken.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"vit-l-20\.safetensors: is broken or cut off"):
        open_oasis.load(tmp_path, config)
    save_file({"something": np.zeros(1)}, broken)
    with pytest.raises(CheckpointError, match="no geometry can be read .* tensor 'patch_embed.proj.weight' is missing"):
        open_oasis.geometry(tmp_path, config)


def test_a_config_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="width 64 over 5 heads"):
        open_oasis.TransformerConfig(width=64, heads=5)
    with pytest.raises(ValueError, match=r"image \(361, 640\) cannot be cut into patches of 20"):
        open_oasis.AutoencoderConfig(image=(361, 640))
    with pytest.raises(ValueError, match="4 channels, the autoencoder's 16"):
        OasisConfig(transformer=open_oasis.TransformerConfig(channels=4))
    with pytest.raises(ValueError, match=r"a latent grid of \(18, 33\) cannot be cut into patches of 2"):
        OasisConfig(autoencoder=open_oasis.AutoencoderConfig(image=(360, 660)))
    with pytest.raises(ValueError, match="steps is 0: it must be 1 to 1000"):
        OasisConfig(steps=0)
    with pytest.raises(ValueError, match="window_frames is 0"):
        open_oasis.TransformerConfig(window_frames=0)
    assert len(open_oasis.ACTIONS) == len(set(open_oasis.ACTIONS)) == 25

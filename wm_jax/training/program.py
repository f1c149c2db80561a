"""The update as an accelerator's compiler meets it: shapes and a jitted function, nothing computed."""

import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from wm_jax.export.programs import Program
from wm_jax.training.bench import random_batch
from wm_jax.training.config import TrainConfig
from wm_jax.training.state import init_state
from wm_jax.training.step import make_train_step

PORTABLE_KEYS = "unsafe_rbg"
"""The generator that every compiler has an instruction for: Trainium's does not take the default one."""


def train_program(config: TrainConfig, mesh: Mesh | None = None) -> Program:
    """One update: `(state, batch) -> state, metrics`, the state donated; its random key is plain numbers.

    With a mesh the batch is spread over its axis "data" and everything else is everywhere.
    """
    with jax.default_prng_impl(PORTABLE_KEYS):
        state = jax.eval_shape(lambda: init_state(dataclasses.replace(config, autoencoder_from=None)))
        key = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))
    update = make_train_step(config, mesh)

    def train(state: Any, batch: Any) -> Any:
        typed = dataclasses.replace(state, key=jax.random.wrap_key_data(state.key, impl=PORTABLE_KEYS))
        new, metrics = update(typed, batch)
        return dataclasses.replace(new, key=jax.random.key_data(new.key)), metrics

    bare = dataclasses.replace(state, key=key)
    batch = jax.eval_shape(lambda: random_batch(config))
    if mesh is not None:
        bare, batch = _placed(bare, mesh, PartitionSpec()), _placed(batch, mesh, PartitionSpec("data"))
    return Program("train", jax.jit(train, donate_argnums=0), (bare, batch), (0,))


def _placed(tree: Any, mesh: Mesh, spec: PartitionSpec) -> Any:
    place = NamedSharding(mesh, spec)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree)

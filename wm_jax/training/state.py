"""TrainState: everything a run must remember to go on bit for bit."""

import dataclasses
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from wm_jax import checkpoint
from wm_jax.training.config import TrainConfig
from wm_jax.training.optimizer import make_optimizer
from wm_jax.types import Params
from wm_jax.world import World, load


@flax.struct.dataclass
class TrainState:
    """A pytree of arrays.

    Attributes:
      step: Updates done.
      params: The trained half of the world.
      ema: Its slow copy: what is evaluated, exported and served.
      frozen: The other half.
      opt_state: The optimizer's.
      key: Random key; each update folds `step` into it.
      carry: What the objective remembers between updates.
    """

    step: jax.Array
    params: Params
    ema: Params
    frozen: Params
    opt_state: Any
    key: jax.Array
    carry: Any


def init_state(config: TrainConfig) -> TrainState:
    """The state before the first update: fresh weights, the autoencoder from its own run.

    Raises:
      CheckpointError: weights of another shape than the config asks for, named leaf by leaf.
    """
    world = World(config.world)
    params = world.init(jax.random.key(config.seed))
    if config.autoencoder_from is not None:
        params = {**params, "autoencoder": _autoencoder_for(world, config.autoencoder_from)}
    trained = {name: params[name] for name in config.objective.parts}
    optimizer = make_optimizer(config.optimizer, config.steps)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=trained,
        ema=jax.tree.map(jnp.copy, trained),
        frozen={name: leaf for name, leaf in params.items() if name not in trained},
        opt_state=jax.jit(optimizer.init)(trained),
        key=jax.random.key(config.seed + 1),
        carry=config.objective.init_carry(world),
    )


def load_weights(config: TrainConfig, state: TrainState, folder: str | Path) -> TrainState:
    """The state with all weights of another run or world, optimizer and clock fresh: where fine-tuning starts.

    Raises:
      CheckpointError: weights of another shape than the config asks for, named leaf by leaf.
    """
    _, params = load(folder)
    checkpoint.check_tree(World(config.world).shapes(), params, folder)
    trained = {name: params[name] for name in state.params}
    frozen = {name: params[name] for name in state.frozen}
    return dataclasses.replace(state, params=trained, ema=jax.tree.map(jnp.copy, trained), frozen=frozen)


def world_params(config: TrainConfig, state: TrainState) -> Params:
    """The whole world's weights as they would be served now: slow ones where trained."""
    return config.objective.finish({**state.frozen, **state.ema}, state.carry)


def _autoencoder_for(world: World, folder: str) -> Params:
    _, params = load(folder)
    checkpoint.check_tree(world.shapes()["autoencoder"], params["autoencoder"], folder)
    return params["autoencoder"]

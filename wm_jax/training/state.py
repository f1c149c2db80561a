"""TrainState: everything a run must remember to go on bit for bit."""

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
    """The state before the first update; weights from `init_from` or fresh, the autoencoder from its own run.

    Raises:
      CheckpointError: weights of another shape than the config asks for, named leaf by leaf.
    """
    world = World(config.world)
    if config.init_from is not None:
        params = _weights_for(world, config.init_from)
    else:
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


def world_params(config: TrainConfig, state: TrainState) -> Params:
    """The whole world's weights as they would be served now: slow ones where trained."""
    return config.objective.finish({**state.frozen, **state.ema}, state.carry)


def _weights_for(world: World, folder: str) -> Params:
    other, params = load(folder)
    checkpoint.check_tree(world.shapes(), params, folder)
    del other
    return params


def _autoencoder_for(world: World, folder: str) -> Params:
    _, params = load(folder)
    checkpoint.check_tree(world.shapes()["autoencoder"], params["autoencoder"], folder)
    return params["autoencoder"]

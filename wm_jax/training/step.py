"""train_step: gradient, update, slow weights; pure, compiled, donated."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from wm_jax.sharding import spread
from wm_jax.training.config import TrainConfig
from wm_jax.training.ema import update_ema
from wm_jax.training.optimizer import make_optimizer, make_schedule
from wm_jax.training.state import TrainState
from wm_jax.world import World

Step = Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]


def make_train_step(config: TrainConfig, mesh: Mesh | None = None) -> Step:
    """`(state, batch) -> (state, metrics)`, compiled once, the state donated; the batch may be spread over a mesh."""
    return functools.partial(_train_step, config, mesh)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def _train_step(config: TrainConfig, mesh: Mesh | None, state: TrainState, batch: Any):
    with spread(mesh):
        return _update(config, state, batch)


def _update(config: TrainConfig, state: TrainState, batch: Any):
    world, objective = World(config.world), config.objective
    optimizer = make_optimizer(config.optimizer, config.steps)
    key = jax.random.fold_in(state.key, state.step)

    def loss(params):
        whole, slow = {**state.frozen, **params}, {**state.frozen, **state.ema}
        return objective.loss(world, whole, slow, batch, key, state.step, state.carry)

    (value, (metrics, carry)), gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = update_ema(state.ema, params, state.step, config.optimizer.ema)
    rate = jnp.asarray(make_schedule(config.optimizer, config.steps)(state.step))
    metrics = {"loss": value, **metrics, "gradient": optax.tree.norm(gradient), "learning_rate": rate}
    new = dataclasses.replace(state, step=state.step + 1, params=params, ema=ema, opt_state=opt_state, carry=carry)
    return new, metrics

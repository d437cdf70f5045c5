"""One update, as a pure function of (state, batch, key)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from dalle_mini.errors import UserError


class TrainState(NamedTuple):
    """Everything a run needs to go on, as one pytree: what a checkpoint holds.

    `extra` is whatever a trainer carries beside the parameters (a codebook's running counts, say).
    """

    step: jax.Array  # int32 []
    params: Any
    opt_state: optax.OptState
    extra: Any


LossFn = Callable[[Any, Any, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]
StepFn = Callable[[TrainState, Any, jax.Array], tuple[TrainState, dict[str, jax.Array]]]


def initial_parameters(network: type, config: Any, key: jax.Array, init_from: str | None = None) -> dict[str, Any]:
    """The parameters that a run begins with, as a pure dict: random ones, or those of the model in `init_from`.

    Raises UserError where that one has other parameters than `config` describes.
    """
    fresh = nnx.to_pure_dict(nnx.state(network(config, rngs=nnx.Rngs(key))))
    if init_from is None:
        return fresh
    loaded = nnx.to_pure_dict(nnx.state(network.from_pretrained(init_from)))
    if jax.tree.map(jnp.shape, loaded) != jax.tree.map(jnp.shape, fresh):
        raise UserError(f"training.init_from={init_from}: its config.json is of another model")
    return loaded


def init_state(params: Any, tx: optax.GradientTransformation, extra: Any = ()) -> TrainState:
    return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), extra)


def make_step(loss_fn: LossFn, tx: optax.GradientTransformation) -> StepFn:
    """An update for the common case: `loss_fn(params, batch, key) -> (loss, metrics)`, then the optimizer."""

    def step(state: TrainState, batch: Any, key: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params, batch, key)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads), **metrics}
        return TrainState(state.step + 1, params, opt_state, state.extra), metrics

    return step

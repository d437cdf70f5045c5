"""One update of a model, compiled for a mesh: what the loop runs, and what `plan` compiles without a device.

An update's batch may be taken in pieces (gradient accumulation, by `lax.scan`). Losses come as sums with a weight, so
that the mean is exact over whatever is not masked, in all pieces and on all devices.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from dalle_mini.runtime.xla import compiler_options
from dalle_mini.training.config.sections import LoopConfig, MeshConfig, OptimizerConfig
from dalle_mini.training.engine import sharding
from dalle_mini.training.engine.accumulation import accumulated, through_embeddings
from dalle_mini.training.engine.optimizer import in_groups, make_optimizer, schedule, trained_part, with_trained_part
from dalle_mini.training.engine.trainer import AuxiliaryInputs, Loss, StepProgram, Trainer, TrainState
from dalle_mini.weights.pretrained import flatten, unflatten

LOSS_MEMORY = 0.98  # decay of the running mean of the losses, against which spikes are seen
SETTLED = 20  # updates that the running mean is of, before it is trusted


def step_program(trainer: Trainer, loop: LoopConfig, mesh_config: MeshConfig, mesh: Mesh) -> StepProgram:
    """Raises UserError where the batch does not divide over the mesh, or the optimizer has nothing to train."""
    sharding.check_batch(mesh, loop.batch_size, loop.accumulation)
    groups = {name: make_optimizer(one, loop.steps) for name, one in trainer.groups.items()}
    tx = in_groups(make_optimizer(trainer.optimizer, loop.steps, decay_vectors=trainer.decay_vectors), groups)

    def begin(params, extra) -> TrainState:
        part = _trained(trainer, params)
        ema = jax.tree.map(jnp.copy, params) if trainer.optimizer.ema is not None else ()
        return TrainState(jnp.zeros((), jnp.int32), params, tx.init(part), ema, jnp.zeros(()), extra)

    key = jax.eval_shape(lambda: jax.random.key(0))
    shapes = jax.eval_shape(lambda key: begin(*trainer.parameters(key)), key)
    shardings = sharding.state_shardings(mesh, mesh_config, shapes)
    whole, rows = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    state = jax.tree.map(_placed, shapes, shardings)
    batch = {name: _placed(shape, rows) for name, shape in trainer.batch_shapes(loop.batch_size).items()}

    def init(key: jax.Array) -> TrainState:
        loaded = trainer.loaded()
        if loaded is None:
            return jax.jit(lambda key: begin(*trainer.parameters(key)), out_shardings=shardings)(key)
        params = sharding.place(loaded, shardings.params)
        make = jax.jit(lambda params, key: begin(params, trainer.parameters(key)[1]), out_shardings=shardings)
        return make(params, key)

    def evaluate(params, batch, frozen=None) -> Loss:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # for `sharding.keep_rows`
            compute = _compute_copy(params, jnp.dtype(trainer.dtype), mesh, shardings.params)
            return trainer.loss(compute, batch, None, AuxiliaryInputs(jnp.zeros((), jnp.int32), frozen))

    update = make_step(trainer, tx, loop, mesh, shardings.params)
    how = compiler_options(trainer.dtype, mesh.devices.flat[0].platform)
    step = jax.jit(update, donate_argnums=0, out_shardings=(shardings, whole), compiler_options=how)
    evaluate = jax.jit(evaluate, out_shardings=whole, compiler_options=how)
    if jax.tree.leaves(trainer.frozen):
        frozen = sharding.place(trainer.frozen, jax.tree.map(lambda _: whole, trainer.frozen))
        step, evaluate = partial(_with_last, step, frozen), partial(_with_last, evaluate, frozen)
    return StepProgram(
        mesh=mesh,
        step=step,
        evaluate=evaluate,
        init=init,
        state=state,
        batch=batch,
        key=_placed(key, whole),
    )


def _with_last(function: Callable, last: Any, *arguments: Any) -> Any:
    return function(*arguments, last)


def make_step(
    trainer: Trainer, tx: optax.GradientTransformation, loop: LoopConfig, mesh: Mesh, shardings: Any
) -> Callable[[TrainState, Any, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """The update as a pure function of (state, batch, key), and of the trainer's frozen arrays where it has some.

    `shardings` are the parameters'.
    """
    rate = schedule(trainer.optimizer, loop.steps)

    def step(
        state: TrainState, batch: Any, key: jax.Array, frozen: Any = None
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        auxiliary = AuxiliaryInputs(state.step, frozen)
        loss_key, finish_key = jax.random.split(key)
        compute = _compute_copy(state.params, jnp.dtype(trainer.dtype), mesh, shardings)
        part, places = (_trained(trainer, tree) for tree in (state.params, shardings))

        def to_keep(grads):
            """Gradients in float32, split as their parameters are, so that what adds them up holds a part of them."""
            return jax.tree.map(
                lambda grad, param, place: jax.lax.with_sharding_constraint(
                    sharding.without_padding(grad, param.shape).astype(jnp.float32), place
                ),
                *(grads, part, places),
            )

        def piece(rows, key) -> tuple[Loss, Any]:
            """The loss of a piece of the batch and the gradient of its total."""
            rows = jax.lax.with_sharding_constraint(rows, sharding.batch_sharding(mesh))

            def total(part):
                loss = trainer.loss(with_trained_part(compute, part), rows, key, auxiliary)
                return loss.total, loss

            grads, loss = jax.grad(total, has_aux=True)(_trained(trainer, compute))
            return loss, to_keep(grads)

        def in_pieces() -> tuple[Loss, Any]:
            """The same of a batch that is more than the sum of its pieces."""

            def embed(part, rows):
                rows = jax.lax.with_sharding_constraint(rows, sharding.batch_sharding(mesh))
                return trainer.embed(with_trained_part(compute, part), rows)

            def joint(part, embeds):
                loss = trainer.joint(with_trained_part(compute, part), embeds, batch)
                return loss.total, loss

            return through_embeddings(embed, joint, _trained(trainer, compute), batch, loop.accumulation, to_keep)

        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # for `sharding.keep_rows`
            if loop.accumulation > 1 and trainer.contrastive:
                loss, grads = in_pieces()
            else:
                loss, grads = accumulated(piece, batch, loss_key, loop.accumulation)
        weight = jnp.maximum(loss.weight, 1e-6)
        mean = loss.total / weight
        grads = jax.tree.map(lambda grad: grad / weight, grads)
        grad_norm = optax.tree.norm(grads)

        updates, opt_state = tx.update(grads, state.opt_state, part)
        params = with_trained_part(state.params, optax.apply_updates(part, updates))
        params, extra, metrics = trainer.finish(params, state, loss, finish_key)

        param_norm = optax.tree.norm(params)
        bad = _is_bad(mean, (grad_norm, param_norm), state, loop)
        new = TrainState(
            step=state.step,
            params=params,
            opt_state=opt_state,
            ema=_ema(state, params, trainer.optimizer),
            loss_mean=jnp.where(state.loss_mean == 0, mean, LOSS_MEMORY * state.loss_mean + (1 - LOSS_MEMORY) * mean),
            extra=extra,
        )
        new = jax.tree.map(lambda old, new: jnp.where(bad, old, new), state, new)._replace(step=state.step + 1)
        metrics = {
            "loss": mean,
            "grad_norm": grad_norm,
            "param_norm": param_norm,
            "learning_rate": rate(state.step),
            "bad": bad.astype(jnp.float32),
            **{name: total / weight for name, total in loss.metrics.items()},
            **metrics,
        }
        return new, {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}

    return step


def _trained(trainer: Trainer, params: Any) -> Any:
    """The part of the parameters, or of a tree like them, that the optimizer moves."""
    return trained_part(params, trainer.optimizer, trainer.trained)


def _compute_copy(params: Any, dtype: Any, mesh: Mesh, shardings: Any) -> Any:
    """Parameters in the type that is computed in, but for vectors: it is this copy that devices exchange."""
    places = flatten(shardings)

    def copy(name, leaf):
        is_vector = leaf.ndim - bool(sharding.stack_path(name.split("."))) < 2
        if not is_vector:
            leaf = jax.lax.with_sharding_constraint(leaf.astype(dtype), places[name])  # cast first, gathered then
        return jax.lax.with_sharding_constraint(*sharding.compute_layout(mesh, name, leaf, places[name]))

    return unflatten({name: copy(name, leaf) for name, leaf in flatten(params).items()}, params)


def _is_bad(loss: jax.Array, norms: tuple[jax.Array, ...], state: TrainState, loop: LoopConfig) -> jax.Array:
    bad = ~jnp.isfinite(jnp.stack([loss, *norms])).all()
    if loop.spike:
        bad |= (state.step >= SETTLED) & (loss > loop.spike * state.loss_mean)
    return bad


def _ema(state: TrainState, params: Any, optimizer: OptimizerConfig) -> Any:
    """The running mean moved on: of the first n updates it is nearly the plain mean of them, (1 + n) / (10 + n)."""
    if optimizer.ema is None:
        return state.ema
    count = state.step.astype(jnp.float32)
    decay = jnp.minimum(optimizer.ema, (1 + count) / (10 + count))
    return jax.tree.map(lambda mean, new: decay * mean + (1 - decay) * new, state.ema, params)


def _placed(leaf: Any, place: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

"""One update of a model, compiled for a mesh. The loop runs it, and `plan` compiles it without a device.

An update's batch may be taken in microbatches (gradient accumulation, by `lax.scan`). Losses come as sums with a
weight, so that the mean is exact over whatever is not masked, in all microbatches and on all devices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
    """The update, the evaluation and the initial state of a trainer, as programs for a mesh. None is compiled yet.

    Raises:
        UserError: the batch does not divide over the mesh, or the optimizer has nothing to train.
    """
    sharding.check_batch(mesh, loop.batch_size, loop.accumulation)
    groups = {name: make_optimizer(one, loop.steps) for name, one in trainer.groups.items()}
    tx = in_groups(make_optimizer(trainer.optimizer, loop.steps, decay_vectors=trainer.decay_vectors), groups)

    key = jax.eval_shape(lambda: jax.random.key(0))
    random_state = partial(_random_state, trainer, tx)  # one object, which jax traces once for both uses
    shapes = jax.eval_shape(random_state, key)
    shardings = sharding.state_shardings(mesh, mesh_config, shapes)
    whole, rows = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    state = jax.tree.map(_placed, shapes, shardings)
    batch = {name: _placed(shape, rows) for name, shape in trainer.batch_shapes(loop.batch_size).items()}

    update = Update(trainer, tx, loop, mesh, shardings.params).step
    evaluation = partial(_evaluation, trainer, mesh, shardings.params)
    options = compiler_options(trainer.dtype, mesh.devices.flat[0].platform)
    step: Callable = jax.jit(update, donate_argnums=0, out_shardings=(shardings, whole), compiler_options=options)
    evaluate: Callable = jax.jit(evaluation, out_shardings=whole, compiler_options=options)
    if jax.tree.leaves(trainer.frozen):
        frozen = sharding.place(trainer.frozen, jax.tree.map(lambda _: whole, trainer.frozen))
        step, evaluate = partial(_with_last, step, frozen), partial(_with_last, evaluate, frozen)
    return StepProgram(
        mesh=mesh,
        step=step,
        evaluate=evaluate,
        init=partial(_first_state, trainer, tx, random_state, shardings),
        state=state,
        batch=batch,
        key=_placed(key, whole),
    )


def _begin(trainer: Trainer, tx: optax.GradientTransformation, params: Any, extra: Any) -> TrainState:
    ema = jax.tree.map(jnp.copy, params) if trainer.optimizer.ema is not None else ()
    moments = tx.init(_trained(trainer, params))
    return TrainState(jnp.zeros((), jnp.int32), params, moments, ema, jnp.zeros(()), extra)


def _random_state(trainer: Trainer, tx: optax.GradientTransformation, key: jax.Array) -> TrainState:
    return _begin(trainer, tx, *trainer.parameters(key))


def _state_around(trainer: Trainer, tx: optax.GradientTransformation, params: Any, key: jax.Array) -> TrainState:
    """The first state of a run that starts from these parameters."""
    return _begin(trainer, tx, params, trainer.parameters(key)[1])


def _first_state(
    trainer: Trainer, tx: optax.GradientTransformation, random_state: Callable, shardings: Any, key: jax.Array
) -> TrainState:
    """The state before the first update, laid out on the mesh: of loaded parameters, or of random ones."""
    loaded = trainer.loaded()
    if loaded is None:
        return jax.jit(random_state, out_shardings=shardings)(key)
    params = sharding.place(loaded, shardings.params)
    return jax.jit(partial(_state_around, trainer, tx), out_shardings=shardings)(params, key)


def _evaluation(trainer: Trainer, mesh: Mesh, shardings: Any, params: Any, batch: Any, frozen: Any = None) -> Loss:
    """The loss on a batch, nothing being random. `shardings` are those of the parameters."""
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # for `sharding.keep_rows`
        compute = _compute_copy(params, jnp.dtype(trainer.dtype), mesh, shardings)
        return trainer.loss(compute, batch, None, AuxiliaryInputs(jnp.zeros((), jnp.int32), frozen))


def _with_last(function: Callable, last: Any, *arguments: Any) -> Any:
    return function(*arguments, last)


@dataclass(frozen=True, eq=False)
class Update:
    """The update of a trainer as a pure function, `step`.

    Attributes:
        tx: moves the trained part of the parameters.
        shardings: of the parameters.
    """

    trainer: Trainer
    tx: optax.GradientTransformation
    loop: LoopConfig
    mesh: Mesh
    shardings: Any

    def step(
        self, state: TrainState, batch: Any, key: jax.Array, frozen: Any = None
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """(state after the update, metrics), as in `StepProgram.step`; `frozen` are the trainer's frozen arrays."""
        trainer = self.trainer
        loss_key, finish_key = jax.random.split(key)
        compute = _compute_copy(state.params, jnp.dtype(trainer.dtype), self.mesh, self.shardings)
        part, places = (_trained(trainer, tree) for tree in (state.params, self.shardings))
        with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):  # for `sharding.keep_rows`
            auxiliary, keep = AuxiliaryInputs(state.step, frozen), partial(_kept_gradients, part, places)
            loss, grads = self._loss_and_gradients(compute, batch, loss_key, auxiliary, keep)
        weight = jnp.maximum(loss.weight, 1e-6)
        mean = loss.total / weight
        grads = jax.tree.map(lambda grad: grad / weight, grads)
        grad_norm = optax.tree.norm(grads)

        updates, opt_state = self.tx.update(grads, state.opt_state, part)
        params = with_trained_part(state.params, optax.apply_updates(part, updates))
        params, extra, metrics = trainer.finish(params, state, loss, finish_key)

        param_norm = optax.tree.norm(params)
        bad = _is_bad(mean, (grad_norm, param_norm), state, self.loop)
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
            "learning_rate": schedule(trainer.optimizer, self.loop.steps)(state.step),
            "bad": bad.astype(jnp.float32),
            **{name: total / weight for name, total in loss.metrics.items()},
            **metrics,
        }
        return new, {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}

    def _loss_and_gradients(
        self, compute: Any, batch: Any, key: jax.Array, auxiliary: AuxiliaryInputs, keep: Callable[[Any], Any]
    ) -> tuple[Loss, Any]:
        """The loss on the whole batch, and the gradient of its total at the trained part of the parameters.

        Args:
            compute: all parameters, in the type of the computation.
            keep: from the gradients of a microbatch to the form in which they are summed.
        """
        trainer, accumulation = self.trainer, self.loop.accumulation
        if accumulation > 1 and trainer.contrastive:
            embed, joint = partial(self._embed, compute), partial(self._joint, compute, batch)
            return through_embeddings(embed, joint, _trained(trainer, compute), batch, accumulation, keep)
        return accumulated(partial(self._of_microbatch, compute, auxiliary, keep), batch, key, accumulation)

    def _of_microbatch(
        self, compute: Any, auxiliary: AuxiliaryInputs, keep: Callable[[Any], Any], rows: Any, key: jax.Array
    ) -> tuple[Loss, Any]:
        """The loss on some rows, and the gradient of its total."""
        rows = self._as_batch(rows)
        total = partial(self._total, compute, auxiliary, rows, key)
        grads, loss = jax.grad(total, has_aux=True)(_trained(self.trainer, compute))
        return loss, keep(grads)

    def _total(
        self, compute: Any, auxiliary: AuxiliaryInputs, rows: Any, key: jax.Array, part: Any
    ) -> tuple[jax.Array, Loss]:
        loss = self.trainer.loss(with_trained_part(compute, part), rows, key, auxiliary)
        return loss.total, loss

    def _embed(self, compute: Any, part: Any, rows: Any) -> Any:
        rows = self._as_batch(rows)
        return self.trainer.embed(with_trained_part(compute, part), rows)

    def _joint(self, compute: Any, batch: Any, part: Any, embeds: Any) -> tuple[jax.Array, Loss]:
        loss = self.trainer.joint(with_trained_part(compute, part), embeds, batch)
        return loss.total, loss

    def _as_batch(self, rows: Any) -> Any:
        return jax.lax.with_sharding_constraint(rows, sharding.batch_sharding(self.mesh))


def _kept_gradients(part: Any, places: Any, grads: Any) -> Any:
    """Gradients in float32, split as their parameters are, so that what adds them up holds a part of them."""
    return jax.tree.map(
        lambda grad, param, place: jax.lax.with_sharding_constraint(
            sharding.without_padding(grad, param.shape).astype(jnp.float32), place
        ),
        *(grads, part, places),
    )


def _trained(trainer: Trainer, params: Any) -> Any:
    """The part of the parameters, or of a tree like them, that the optimizer moves."""
    return trained_part(params, trainer.optimizer, trainer.trained)


def _compute_copy(params: Any, dtype: Any, mesh: Mesh, shardings: Any) -> Any:
    """Parameters in the type of the computation, but for vectors. Devices exchange this copy."""
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
    """The running mean after an update. Over the first n updates it is nearly their plain mean, (1 + n) / (10 + n)."""
    if optimizer.ema is None:
        return state.ema
    count = state.step.astype(jnp.float32)
    decay = jnp.minimum(optimizer.ema, (1 + count) / (10 + count))
    return jax.tree.map(lambda mean, new: decay * mean + (1 - decay) * new, state.ema, params)


def _placed(leaf: Any, place: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

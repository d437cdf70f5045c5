"""One update of a model, compiled for a mesh: what the loop runs, and what `plan` compiles without a device.

An update's batch may be taken in pieces (gradient accumulation, by `lax.scan`). Losses come as sums with a weight, so
that the mean is exact over whatever is not masked, in all pieces and on all devices.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from dalle_mini.runtime.xla import compiler_options
from dalle_mini.training.config.sections import LoopConfig, MeshConfig, OptimizerConfig
from dalle_mini.training.engine import sharding
from dalle_mini.training.engine.accumulation import accumulated, through_embeddings
from dalle_mini.training.engine.optimizer import in_groups, make_optimizer, schedule, trained_part, with_trained_part
from dalle_mini.weights.pretrained import flatten, unflatten

LOSS_MEMORY = 0.98  # decay of the running mean of the losses, against which spikes are seen
SETTLED = 20  # updates that the running mean is of, before it is trusted


class TrainState(NamedTuple):
    """Everything a run needs to go on, as one pytree: what a checkpoint holds. All floats are float32.

    `extra` is whatever a trainer carries beside the parameters (a codebook's running counts, say).
    """

    step: jax.Array  # int32 []
    params: Any
    opt_state: optax.OptState
    ema: Any  # the running mean of the parameters, or () where there is none
    loss_mean: jax.Array  # the running mean of the losses
    extra: Any

    @property
    def weights(self) -> Any:
        """The parameters that are evaluated and exported: their running mean, where there is one."""
        return self.ema if jax.tree.leaves(self.ema) else self.params


class Loss(NamedTuple):
    """What a trainer's loss gives for one piece of a batch: sums, and what to divide them by."""

    total: jax.Array  # float32 []
    weight: jax.Array  # float32 []: how many tokens, rows ... were summed over
    metrics: dict[str, jax.Array]  # further sums
    aux: Any = ()  # arrays with a row for each example, for `Trainer.finish`


class Beside(NamedTuple):
    """What the loss of a trainer with `frozen` arrays is given beside the parameters and the batch."""

    step: jax.Array  # int32 []
    frozen: Any


class Trainer(Protocol):
    """One thing to train, as far as an update needs to know it. `loss` and `finish` are traced by jax.

    Attributes:
        dtype: what the loss computes in; parameters come to it in that type (norms and biases in float32).
        groups: top-level keys of the parameters that have an optimizer of their own, and which. May be missing.
        frozen: arrays that the loss reads and nothing trains, whole on every device and in no checkpoint: then `loss`
            takes a `Beside` as its fourth argument. May be missing.
        trained: which parameters the optimizer moves, by their paths; None is all. May be missing.
        decay_vectors: whether the optimizer's weight decay is for norms, biases and scales too. May be missing: it is.
    """

    name: str
    optimizer: OptimizerConfig
    dtype: str
    groups: Mapping[str, OptimizerConfig]
    frozen: Any
    trained: re.Pattern | None
    decay_vectors: bool

    def parameters(self, key: jax.Array) -> tuple[Any, Any]:
        """(parameters, extra) to begin with, random; traced by jax."""
        ...

    def loaded(self) -> Any | None:
        """The parameters of a trained model to begin with instead, in this process's memory; None for random ones."""
        ...

    def batch_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]: ...

    def loss(self, params: Any, batch: Any, key: jax.Array | None, *beside: Beside) -> Loss:
        """Of a piece of a batch. Without a key nothing is random: no dropout."""
        ...

    def embed(self, params: Any, batch: Any) -> Any:
        """Of a loss that is no sum over examples: arrays with a row for each, from which `joint` makes it.

        A batch in pieces then goes through `through_embeddings`. May be missing.
        """
        ...

    def joint(self, params: Any, embeds: Any, batch: Any) -> Loss:
        """The loss of a whole batch, which is `loss` too. May be missing, where `embed` is."""
        ...

    def finish(self, params: Any, state: TrainState, loss: Loss, key: jax.Array) -> tuple[Any, Any, dict[str, Any]]:
        """(parameters, extra, metrics) once the optimizer has moved `params`.

        `state` is as before it, `loss` of the whole batch.
        """
        ...


@dataclass(frozen=True)
class StepProgram:
    """The update and what it takes, on a mesh. `step.lower(state, batch, key).compile()` needs no arrays, unless the
    trainer has frozen ones.

    Attributes:
        step: (state, batch, key) -> (state, metrics); the state that is given is overwritten (donated). Metrics are
            float32 scalars: loss, grad_norm, param_norm (of what the update makes of them), learning_rate, `bad` (1
            where the update was left out, since one of the first three is not finite or the loss is a spike; the step
            is counted all the same), and the trainer's own.
        evaluate: (parameters, batch) -> `Loss` without dropout.
        init: key -> the state that a run begins with, placed on the mesh.
        state, batch, key: shapes and shardings.
        go_on: what a long evaluation calls between its parts, in all processes alike; it raises where the run was asked
            to stop.
    """

    mesh: Mesh
    step: Callable[[TrainState, Any, jax.Array], tuple[TrainState, dict[str, jax.Array]]]
    evaluate: Callable[[Any, Any], Loss]
    init: Callable[[jax.Array], TrainState]
    state: TrainState
    batch: dict[str, jax.ShapeDtypeStruct]
    key: jax.ShapeDtypeStruct
    go_on: Callable[[], None] = lambda: None

    @property
    def state_shardings(self) -> TrainState:
        return jax.tree.map(lambda leaf: leaf.sharding, self.state)

    def place(self, batch: dict[str, Any], batch_size: int | None = None) -> dict[str, jax.Array]:
        """A batch of numpy arrays on the mesh: all of its rows, or this process's part of them (`data_share`).

        Args:
            batch_size: rows over all processes; those of an update by default.
        """
        batch_size = batch_size or min(leaf.shape[0] for leaf in self.batch.values())
        # An array may have several rows for each of the batch.
        parts, rest = divmod(batch_size, min(len(array) for array in batch.values()))
        if rest:
            raise ValueError(f"a batch of {batch_size} rows in parts of which one has {rest} too many")
        rows = sharding.batch_sharding(self.mesh)
        if parts == 1:
            return sharding.place(batch, dict.fromkeys(batch, rows))
        return {
            name: jax.make_array_from_process_local_data(rows, array, (parts * len(array), *array.shape[1:]))
            for name, array in batch.items()
        }


def step_program(trainer: Trainer, loop: LoopConfig, mesh_config: MeshConfig, mesh: Mesh) -> StepProgram:
    """Raises UserError where the batch does not divide over the mesh, or the optimizer has nothing to train."""
    sharding.check_batch(mesh, loop.batch_size, loop.accumulation)
    groups = {name: make_optimizer(one, loop.steps) for name, one in getattr(trainer, "groups", {}).items()}
    decay_vectors = getattr(trainer, "decay_vectors", True)
    tx = in_groups(make_optimizer(trainer.optimizer, loop.steps, decay_vectors=decay_vectors), groups)
    frozen = getattr(trainer, "frozen", None)

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

    def evaluate(params, batch, *beside) -> Loss:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # for `sharding.keep_rows`
            compute = _compute_copy(params, jnp.dtype(trainer.dtype), mesh, shardings.params)
            return trainer.loss(compute, batch, None, *beside)

    update = make_step(trainer, tx, loop, mesh, shardings.params)
    how = compiler_options(trainer.dtype, mesh.devices.flat[0].platform)
    step = jax.jit(update, donate_argnums=0, out_shardings=(shardings, whole), compiler_options=how)
    evaluate = jax.jit(evaluate, out_shardings=whole, compiler_options=how)
    if frozen is not None:
        placed = sharding.place(frozen, jax.tree.map(lambda _: whole, frozen))
        beside = Beside(sharding.place(np.int32(0), whole), placed)
        step, evaluate = partial(_with_last, step, placed), partial(_with_last, evaluate, beside)
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
    """The update as a pure function of (state, batch, key), and of frozen arrays where the trainer has some.

    `shardings` are the parameters'.
    """
    rate = schedule(trainer.optimizer, loop.steps)

    def step(state: TrainState, batch: Any, key: jax.Array, *frozen: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        beside = [Beside(state.step, arrays) for arrays in frozen]
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
                loss = trainer.loss(with_trained_part(compute, part), rows, key, *beside)
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
            if loop.accumulation > 1 and hasattr(trainer, "embed"):
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
    return trained_part(params, trainer.optimizer, getattr(trainer, "trained", None))


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


def initial_parameters(network: type, config: Any, key: jax.Array) -> dict[str, Any]:
    """Random parameters, as a pure dict."""
    return nnx.to_pure_dict(nnx.state(network(config, rngs=nnx.Rngs(key))))


def _placed(leaf: Any, place: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

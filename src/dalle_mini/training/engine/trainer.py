"""The seam between a trainer, the update and the loop: what a trainer defines, and what it is given.

`step.py` turns a trainer into the program of an update; `run/loop.py` runs that program. Both know a trainer by the
`Trainer` of this file alone.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from dalle_mini.training.config.sections import OptimizerConfig
from dalle_mini.training.engine import sharding


class TrainState(NamedTuple):
    """Everything a run needs to go on, as one pytree: the content of a checkpoint. All floats are float32.

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
    """A trainer's loss on some rows: sums, and what to divide them by."""

    total: jax.Array  # float32 []
    weight: jax.Array  # float32 []: how many tokens, rows ... were summed over
    metrics: dict[str, jax.Array]  # further sums
    aux: Any = ()  # arrays with a row for each example, for `Trainer.finish`


class AuxiliaryInputs(NamedTuple):
    """The inputs of a loss beside the parameters, the batch and the key."""

    step: jax.Array  # int32 []
    frozen: Any  # `Trainer.frozen`, on the devices


@dataclass(frozen=True)
class StepProgram:
    """The update and what it takes, on a mesh.

    `step.lower(state, batch, key).compile()` needs no arrays, unless the trainer has frozen ones.

    Attributes:
        step: (state, batch, key) -> (state, metrics); the state that is given is overwritten (donated). Metrics are
            float32 scalars: loss, grad_norm, param_norm (of the parameters after the update), learning_rate, `bad` and
            the trainer's own. `bad` is 1 where the update was left out, because one of the first three is not finite or
            the loss is a spike; the step is counted all the same.
        evaluate: (parameters, batch) -> `Loss` without dropout.
        init: key -> the state that a run begins with, placed on the mesh.
        state, batch, key: shapes and shardings.
        check_stop: a long evaluation calls it between its parts, in all processes alike. It raises where the run was
            asked to stop.
    """

    mesh: Mesh
    step: Callable[[TrainState, Any, jax.Array], tuple[TrainState, dict[str, jax.Array]]]
    evaluate: Callable[[Any, Any], Loss]
    init: Callable[[jax.Array], TrainState]
    state: TrainState
    batch: dict[str, jax.ShapeDtypeStruct]
    key: jax.ShapeDtypeStruct
    check_stop: Callable[[], None] = lambda: None

    @property
    def state_shardings(self) -> TrainState:
        return jax.tree.map(lambda leaf: leaf.sharding, self.state)

    def place(self, batch: dict[str, Any], batch_size: int | None = None) -> dict[str, jax.Array]:
        """Put a batch of numpy arrays on the mesh: all of its rows, or this process's part of them (`data_share`).

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


class Trainer(ABC):
    """One thing to train. A subclass defines the abstract methods, and whatever else differs from the defaults.

    jax traces `parameters`, `loss`, `embed`, `joint` and `finish`; everything else runs on the host.

    Attributes:
        name: what is trained, in messages and in the run's record.
        optimizer: moves all parameters that are in none of the `groups`.
        dtype: the type the loss computes in. Parameters come to it in that type (norms and biases in float32).
        groups: top-level keys of the parameters that have an optimizer of their own -> that optimizer.
        frozen: arrays that the loss reads and nothing trains. They lie whole on every device, and in no checkpoint.
        trained: the parameters that the optimizer moves, by the begin of their paths; None is all.
        decay_vectors: whether the optimizer's weight decay is for norms, biases and scales too.
        contrastive: whether the loss compares the examples of a batch with each other, so that it is no sum over them.
            Then `loss` is `joint` of `embed`, and a batch in microbatches goes through these two.
    """

    name: str
    optimizer: OptimizerConfig
    dtype: str = "float32"
    groups: Mapping[str, OptimizerConfig] = MappingProxyType({})
    frozen: Any = None
    trained: re.Pattern | None = None
    decay_vectors: bool = True
    contrastive: bool = False

    def settings(self) -> dict[str, Any]:
        """The settings that decide the outcome beside the loop's, in sections, as JSON: they are kept with the run."""
        return {}

    @abstractmethod
    def parameters(self, key: jax.Array) -> tuple[Any, Any]:
        """(parameters, extra) to begin with, random."""

    def loaded(self) -> Any | None:
        """The parameters of a trained model to begin with instead, in this process's memory; None for random ones."""
        return None

    @abstractmethod
    def batch_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of a whole batch of so many rows."""

    @abstractmethod
    def batch(self, step: int) -> dict[str, np.ndarray]:
        """The batch of a step, a function of the step alone: whole, or this process's part (`data_share`).

        Called from another thread.
        """

    def rows(self, step: int) -> list[str]:
        """The names of the examples in a step's batch, for complaints about it; none where they have no names."""
        return []

    @abstractmethod
    def loss(self, params: Any, batch: Any, key: jax.Array | None, auxiliary: AuxiliaryInputs) -> Loss:
        """The loss on some rows. Without a key nothing is random: no dropout."""

    def embed(self, params: Any, batch: Any) -> Any:
        """Arrays with a row for each example, from which `joint` makes the loss; for a `contrastive` trainer."""
        raise NotImplementedError

    def joint(self, params: Any, embeds: Any, batch: Any) -> Loss:
        """The loss on a whole batch and its embeddings; for a `contrastive` trainer."""
        raise NotImplementedError

    def finish(self, params: Any, state: TrainState, loss: Loss, key: jax.Array) -> tuple[Any, Any, dict[str, Any]]:
        """(parameters, extra, metrics) once the optimizer has moved `params`.

        Args:
            state: before the update.
            loss: on the whole batch.
        """
        return params, state.extra, {}

    def evaluate(self, program: StepProgram, state: TrainState, batch_size: int) -> dict[str, float]:
        """Numbers over the held-out set, the same in every process; the best checkpoint has the least `loss`.

        Between its parts it calls `program.evaluate` or `program.check_stop`.
        """
        return {}

    def keep(self, out: Path) -> None:
        """Put what a later start of the run needs into its folder. Called in the first process only."""
        return None

    @abstractmethod
    def export(self, state: TrainState, folder: Path) -> None:
        """Gather `state.weights` in all processes, and write them into the new `folder` in the first one."""


def initial_parameters(network: type, config: Any, key: jax.Array) -> dict[str, Any]:
    """Random parameters, as a pure dict."""
    return nnx.to_pure_dict(nnx.state(network(config, rngs=nnx.Rngs(key))))

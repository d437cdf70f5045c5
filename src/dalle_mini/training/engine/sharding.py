"""Where the arrays of a run live: one table of rules says on which axes of the mesh each parameter is split.

The mesh is a grid of devices, `(data, model)`. A batch is split over `data`. Parameters are split over both (fully
sharded, as in ZeRO stage 3 of Rajbhandari et al. 2019) or over `model` alone; the optimizer's state and the running
mean of the parameters go with them. The networks know nothing of it: XLA derives what is gathered and reduced from the
shardings of a step's arguments.
"""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dalle_mini.errors import UserError
from dalle_mini.training.config.sections import MeshConfig
from dalle_mini.weights.pretrained import flatten, unflatten

DATA, MODEL = "data", "model"
STACK = "layers"  # the attribute under which a network keeps its blocks, stacked or as a list

# Path of a parameter -> the axis of each of its dimensions, without the leading one of a stack of layers. The first
# that matches counts; what matches none is whole on every device (norms, biases, head scales: kilobytes).
# `model` splits a sublayer as Megatron does (Shoeybi et al. 2019): by columns on the way in, by rows on the way out.
# Embeddings are split by width alone, since a lookup in a table that is split by rows needs a sum over devices.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"(q|k|v)_proj\.kernel$", (DATA, MODEL)),
    (r"out_proj\.kernel$", (MODEL, DATA)),
    (r"ffn\.(gate|linear)\.kernel$", (DATA, MODEL)),
    (r"ffn\.out\.kernel$", (MODEL, DATA)),
    (r"mlp\.fc1\.kernel$", (DATA, MODEL)),
    (r"mlp\.fc2\.kernel$", (MODEL, DATA)),
    (r"lm_head\.kernel$", (DATA, MODEL)),
    (r"embed_(tokens|positions)\.embedding$", (DATA, MODEL)),
    (r"rel_bias\.embedding$", (None, DATA)),
)
HEAD = re.compile(r"lm_head\.(kernel|bias)$")


def make_mesh(config: MeshConfig, devices: Any = None) -> Mesh:
    """The devices (of all processes, unless given; they may be those of a topology that is not there) as a grid.

    Raises UserError where the grid does not fit their number.
    """
    devices = list(jax.devices() if devices is None else devices)
    count = len(devices)
    for name in (DATA, MODEL):
        size = getattr(config, name)
        if size < 1 and size != -1:
            raise UserError(f"mesh.{name}: {size} devices; it must be at least 1, or -1 for what is left")
    given = [size for size in (config.data, config.model) if size != -1]
    rest = count // max(math.prod(given), 1)
    data, model = (max(rest, 1) if size == -1 else size for size in (config.data, config.model))
    if len(given) == 0:
        data, model = count, 1
    if data * model != count:
        raise UserError(
            f"mesh: data {config.data} x model {config.model} does not make the {count} devices that there are; "
            f"mesh.data=-1 takes what mesh.model leaves, which must divide {count}"
        )
    axis_types = (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh((data, model), (DATA, MODEL), axis_types=axis_types, devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of every array of a batch: its rows are split over `data`."""
    return NamedSharding(mesh, PartitionSpec(DATA))


def data_share(mesh: Mesh) -> tuple[int, int]:
    """(index, count): which part of a batch's rows this process must have, of how many equal ones.

    The whole batch is one part where the mesh gives processes rows that do not lie together.
    """
    mine = [
        row for row, devices in enumerate(mesh.devices) if any(d.process_index == jax.process_index() for d in devices)
    ]
    index, share = mine[0] // len(mine), len(mine)
    if mine == list(range(index * share, (index + 1) * share)) and not mesh.shape[DATA] % share:
        return index, mesh.shape[DATA] // share
    return 0, 1


def keep_rows(x: jax.Array) -> jax.Array:
    """Activations [B, ...] with their rows where the batch's are, in a program that is traced for a mesh.

    Said between layers, or else XLA takes the weights' split by width for theirs: then every device computes every
    row, and activations are exchanged instead of weights (on a v3-8, 2 TB a device in an update of mini's, for 50 GB).
    """
    mesh = jax.sharding.get_abstract_mesh()
    return x if mesh.empty else jax.lax.with_sharding_constraint(x, PartitionSpec(DATA))


def everywhere(x: jax.Array) -> jax.Array:
    """`x` whole on every device, in a program that is traced for a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return x if mesh.empty else jax.lax.with_sharding_constraint(x, PartitionSpec())


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def check_batch(mesh: Mesh, batch_size: int, accumulation: int = 1) -> None:
    """Raises UserError where a batch cannot be split over the mesh in so many microbatches."""
    parts = mesh.shape[DATA] * accumulation
    if batch_size % parts:
        taken = f" in {accumulation} microbatches" if accumulation > 1 else ""
        lower, upper = batch_size // parts * parts, -(-batch_size // parts) * parts
        near = f"{lower} or {upper}" if lower else f"{upper}"
        raise UserError(
            f"loop.batch_size {batch_size} does not divide by the {mesh.shape[DATA]} devices along mesh.data{taken}: "
            f"use {near}"
        )


def parameter_shardings(mesh: Mesh, config: MeshConfig, params: Any) -> Any:
    """The sharding of each parameter, as a tree like `params` (arrays or their shapes)."""
    specs = parameter_specs(mesh, config, flatten(params))
    return unflatten({name: NamedSharding(mesh, spec) for name, spec in specs.items()}, params)


def parameter_specs(mesh: Mesh, config: MeshConfig, named: dict[str, Any]) -> dict[str, PartitionSpec]:
    """Path of each parameter -> on which axes of the mesh its dimensions are split."""
    return {name: _spec(mesh, config, name, leaf.shape) for name, leaf in named.items()}


def state_shardings(mesh: Mesh, config: MeshConfig, state: Any) -> Any:
    """The sharding of each array of a `TrainState` (or of its shapes): what belongs to a parameter goes with it.

    A statistic of the optimizer that has a parameter's shape is split like it, one that has the shape without a
    dimension (Adafactor's rows and columns) like the dimensions that are left; anything else is whole everywhere.
    """
    named = flatten(state.params)
    specs = parameter_specs(mesh, config, named)

    def of_statistic(path, leaf):
        name = _parameter_of([_name(entry) for entry in path], specs)
        spec = PartitionSpec() if name is None else _without_a_dimension(named[name].shape, specs[name], leaf.shape)
        return NamedSharding(mesh, spec)

    whole = replicated(mesh)
    params = parameter_shardings(mesh, config, state.params)
    return state._replace(
        step=whole,
        params=params,
        opt_state=jax.tree_util.tree_map_with_path(of_statistic, state.opt_state),
        ema=params if jax.tree.leaves(state.ema) else state.ema,
        loss_mean=whole,
        extra=jax.tree.map(lambda _: whole, state.extra),
    )


def place(tree: Any, shardings: Any) -> Any:
    """Arrays of this process's memory, the same in every process, as arrays on the mesh."""

    def put(array, sharding):
        if sharding.is_fully_addressable:
            return jax.device_put(array, sharding)
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(put, tree, shardings)


def gathered(tree: Any) -> Any:
    """The whole of each array in this process's memory, as numpy arrays. All processes must call it together."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    return jax.tree.map(lambda leaf: multihost_utils.process_allgather(leaf, tiled=True), tree)


def compute_layout(mesh: Mesh, name: str, leaf: jax.Array, place: NamedSharding) -> tuple[jax.Array, NamedSharding]:
    """A parameter as a step computes with it, and its sharding then; `place` is where it is kept.

    Layers stay split, and are gathered one by one as the scan comes to them (`keep_rows`). Everything else is gathered
    over `data` once for the whole step: a lookup in a table whose width is split over the devices that
    share the batch would move activations instead. The head's codes are filled up so that `model` divides them; losses
    mask those that are too many, and parameters, optimizer state and files keep their true shapes.
    """
    if stack_path(name.split(".")):
        return leaf, place
    spec = PartitionSpec(*(tuple(axis for axis in _axes(entry) if axis != DATA) or None for entry in place.spec))
    if HEAD.match(name) and mesh.shape[MODEL] > 1:
        extra = -leaf.shape[-1] % mesh.shape[MODEL]
        leaf = jax.lax.with_sharding_constraint(leaf, replicated(mesh))  # XLA finds no better way from width to codes
        leaf = jnp.pad(leaf, [(0, 0)] * (leaf.ndim - 1) + [(0, extra)])
        spec = PartitionSpec(*[None] * (leaf.ndim - 1), MODEL)
    return leaf, NamedSharding(mesh, spec)


def without_padding(leaf: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The gradient of a parameter that `compute_layout` may have padded."""
    return leaf[tuple(slice(size) for size in shape)]


def stack_path(names: list[str]) -> int:
    """Where in a parameter's path the name of its layer stack ends; 0 where it is in none.

    Layers that are not alike are a list: their paths go on with a number, and each is a stack of nothing.
    """
    if STACK not in names[:-1]:
        return 0
    end = names.index(STACK) + 1
    return 0 if names[end].isdigit() else end


def _spec(mesh: Mesh, config: MeshConfig, name: str, shape: tuple[int, ...]) -> PartitionSpec:
    rule = next((axes for pattern, axes in RULES if re.search(pattern, name)), ())
    axes: list[tuple[str, ...]] = [() for _ in shape]
    offset = len(shape) - len(rule)  # the axis of a stack
    homeless = []
    for i, axis in enumerate(rule):
        if axis is None or mesh.shape[axis] == 1 or (axis == DATA and not config.fsdp):
            continue
        if shape[offset + i] % mesh.shape[axis] == 0:
            axes[offset + i] = (axis,)
        else:
            homeless.append(axis)
    # A dimension that does not divide (a vocabulary of 16,385, a GLU of 2,730) leaves its axis to the other one.
    for axis in homeless:
        for i in sorted(range(offset, len(shape)), key=lambda i: -shape[i]):
            if shape[i] % math.prod(mesh.shape[other] for other in (*axes[i], axis)) == 0:
                axes[i] = (*axes[i], axis)
                break
    return PartitionSpec(*(axis[0] if len(axis) == 1 else axis or None for axis in axes))


def _axes(entry: Any) -> tuple[str, ...]:
    """An entry of a PartitionSpec as the axes in it."""
    return () if entry is None else entry if isinstance(entry, tuple) else (entry,)


def _parameter_of(path: list[str], specs: dict[str, Any]) -> str | None:
    """The parameter that a leaf of the optimizer's state belongs to: the end of its path is the parameter's path."""
    for start, group in enumerate(path):
        for name in (path[-1], f"{group}.{path[-1]}"):
            if name in specs and start < len(path) - 1:
                return name
    return None


def _without_a_dimension(shape: tuple[int, ...], spec: PartitionSpec, found: tuple[int, ...]) -> PartitionSpec:
    """The sharding of a statistic of shape `found` of a parameter of that shape and sharding."""
    if found == shape:
        return spec
    axes = (*spec, *[None] * (len(shape) - len(spec)))
    fits = {
        (*axes[:i], *axes[i + 1 :]) for i in range(len(shape)) if found == (*shape[:i], *shape[i + 1 :])
    }  # of a square matrix rows and columns are alike: then both fit
    return PartitionSpec(*fits.pop()) if len(fits) == 1 else PartitionSpec()


def _name(entry: Any) -> str:
    return jax.tree_util.keystr((entry,), simple=True)

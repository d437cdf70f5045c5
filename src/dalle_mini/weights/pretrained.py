"""`from_pretrained` and `save_pretrained` for our Flax nnx modules."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dalle_mini.errors import UserError
from dalle_mini.weights.folder import CONFIG, listed, load_config, load_tensors, save_tensors


class Pretrained:
    """Mixin of a model built as `Model(config, rngs=..., dtype=...)` that keeps its `config`.

    Attributes:
        config_class: the dataclass of the configuration, with `from_dict` and `to_dict`.
        layout: the function of `layouts` that turns a file's tensors into ours.
    """

    config_class: ClassVar[type]
    layout: ClassVar[Callable[[Mapping[str, np.ndarray], Any], dict[str, np.ndarray]]]

    @classmethod
    def from_pretrained(cls, folder: str | Path, dtype=jnp.float32) -> Self:
        """Build the model that a folder describes, with its weights.

        Args:
            folder: holds `config.json` and `model.safetensors`, or `flax_model.msgpack` as the models of 2022 were
                published; either may be sharded.
            dtype: of the parameters in memory and of the computation, whatever the file stores.
        Raises:
            UserError: a file is missing, damaged, or does not fit the configuration; the message names the tensors.
        """
        fields = load_config(folder)
        try:
            config = cls.config_class.from_dict(fields)
            # Shapes only: drawing the random weights of a large model takes longer than reading the real ones.
            graph, state = nnx.split(nnx.eval_shape(lambda: cls(config, rngs=nnx.Rngs(0), dtype=dtype)))
        except UserError as error:
            raise UserError(f"{folder}: {error}") from None
        wanted = flatten(state)
        tensors = load_tensors(folder)
        try:
            found = cls.layout(tensors, config)
        except UserError as error:
            raise UserError(f"{tensors.file}: {error}") from None
        problem = mismatch(wanted, found)
        if problem:
            raise UserError(f"{tensors.file} does not fit the {cls.__name__} of its {CONFIG}: {problem}")
        del tensors
        # `pop`: the file's copy of a tensor is freed as soon as ours exists.
        arrays = {name: _cast(found.pop(name), dtype) for name in wanted}
        return nnx.merge(graph, unflatten(arrays, state))

    def save_pretrained(self, folder: str | Path, dtype=None) -> None:
        """Write `config.json` and `model.safetensors` into a folder, made if need be.

        Args:
            dtype: to store floating-point parameters in, such as float16; as they are in memory by default.
        Raises:
            UserError: the folder cannot be written, or a value does not fit the dtype.
        """
        tensors = {}
        for name, array in flatten(nnx.state(self)).items():
            tensors[name] = stored = _stored(array, dtype)
            if stored.dtype != array.dtype and np.isinf(stored).any() and not np.isinf(array).any():
                raise UserError(f"cannot save into {folder} as {jnp.dtype(dtype).name}: {name} has values beyond it")
        save_tensors(folder, self.config.to_dict(), tensors)


def flatten(state: Mapping) -> dict[str, Any]:
    """A state of a module (or its pure dict) -> {attribute path joined by ".": array}, items of lists by number."""
    flat = {}
    for key, value in state.items():
        if isinstance(value, Mapping | nnx.State):
            flat |= {f"{key}.{name}": leaf for name, leaf in flatten(value).items()}
        else:
            flat[str(key)] = value.get_value() if isinstance(value, nnx.Variable) else value
    return flat


def unflatten(arrays: Mapping[str, Any], like: Mapping) -> Mapping:
    """The inverse of `flatten`: `like` (a state or a pure dict, abstract or not) with the arrays as its leaves."""

    def fill(node: Mapping, prefix: str) -> dict:
        filled = {}
        for key, value in node.items():
            name = f"{prefix}{key}"
            if isinstance(value, Mapping | nnx.State):
                filled[key] = fill(value, name + ".")
            else:
                filled[key] = value.replace(arrays[name]) if isinstance(value, nnx.Variable) else arrays[name]
        return filled

    return type(like)(fill(like, ""))


def mismatch(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """What keeps `found` from being `wanted` (arrays or shapes by name): one line that names tensors, or ""."""
    missing = [f"{name} {list(wanted[name].shape)}" for name in wanted if name not in found]
    unexpected = [f"{name} {list(found[name].shape)}" for name in found if name not in wanted]
    misshapen = [
        f"{name} is {list(found[name].shape)} instead of {list(wanted[name].shape)}"
        for name in wanted
        if name in found and found[name].shape != wanted[name].shape
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("of the wrong shape", misshapen))
    return "; ".join(f"{len(names)} {kind}: {listed(names)}" for kind, names in kinds if names)


def _cast(array: np.ndarray, dtype) -> jax.Array:
    return jnp.asarray(array, dtype if jnp.issubdtype(array.dtype, jnp.floating) else None)


def _stored(array: jax.Array, dtype) -> np.ndarray:
    array = np.asarray(array)
    if dtype is None or not jnp.issubdtype(array.dtype, jnp.floating):
        return array
    with np.errstate(over="ignore"):
        return array.astype(dtype)

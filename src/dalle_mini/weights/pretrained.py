"""`from_pretrained` and `save_pretrained` for our Flax nnx modules."""

import functools
import math
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dalle_mini.errors import UserError, listed
from dalle_mini.weights.folder import CONFIG, load_config, load_tensors, save_tensors
from dalle_mini.weights.formats.tensors import Tensor, is_float
from dalle_mini.weights.hub.repository import blaming_cache, resolve

DTYPES = ("float32", "bfloat16", "float16")
Tree = TypeVar("Tree", dict, nnx.State)
ALIGNMENT = 64  # bytes: JAX on a CPU takes memory so aligned as it is, and copies other memory


class ModelConfig(Protocol):
    """The configuration of a model, as `config.json` has it."""

    model_type: ClassVar[str]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Raises UserError where no model can have these values."""
        ...

    def to_dict(self) -> dict[str, Any]: ...


class Pretrained:
    """Mixin of a model built as `Model(config, rngs=..., dtype=...)` that keeps its `config`.

    Attributes:
        config: the configuration that it was built with.
        config_class: the dataclass of the configuration.
        map_keys: the function of `key_mapping` that turns a file's tensors into ours.
    """

    config: ModelConfig
    config_class: ClassVar[type[ModelConfig]]
    map_keys: "ClassVar[staticmethod[[Mapping[str, Tensor], Any], dict[str, Tensor]]]"  # Python 3.11 cannot make it

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike,
        dtype=jnp.float32,
        *,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | os.PathLike | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """Build the model that a folder describes, with its weights.

        In memory at once are the model and, beside it, at most one tensor; on a CPU not even that, since the
        file is read into the memory that the model keeps.

        Args:
            source: a folder that holds `config.json` and `model.safetensors`, `flax_model.msgpack` as the models of
                2022 were published, or `pytorch_model.bin`; each may be sharded. Or a repository of the Hub,
                `owner/name`, or a wandb artifact, `entity/project/name:version`, that holds the same.
            dtype: of the parameters in memory and of the computation, whatever the file stores: one of `DTYPES`.
            revision, token, cache_dir, local_files_only: of the Hub, as in `hub.resolve`.
        Raises:
            UserError: a file is missing, damaged, or does not fit the configuration; the message names the tensors.
        """
        dtype = compute_dtype(dtype)
        folder = resolve(source, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only)
        with blaming_cache(folder):
            return cls._from_folder(folder, dtype)

    @classmethod
    def _from_folder(cls, folder: Path, dtype) -> Self:
        config, tensors = cls.open_pretrained(folder)
        graph, state = cls.shapes(config, dtype)
        arrays = {name: to_device(tensors[name], dtype) for name in flatten(state)}
        return nnx.merge(graph, unflatten(arrays, state))

    @classmethod
    def open_pretrained(cls, folder: Path) -> tuple[Any, dict[str, Tensor]]:
        """The config of a folder and its tensors by our names, checked against each other; none is read yet.

        Raises:
            UserError: as `from_pretrained`.
        """
        fields = load_config(folder)
        try:
            config = cls.config_class.from_dict(fields)
            wanted = flatten(cls.shapes(config)[1])
        except UserError as error:
            raise UserError(f"{folder}: {error}") from None
        tensors = load_tensors(folder)
        try:
            found = cls.map_keys(tensors, config)
        except UserError as error:
            raise UserError(f"{tensors.file}: {error}") from None
        problem = mismatch(wanted, found)
        if problem:
            raise UserError(f"{tensors.file} does not fit the {cls.__name__} of its {CONFIG}: {problem}")
        return config, {name: found[name] for name in wanted}

    @classmethod
    def shapes(cls, config, dtype=jnp.float32) -> tuple[nnx.GraphDef, nnx.State]:
        """The structure and shapes: drawing a large model's random weights takes longer than reading real ones."""
        with _SHAPES_LOCK:  # the thread that compiles ahead asks for the same as the one that loads
            return _shapes(cls, config, np.dtype(dtype))  # type: ignore[arg-type]  # a class is hashable

    def save_pretrained(self, folder: str | Path, dtype=None) -> None:
        """Write `config.json` and `model.safetensors` into a folder, made if need be.

        Args:
            dtype: to store floating-point parameters in, such as float16; as they are in memory by default.
        Raises:
            UserError: the folder cannot be written, or a value does not fit the dtype.
        """
        tensors = {name: from_device(jnp.asarray(array)) for name, array in flatten(nnx.state(self)).items()}
        save_tensors(folder, self.config.to_dict(), tensors, dtype)

    def push_to_hub(self, repo_id: str, **options) -> str:
        """Upload the model to the Hub and return the commit's address.

        The options are `private`, `token`, `commit_message`, `revision` and `license`, as in `publish.push`.
        """
        from dalle_mini.weights.publish import push

        return push(self.save_pretrained, repo_id, **options)


Network = TypeVar("Network", bound=Pretrained)


def class_of(folder: Path, networks: Sequence[type[Network]]) -> type[Network]:
    """The network whose `model_type` the config of a folder has; the first, which complains, where it is none's.

    Raises:
        UserError: the config is missing or damaged.
    """
    with blaming_cache(folder):
        kind = load_config(folder).get("model_type")
    return next((one for one in networks if one.config_class.model_type == kind), networks[0])


class SameKeys:
    """In place of nnx.Rngs where no number is ever drawn: its keys need no counters, which are most of the time."""

    def __init__(self, key):
        self._key = key

    def params(self):
        return self._key


_SHAPES_LOCK = threading.Lock()


@functools.lru_cache(maxsize=16)
def _shapes(cls, config, dtype) -> tuple[nnx.GraphDef, nnx.State]:
    return nnx.split(nnx.eval_shape(lambda: cls(config, rngs=SameKeys(jax.random.key(0)), dtype=dtype)))


def compute_dtype(dtype) -> np.dtype:
    """A dtype that a model can compute in, from its name or itself. Raises UserError where it is none of `DTYPES`."""
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        found = None
    if found is None or found.name not in DTYPES:
        raise UserError(f"dtype {getattr(found, 'name', dtype)!r:.60} is none of {', '.join(DTYPES)}")
    return found


def to_device(tensor: Tensor, dtype) -> jax.Array:
    """Read a tensor to where JAX computes, cast if its values are floating-point.

    On a CPU the result is the memory that the file was read into; elsewhere that memory is freed on return.
    """
    dtype = np.dtype(dtype) if is_float(tensor.dtype) else tensor.dtype
    size = math.prod(tensor.shape) * dtype.itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    values = memory[start : start + size].view(dtype).reshape(tensor.shape)
    tensor.read_into(values)
    return jax.block_until_ready(jax.device_put(values, may_alias=True))


def from_device(array: jax.Array) -> Tensor:
    """A parameter, copied from where it lies when it is read; on a CPU it is only looked at."""

    def values() -> np.ndarray:
        # An array keeps the copy that numpy makes of it, so ask one that is about to go.
        shards = [shard.data for shard in array.addressable_shards]
        return np.asarray(jax.make_array_from_single_device_arrays(array.shape, array.sharding, shards))

    def fill(out: np.ndarray) -> None:
        out[...] = values()

    return Tensor(array.shape, np.dtype(array.dtype), lambda start, stop: np.atleast_1d(values())[start:stop], fill)


def flatten(state: Mapping) -> dict[str, Any]:
    """A state of a module (or its pure dict) -> {attribute path joined by ".": array}, items of lists by number."""
    flat: dict[str, Any] = {}
    for key, value in state.items():
        if isinstance(value, Mapping | nnx.State):
            flat |= {f"{key}.{name}": leaf for name, leaf in flatten(value).items()}
        else:
            flat[str(key)] = value.get_value() if isinstance(value, nnx.Variable) else value
    return flat


def unflatten(arrays: Mapping[str, Any], like: Tree) -> Tree:
    """The inverse of `flatten`: `like` (a state or a pure dict, abstract or not) with the arrays as its leaves."""

    def fill(node: Mapping, prefix: str) -> dict:
        filled: dict[str, Any] = {}
        for key, value in node.items():
            name = f"{prefix}{key}"
            if isinstance(value, Mapping | nnx.State):
                filled[key] = fill(value, name + ".")
            else:
                filled[key] = value.replace(arrays[name]) if isinstance(value, nnx.Variable) else arrays[name]
        return filled

    return type(like)(fill(like, ""))


def mismatch(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Why `found` is not `wanted` (tensors by name): one line that names tensors, or ""."""
    missing = [f"{name} {list(wanted[name].shape)}" for name in wanted if name not in found]
    unexpected = [f"{name} {list(found[name].shape)}" for name in found if name not in wanted]
    misshapen = [
        f"{name} is {list(found[name].shape)} instead of {list(wanted[name].shape)}"
        for name in wanted
        if name in found and found[name].shape != wanted[name].shape
    ]
    mistyped = [
        f"{name} is {found[name].dtype}"
        for name in wanted
        if name in found and is_float(wanted[name].dtype) and not is_float(found[name].dtype)
    ]
    kinds = (
        ("missing", missing),
        ("unexpected", unexpected),
        ("of the wrong shape", misshapen),
        ("of a type that is not floating-point", mistyped),
    )
    return "; ".join(f"{len(names)} {kind}: {listed(names)}" for kind, names in kinds if names)

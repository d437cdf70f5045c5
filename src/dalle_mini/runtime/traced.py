"""Keeps what JAX traced, so that a later run of the command need not trace it again.

JAX's compilation cache spares compiling, but a program is found there only by its HLO, for which JAX traces the
function and lowers it every time. `jax.export` writes the lowered function to a file. Reading that takes a tenth of the
time. The compilation cache then has the program of the file, as it had that of the function.

A file is named after all that decides the program: the function, the files of this package, the versions of jax and
flax, JAX's settings, and the arguments' structure, shapes and types. They are kept where a CPU is the only device.
Elsewhere programs are traced each time, as is what `jax.export` cannot write.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import re
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

from dalle_mini.runtime import files
from dalle_mini.runtime.hashing import short_hash

folder: Path | None = None  # where they are kept, which belongs to the user alone; `compilation.keep_compiled` sets it

DIGEST = 32  # bytes of SHA-256 ahead of the file's content
MOST_BYTES = 1 << 28  # of a file
# The settings that change what is traced.
SETTINGS = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_numpy_dtype_promotion",
    "jax_numpy_rank_promotion",
    "jax_threefry_partitionable",
)
OURS = ("builtins", "dalle_mini", "flax", "jax", "jaxlib", "numpy")  # whose classes a network is made of
ADDRESS = re.compile(r" at 0x[0-9a-f]+")


class Kept:
    """A program for arguments of one structure and one set of shapes, called as `jax.jit(function)` is.

    Args:
        exported: of a function of the arguments' leaves, in order.
        name: the function's, by which the compilation cache names the program.
        static: the number of the one argument that the program does not take, or None.
        options: `jax.jit`'s.
    """

    def __init__(self, exported: Any, name: str, static: int | None, **options: Any):
        import jax

        def run(*leaves: Any) -> Any:
            return exported.call(*leaves)

        run.__name__ = run.__qualname__ = name
        self._static, self._program = static, jax.jit(run, **options)

    def __call__(self, *arguments: Any) -> Any:
        return self._program(*self._leaves(arguments))

    def lower(self, *arguments: Any) -> Any:
        return self._program.lower(*self._leaves(arguments))

    def eval_shape(self, *arguments: Any) -> Any:
        import jax

        # Without the shardings that an exported function tells, which the arrays themselves do not have.
        found = self._program.eval_shape(*self._leaves(arguments))
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), found)

    def _cache_size(self) -> int:
        return self._program._cache_size()  # type: ignore[attr-defined]  # jax's own

    def _leaves(self, arguments: Sequence[Any]) -> list[Any]:
        import jax

        return jax.tree.leaves(without(arguments, self._static))


def kind(arguments: Sequence[Any], static: int | None) -> Hashable:
    """Arguments of one kind have the same program."""
    import jax

    leaves, tree = jax.tree.flatten(without(arguments, static))
    fixed = None if static is None else arguments[static]
    shapes = tuple((getattr(leaf, "shape", None), getattr(leaf, "dtype", None)) for leaf in leaves)
    return fixed, tree, shapes


def without(arguments: Sequence[Any], static: int | None) -> tuple[Any, ...]:
    """The arguments but the static one."""
    return tuple(one for number, one in enumerate(arguments) if number != static)


def program(
    function: Callable,
    closure: Sequence[Any],
    arguments: Sequence[Any],
    *,
    compiler_options: dict[str, str] | None = None,
    static_argnums: int | None = None,
    donate_argnames: str | None = None,
) -> Kept | None:
    """The program of `jax.jit(function, ...)` for such arguments, or None where it cannot be kept.

    Args:
        function: one of this package's.
        closure: all that it depends on besides its arguments.
        arguments: pytrees of arrays or of their shapes, and the static argument.
    """
    import jax

    fixed = () if static_argnums is None else arguments[static_argnums : static_argnums + 1]
    given = without(arguments, static_argnums)
    leaves, tree = jax.tree.flatten(given)

    def of_leaves(*leaves: Any) -> Any:
        found = list(jax.tree.unflatten(tree, leaves))
        if static_argnums is not None:
            found.insert(static_argnums, *fixed)
        return function(*found)

    devices = jax.local_devices()
    if [device.platform for device in devices] != ["cpu"]:
        return None
    key = _key(function, [*closure, *fixed], given)
    exported = None if key is None else _exported(f"{function.__name__}-{key}", of_leaves, leaves)
    if exported is None:
        return None
    gone: list[int] = []
    if donate_argnames is not None:
        number = list(inspect.signature(function).parameters).index(donate_argnames)
        owners = [owner for owner, one in enumerate(arguments) for _ in jax.tree.leaves(one) if owner != static_argnums]
        gone = [place for place, owner in enumerate(owners) if owner == number]
    # JAX takes the results of an exported function for results on a device that was chosen, unlike those of a traced
    # one. If that is said of all arguments and results, there is one program, wherever the arguments come from.
    here = jax.sharding.SingleDeviceSharding(*devices)
    options = {"in_shardings": here, "out_shardings": here, "donate_argnums": gone}
    return Kept(exported, function.__name__, static_argnums, compiler_options=compiler_options, **options)


def _exported(name: str, function: Callable, leaves: Sequence[Any]) -> Any:
    """The `jax.export.Exported` of a function of leaves: from its file, or written into it; None if there is no way."""
    import jax
    from jax import export

    assert folder is not None
    file = folder / f"{name}.traced"
    try:
        return _without_lapack(export.deserialize(bytearray(_read(file))))
    except Exception:  # there is none, or it is damaged: it is made anew
        pass
    specs = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
    try:
        made = export.export(jax.jit(function))(*specs)
        content, made = bytes(made.serialize()), _without_lapack(made)
    except Exception:  # jax.export does not know an operation or a type of it, or lacks flatbuffers
        return None
    _write(file, content)
    return made


def _without_lapack(exported: Any) -> Any:
    """The same, said to be for any platform.

    Before it calls a program for a CPU, `jax.export` imports SciPy, because LAPACK might be needed. That takes as long
    as tracing the program, and none of ours needs it.
    """
    from jax.export import DisabledSafetyCheck

    anywhere = *exported.disabled_safety_checks, DisabledSafetyCheck.platform()
    return dataclasses.replace(exported, platforms=("any",), disabled_safety_checks=anywhere)


def _read(file: Path) -> bytes:
    """Raises OSError or ValueError if there is no whole file."""
    data = files.read_bytes(file, MOST_BYTES)
    content = data[DIGEST:]
    if hashlib.sha256(content).digest() != data[:DIGEST]:
        raise ValueError(f"{file} is damaged")
    return content


def _write(file: Path, content: bytes) -> None:
    try:
        with files.writing_whole(file, sync=False) as whole:
            whole.write(hashlib.sha256(content).digest() + content)
    except OSError:  # a full disk, which JAX's own cache tells of
        pass


def _key(function: Callable, static: Sequence[Any], arguments: Sequence[Any]) -> str | None:
    import jax

    leaves, tree = jax.tree.flatten(arguments)
    if not all(hasattr(leaf, "shape") and hasattr(leaf, "dtype") for leaf in leaves):
        return None
    if not all(map(_is_known, static)):
        return None
    parts = [_origin(), function.__module__, function.__qualname__, str(tree)]
    parts += [f"{leaf.dtype}{list(leaf.shape)}" for leaf in leaves]
    parts += [ADDRESS.sub("", repr(value)) for value in static]
    parts += [f"{name}={getattr(jax.config, name, None)}" for name in SETTINGS]
    return short_hash("\n".join(parts))


def _is_known(static: Any) -> bool:
    """Whether the text of a static argument tells all of it: a network may have a class that is not of this package."""
    nodes = getattr(getattr(static, "graphdef", static), "nodes", ())
    return all(node.type.__module__.partition(".")[0] in OURS for node in nodes)


@functools.cache
def _origin() -> str:
    """The files of this package as they are now, and the versions of what traces."""
    import flax
    import jax
    import numpy as np

    package = Path(__file__).parent.parent
    found = [(str(path), path.stat()) for path in sorted(package.rglob("*.py"))]
    parts = [f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in found]
    return "\n".join([*parts, jax.__version__, flax.__version__, np.__version__])

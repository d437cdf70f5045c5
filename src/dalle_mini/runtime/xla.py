"""Exact products on a CPU, whatever the processor and the release of jax.

By default XLA leaves products on a CPU to the library YNNPACK, and from jax 0.10.1 on also sums and the operations
around them.

- YNNPACK rounds a product of float32 as XLA does, but sums longer chains: the error of a product of 4,096 terms is 1.3
  times as large, and differs between processors. Guidance multiplies it by twenty.
- The operations around sums are sometimes wrong: a batched product with a broadcast constant, multiplied and summed,
  came out 1e23 times too large with jax 0.10.2 to 0.12.0.1, which read memory that nothing had written.
- Products of bfloat16 and of int8 are two to four times as quick in YNNPACK, and coarser than any order of summing.

So XLA compiles the programs itself and leaves two kinds of single products to YNNPACK: those of programs in the smaller
types, and those that sum few terms.
"""

import functools
import os
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from dalle_mini.runtime import traced

FUSIONS = "xla_cpu_experimental_ynn_fusion_type"  # the operations left to YNNPACK; empty: none
SINGLE_PRODUCTS = "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"
SMALL = ("bfloat16", "float16", "int8")
# The releases of jaxlib that know the flag: an unknown one ends the process.
KNOWN = (0, 10), (0, 13)

# With these options of a program, XLA makes one CUDA graph of a whole loop. By default it leaves WHILE out, makes a
# graph of the loop's body, and reads the condition on the host. A graph has at least five operations by default, and a
# loop counts as one: without the second option such a loop would have no graph at all. XLA has had WHILE since December
# 2024 (openxla/xla#19528); it needs CUDA 12.3. An unknown name in the options of a program does not end the process.
WHOLE_LOOPS = {
    "xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION,CONDITIONAL,WHILE",
    "xla_gpu_graph_min_graph_size": "1",
}


def ask_for_exact_products() -> None:
    """Set XLA's flag for programs that are not compiled here: a user's own, and those of single operations.

    XLA reads its flags with the process's first array and ignores later changes. A value that the user chose stays.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if FUSIONS not in flags and _is_known():
        os.environ["XLA_FLAGS"] = f"{flags} --{FUSIONS}=".strip()


def compiler_options(dtype: Any, platform: str, *, short_sums: bool = False) -> dict[str, str] | None:
    """The `compiler_options` of `jax.jit` for a program in that type; None where XLA's flags decide.

    With `short_sums` its products sum so few terms that they are as exact by any library.
    """
    import numpy as np

    chosen = re.search(rf"--{FUSIONS}=\S", os.environ.get("XLA_FLAGS", ""))
    if platform != "cpu" or chosen or not _is_known():
        return None
    return {FUSIONS: SINGLE_PRODUCTS if short_sums or np.dtype(dtype).name in SMALL else ""}


class Jit:
    """`jax.jit(function, **options)` whose programs are compiled as `compiler_options` says.

    A program counts as one in a smaller type if one of its arguments has such a type. A call within another program
    becomes a part of that program.

    Args:
        function: with positional arguments.
        short_sums: as in `compiler_options`.
        on_gpu: tells from the arguments with which options a GPU's compiler is called.
        kept: all that the function closes over, if what is traced of it may be kept on disk (`traced.py`).
        options: those of `jax.jit`.
    """

    def __init__(
        self,
        function: Callable,
        *,
        short_sums: bool = False,
        on_gpu: Callable[..., dict[str, str]] | None = None,
        kept: Sequence[Any] | None = None,
        **options: Any,
    ):
        self._function, self._short_sums, self._on_gpu, self._options = function, short_sums, on_gpu, options
        self._kept = kept
        self._programs: dict[Any, Any] = {}
        self._turn = threading.RLock()  # several threads that begin at once would all compile the same program
        functools.update_wrapper(self, function)

    def __call__(self, *arguments: Any) -> Any:
        with self._turn:
            return self._program(arguments)(*arguments)

    def lower(self, *arguments: Any) -> Any:
        with self._turn:
            return self._program(arguments).lower(*arguments)

    def eval_shape(self, *arguments: Any) -> Any:
        return self._program(arguments).eval_shape(*arguments)

    def _cache_size(self) -> int:
        """The number of programs that were made, as `jax.jit`'s own method tells it."""
        return sum(program._cache_size() for program in self._programs.values())

    def _program(self, arguments: tuple) -> Any:
        import jax

        leaves = jax.tree.leaves(arguments)
        within = any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
        chosen = None
        if not within:
            platform = _platform(leaves)
            chosen = compiler_options(_type(leaves), platform, short_sums=self._short_sums)
            if self._on_gpu is not None and platform == "gpu" and _is_known():
                chosen = self._on_gpu(*arguments) or None
        key: Any = None if chosen is None else ",".join(chosen.values())
        closure = None if within or traced.folder is None else self._kept
        if closure is not None:
            key = key, traced.kind(arguments, self._options.get("static_argnums"))
        with self._turn:
            if key not in self._programs:
                options = {"compiler_options": chosen, **self._options}
                kept = None if closure is None else traced.program(self._function, closure, arguments, **options)
                self._programs[key] = kept or jax.jit(self._function, **options)
            return self._programs[key]


def _type(leaves: Iterable[Any]) -> str:
    names = {str(getattr(leaf, "dtype", None)) for leaf in leaves}
    return next((name for name in SMALL if name in names), "float32")


def _platform(leaves: Iterable[Any]) -> str:
    """The platform where the arrays are, or would be."""
    import jax

    for leaf in leaves:
        if (sharding := getattr(leaf, "sharding", None)) is not None:
            return next(iter(sharding.device_set)).platform
    return jax.default_backend()


@functools.cache
def _is_known() -> bool:
    try:
        from jaxlib.version import __version__
    except ImportError:
        return False
    release = tuple(map(int, re.findall(r"\d+", __version__)[:2]))
    return KNOWN[0] <= release < KNOWN[1]

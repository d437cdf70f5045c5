"""Reading `flax_model.msgpack`, the format of `flax.serialization.to_bytes`, from files that nobody vouches for.

The file is one msgpack map, nested by module. A leaf is an extension object that packs (shape, dtype name, raw
little-endian C-order bytes); an array above 2**30 bytes is a map of flat chunks. The tree is walked here, tensor by
tensor, so that a cut or damaged file can be described by the name of the tensor at which reading stopped.
"""

import math
import os
from pathlib import Path

import ml_dtypes
import msgpack
import numpy as np

from dalle_mini.errors import UserError

# Extension codes of flax.serialization; 2, a Python complex number, has no business among weights.
NDARRAY, NUMPY_SCALAR = 1, 3
CHUNKED = "__msgpack_chunked_array__"

# A closed list: `np.dtype(name)` on a stranger's string would also make object and structured arrays.
INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
DTYPES = {name: np.dtype(name) for name in ["bool", "float16", "float32", "float64", *INTEGERS]} | {
    "bfloat16": np.dtype(ml_dtypes.bfloat16)
}

MAX_DEPTH = 64
READ_SIZE = 1 << 20


def read_msgpack(path: Path) -> dict[str, np.ndarray]:
    """Read every tensor of a Flax msgpack file into memory, in its stored dtype.

    Returns:
        name -> read-only array; the name is the path in the tree, joined by "/".
    Raises:
        UserError: the file is cut short, damaged, or holds something that is not an array of numbers; the message
            names the file and the tensor.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        tree = _Tree(stream, size)
        try:
            tree.walk("", depth=0)
        except msgpack.OutOfData:
            raise UserError(
                f"{path} is cut short: its {size} bytes end inside {tree.place}, after {len(tree.tensors)} whole "
                "tensors; download or copy it again"
            ) from None
        except (ValueError, msgpack.UnpackException) as error:
            raise UserError(f"{path} is damaged or not a Flax weights file, at {tree.place}: {error}") from None
    return tree.tensors


class _Tree:
    """One pass over one file. `tensors` has what was read so far and `place` says where reading is."""

    def __init__(self, stream, size: int):
        self.tensors: dict[str, np.ndarray] = {}
        self.place = "its first bytes"
        self._file, self._size = stream.fileno(), size
        # No object of an honest file is larger than the file, so its size is the only memory limit needed.
        limit = max(size, READ_SIZE)
        self._unpacker = msgpack.Unpacker(
            stream, read_size=READ_SIZE, max_buffer_size=limit, max_array_len=64, max_map_len=1 << 20, ext_hook=_array
        )

    def walk(self, name: str, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise ValueError(f"maps are nested more than {MAX_DEPTH} deep")
        if not self._at_map():
            if not depth:
                raise ValueError("it does not start with a map")
            self._add(name, self._unpacker.unpack())
            return
        for _ in range(self._unpacker.read_map_header()):
            key = self._unpacker.unpack()
            if not isinstance(key, str):
                raise ValueError(f"a key is a {type(key).__name__}, not text")
            if key == CHUNKED:
                self._add(name, self._chunked())
                return
            child = f"{name}/{key}" if name else key
            self.place = f"tensor {child}"
            self.walk(child, depth + 1)
        if not depth and self._unpacker.tell() != self._size:
            raise ValueError(f"{self._size - self._unpacker.tell()} bytes follow the end of the map")

    def _add(self, name: str, leaf: object) -> None:
        if not isinstance(leaf, np.ndarray):
            raise ValueError(f"it is a {type(leaf).__name__}, not an array")
        if name in self.tensors:
            raise ValueError("the name occurs twice")
        self.tensors[name] = leaf

    def _chunked(self) -> np.ndarray:
        """The rest of {CHUNKED: True, "shape": {"0": n, ...}, "chunks": {"0": flat array, ...}}."""
        self._unpacker.unpack()
        parts = {self._unpacker.unpack(): self._unpacker.unpack() for _ in range(2)}
        try:
            shape = [parts["shape"][str(i)] for i in range(len(parts["shape"]))]
            chunks = [parts["chunks"][str(i)] for i in range(len(parts["chunks"]))]
            return np.concatenate(chunks).reshape(shape)
        except (KeyError, TypeError, AttributeError):
            raise ValueError("a chunked array lacks its shape or its chunks") from None

    def _at_map(self) -> bool:
        # The library reads a map header or a whole object but cannot look ahead; the first byte tells which is next.
        byte = os.pread(self._file, 1, self._unpacker.tell())
        return bool(byte) and (0x80 <= byte[0] <= 0x8F or byte[0] in (0xDE, 0xDF))


def _array(code: int, data: bytes) -> np.ndarray:
    if code not in (NDARRAY, NUMPY_SCALAR):
        raise ValueError(f"extension type {code} is not an array")
    packed = msgpack.unpackb(data, max_array_len=64)
    if not (isinstance(packed, list) and len(packed) == 3):
        raise ValueError("an array is not packed as (shape, dtype, bytes)")
    shape, name, raw = packed
    if not (isinstance(name, str) and name in DTYPES):
        raise ValueError(f"dtype {name!r} is not a number type of weights")
    if not (isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape) and isinstance(raw, bytes)):
        raise ValueError("an array is not packed as (shape, dtype, bytes)")
    dtype = DTYPES[name]
    if math.prod(shape) * dtype.itemsize != len(raw):
        raise ValueError(f"{len(raw)} bytes do not make a {name} array of shape {shape}")
    return np.frombuffer(raw, dtype).reshape(shape)

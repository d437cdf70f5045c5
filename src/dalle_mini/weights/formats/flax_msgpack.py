"""Reading `flax_model.msgpack`, the format of `flax.serialization.to_bytes`, from files that nobody vouches for.

The file is one msgpack map, nested by module. A leaf is an extension object that packs (shape, dtype name, raw
little-endian C-order bytes); an array above 2**30 bytes is a map of flat chunks. Only what stands between the raw bytes
is read here, and a damaged or cut file is described by the name of the tensor at which reading stopped.

Formats: https://github.com/msgpack/msgpack/blob/master/spec.md and the source of `flax.serialization`.
"""

import math
from pathlib import Path

import ml_dtypes
import numpy as np

from dalle_mini.errors import UserError
from dalle_mini.runtime.limits import Exceeded, check, limits
from dalle_mini.weights.formats.tensors import MAX_AXES, Tensor, TensorFile, check_shape

# Extension codes of flax.serialization; 2, a Python complex number, has no business among weights.
NDARRAY, NUMPY_SCALAR = 1, 3
CHUNKED = "__msgpack_chunked_array__"

# A closed list: `np.dtype(name)` on a stranger's string would also make object and structured arrays.
INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
DTYPES = {name: np.dtype(name) for name in ["bool", "float16", "float32", "float64", *INTEGERS]} | {
    "bfloat16": np.dtype(ml_dtypes.bfloat16)
}

MAX_DEPTH = 64
READ_BYTES = 4096  # more than stands between the values of one tensor and those of the next

# The first byte of an object -> (kind, bytes that its length or value takes). The kinds are named as Python's types.
_HEADS = (
    {0xC0: ("NoneType", 0), 0xC2: ("bool", 0), 0xC3: ("bool", 0), 0xCA: ("float", 4), 0xCB: ("float", 8)}
    | {0xC4 + i: ("bytes", 1 << i) for i in range(3)}
    | {0xC7 + i: ("ext", 1 << i) for i in range(3)}
    | {0xCC + i: ("int", 1 << i) for i in range(4)}
    | {0xD0 + i: ("int", 1 << i) for i in range(4)}
    | {0xD9 + i: ("str", 1 << i) for i in range(3)}
    | {0xDC + i: ("list", 2 << i) for i in range(2)}
    | {0xDE + i: ("dict", 2 << i) for i in range(2)}
)
_SIGNED = range(0xD0, 0xD4)

_UNPACKED = "an array is not packed as (shape, dtype, bytes)"
_UNCHUNKED = "a chunked array lacks its shape or its chunks"


def read_msgpack(path: Path) -> dict[str, Tensor]:
    """Find every tensor of a Flax msgpack file; values are read when they are asked for.

    Returns:
        name -> tensor in its stored dtype; the name is the path in the tree, joined by "/".
    Raises:
        UserError: the file is cut short, damaged, or holds something that is not an array of numbers; the message
            names the file and the tensor.
        OSError: it cannot be opened.
    """
    file = TensorFile(path)
    tree = _Tree(file)
    try:
        tree.walk("", depth=0)
    except EOFError:
        raise UserError(
            f"{path} is cut short: its {file.size} bytes end inside {tree.place}, after {len(tree.tensors)} whole "
            "tensors; download or copy it again"
        ) from None
    except Exceeded as error:
        raise UserError(f"{path}, at {tree.place:.200}: {error}") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged or not a Flax weights file, at {tree.place}: {error}") from None
    return tree.tensors


class _Tree:
    """One pass over one file. `tensors` has what was found so far and `place` says where reading is."""

    def __init__(self, file: TensorFile):
        self.tensors: dict[str, Tensor] = {}
        self.place = "its first bytes"
        self._file = file
        self._position = 0
        self._buffer, self._buffer_start = b"", 0
        self._longest = limits().tensor_name
        self._names = 0

    def walk(self, name: str, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise ValueError(f"maps are nested more than {MAX_DEPTH} deep")
        kind, length = self._head()
        if kind != "dict":
            if not depth:
                raise ValueError("it does not start with a map")
            self._add(name, self._array(name, kind, length))
            return
        for _ in range(length):
            key = self._key()
            if key == CHUNKED:
                self._add(name, self._chunked(name))
                return
            child = f"{name}/{key}" if name else key
            check("tensor_name", len(child), "a tensor's name has more than {} characters")
            self._named()
            self.place = f"tensor {child}"
            self.walk(child, depth + 1)
        if not depth and self._position != self._file.size:
            raise ValueError(f"{self._file.size - self._position} bytes follow the end of the map")

    def _named(self) -> None:
        self._names += 1
        check("tensors", self._names, "it has more than {} tensors and maps of them")

    def _add(self, name: str, tensor: Tensor) -> None:
        if name in self.tensors:
            raise ValueError("the name occurs twice")
        self.tensors[name] = tensor

    def _array(self, name: str, kind: str, length: int) -> Tensor:
        """An object of this head, which has to be an extension that packs [shape, dtype name, bytes]."""
        if kind != "ext":
            raise ValueError(f"it is a {kind}, not an array")
        code = self._take(1)[0]
        if code not in (NDARRAY, NUMPY_SCALAR):
            raise ValueError(f"extension type {code} is not an array")
        end = self._position + length
        if end > self._file.size:
            raise EOFError
        if self._expect("list") != 3:
            raise ValueError(_UNPACKED)
        axes = self._expect("list")
        if axes > MAX_AXES:
            raise ValueError(f"an array has {axes} axes")
        shape = [self._expect("int") for _ in range(axes)]
        dtype = self._text()
        if dtype not in DTYPES:
            raise ValueError(f"dtype {dtype!r} is not a number type of weights")
        count = self._expect("bytes")
        if self._position + count != end or any(n < 0 for n in shape):
            raise ValueError(_UNPACKED)
        tensor = self._file.tensor(name, self._position, count, shape, DTYPES[dtype])
        self._position = end
        return tensor

    def _chunked(self, name: str) -> Tensor:
        """The rest of {CHUNKED: True, "shape": {"0": n, ...}, "chunks": {"0": flat array, ...}}."""
        self._head()
        sides: dict[str, dict[str, int]] = {}
        parts: dict[str, dict[str, Tensor]] = {}
        for _ in range(2):
            key = self._text(_UNCHUNKED)
            items = range(self._expect("dict", _UNCHUNKED))
            if key == "shape":
                if len(items) > MAX_AXES:
                    raise ValueError(f"an array has {len(items)} axes")
                sides[key] = {self._text(_UNCHUNKED): self._expect("int", _UNCHUNKED) for _ in items}
            else:
                parts[key] = {self._text(_UNCHUNKED): self._chunk(name) for _ in items}
        try:
            shape = [sides["shape"][str(i)] for i in range(len(sides["shape"]))]
            chunks = [parts["chunks"][str(i)] for i in range(len(parts["chunks"]))]
        except KeyError:
            raise ValueError(_UNCHUNKED) from None
        if not chunks or any(len(chunk.shape) != 1 or chunk.dtype != chunks[0].dtype for chunk in chunks):
            raise ValueError("the chunks of an array are not flat arrays of one dtype")
        flat = Tensor.concatenate(chunks)
        check_shape(shape, flat.dtype)
        if math.prod(shape) != flat.shape[0]:
            raise ValueError(f"chunks of {flat.shape[0]} values in all do not make an array of shape {shape}")
        return flat.reshape(*shape)

    def _chunk(self, name: str) -> Tensor:
        self._named()
        return self._array(name, *self._head())

    def _key(self) -> str:
        kind, length = self._head()
        if kind != "str":
            raise ValueError(f"a key is a {kind}, not text")
        return self._decoded(length)

    def _text(self, complaint: str = _UNPACKED) -> str:
        return self._decoded(self._expect("str", complaint))

    def _decoded(self, length: int) -> str:
        if length > self._longest:
            check("tensor_name", length, "a name has more than {} bytes")
        return self._take(length).decode()

    def _expect(self, kind: str, complaint: str = _UNPACKED) -> int:
        found, number = self._head()
        if found != kind:
            raise ValueError(complaint)
        return number

    def _head(self) -> tuple[str, int]:
        """The next object's kind, and the value of an integer or the length of the rest (an extension's code apart)."""
        byte = self._take(1)[0]
        if byte < 0x80:
            return "int", byte
        if byte >= 0xE0:
            return "int", byte - 0x100
        if byte < 0xA0:
            return "dict" if byte < 0x90 else "list", byte & 0x0F
        if byte < 0xC0:
            return "str", byte & 0x1F
        if 0xD4 <= byte <= 0xD8:
            return "ext", 1 << (byte - 0xD4)
        if byte not in _HEADS:
            raise ValueError(f"no object starts with the byte {byte:#04x}")
        kind, width = _HEADS[byte]
        return kind, int.from_bytes(self._take(width), "big", signed=byte in _SIGNED)

    def _take(self, count: int) -> bytes:
        """The next bytes. Raises EOFError where the file ends before that."""
        begin = self._position - self._buffer_start
        if begin + count > len(self._buffer):
            self._buffer, self._buffer_start = self._file.bytes(self._position, READ_BYTES), self._position
            begin = 0
            if count > len(self._buffer):
                raise EOFError
        self._position += count
        return self._buffer[begin : begin + count]

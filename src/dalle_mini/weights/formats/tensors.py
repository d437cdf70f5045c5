"""A tensor of a file that is not read yet.

Loading a model of billions of parameters must not hold it in memory twice. So what passes between the readers of files,
`key_mapping` and the model is not arrays but these: a shape, a dtype and a way to read some rows. Stacking,
slicing and transposing them costs nothing until the values are asked for, and the values are asked for one
tensor at a time, in pieces, straight into the memory where they are to stay.
"""

from __future__ import annotations

import itertools
import math
import os
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import ml_dtypes
import numpy as np

from dalle_mini.errors import UserError
from dalle_mini.runtime import files

PIECE_BYTES = 4 << 20  # at most, unless a row is longer, are in memory beside the array that rows are read into
CAST_BYTES = 1 << 20  # small enough to stay in a processor's cache between being read and being cast
READ_BYTES = 1 << 30  # in one call; some systems refuse more than 2**31
MAX_AXES = 64  # numpy's own limit
END = 1 << 62  # numpy makes no array of so many bytes, even if it is empty


@dataclass(frozen=True)
class Tensor:
    """One named tensor of a file, read when it is asked for.

    Attributes:
        shape, dtype: of the stored values.
        rows: `rows(start, stop)` reads that part of the first axis; of a scalar, `rows(0, 1)` reads its one value, [1].
        fill: `fill(out)` writes all the values into an array of the shape, cast to its dtype and whatever its strides;
            given where that can be done better than by rows.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    rows: Callable[[int, int], np.ndarray] = field(repr=False)
    fill: Callable[[np.ndarray], None] | None = field(default=None, repr=False)

    @classmethod
    def of(cls, array: np.ndarray) -> Tensor:
        """An array that is in memory already."""
        flat = array if array.ndim else array[None]
        return cls(array.shape, array.dtype, lambda start, stop: flat[start:stop])

    @classmethod
    def stack(cls, tensors: Sequence[Tensor]) -> Tensor:
        """Tensors of one shape [...] and dtype as one, [n, ...]."""

        def fill(out: np.ndarray) -> None:
            for i, tensor in enumerate(tensors):
                tensor.read_into(out[i, ...])

        shape, dtype = (len(tensors), *tensors[0].shape), tensors[0].dtype
        return cls(shape, dtype, lambda start, stop: np.stack([t.read() for t in tensors[start:stop]]), fill)

    @classmethod
    def concatenate(cls, tensors: Sequence[Tensor]) -> Tensor:
        """Tensors [n, ...] of one dtype, alike but in the first axis, as one along it."""
        ends = list(itertools.accumulate(tensor.shape[0] for tensor in tensors))

        def rows(start: int, stop: int) -> np.ndarray:
            parts = []
            for tensor, end in zip(tensors, ends, strict=True):
                begin = end - tensor.shape[0]
                if begin < stop and start < end:
                    parts.append(tensor.rows(max(start, begin) - begin, min(stop, end) - begin))
            return np.concatenate(parts)

        return cls((ends[-1], *tensors[0].shape[1:]), tensors[0].dtype, rows)

    def read(self, dtype=None) -> np.ndarray:
        """All the values, cast if asked for. Hardly more than a piece is held beside the result."""
        out = np.empty(self.shape, self.dtype if dtype is None else dtype)
        self.read_into(out)
        return out

    def read_into(self, out: np.ndarray) -> None:
        """Write the values into an array of the same shape, cast to its dtype; too large ones become infinite."""
        with np.errstate(over="ignore", invalid="ignore"):
            if self.fill:
                self.fill(out)
            else:
                self._fill_by_rows(out)

    def _fill_by_rows(self, out: np.ndarray) -> None:
        target = out if self.shape else out[None]
        step = max(1, PIECE_BYTES // max(1, math.prod(self.shape[1:]) * self.dtype.itemsize))
        for start in range(0, len(target), step):
            stop = min(start + step, len(target))
            target[start:stop] = self.rows(start, stop)

    def transpose(self, *axes: int) -> Tensor:
        """As `numpy.transpose`. Where the first axis moves, `rows` has to read the whole; `read` reads in pieces."""
        inverse = [axes.index(axis) for axis in range(len(axes))]

        def rows(start: int, stop: int) -> np.ndarray:
            part = self.rows(start, stop) if axes[0] == 0 else self.read()
            return part.transpose(axes) if axes[0] == 0 else part.transpose(axes)[start:stop]

        shape = tuple(self.shape[axis] for axis in axes)
        return Tensor(shape, self.dtype, rows, lambda out: self.read_into(out.transpose(inverse)))

    def reshape(self, *shape: int) -> Tensor:
        """As `numpy.reshape`, without -1. `rows` has to read the whole unless this tensor is flat."""

        def rows(start: int, stop: int) -> np.ndarray:
            if len(self.shape) == 1 and shape:
                row = math.prod(shape[1:])
                return self.rows(start * row, stop * row).reshape(stop - start, *shape[1:])
            return self.read().reshape(shape or 1)[start:stop]

        def fill(out: np.ndarray) -> None:
            if out.flags.c_contiguous:
                self.read_into(out.reshape(self.shape))
            else:
                out[...] = self.read(out.dtype).reshape(shape)

        return Tensor(shape, self.dtype, rows, fill)

    def slice_rows(self, start: int, stop: int | None = None) -> Tensor:
        """The part `[start:stop]` of the first axis."""
        begin, end, _ = slice(start, stop).indices(self.shape[0])
        shape = (max(0, end - begin), *self.shape[1:])
        return Tensor(shape, self.dtype, lambda a, b: self.rows(begin + a, begin + b))


def is_float(dtype) -> bool:
    """Whether values of this dtype are cast when a model or a file is wanted in another: integers are not."""
    return np.issubdtype(dtype, np.floating) or np.dtype(dtype) == ml_dtypes.bfloat16


def check_shape(shape: Sequence[int], dtype: np.dtype) -> None:
    """Raises ValueError where no array has this shape. Its numbers are looked at before they are multiplied."""
    if len(shape) > MAX_AXES:
        raise ValueError(f"an array has {len(shape)} axes")
    if any(type(n) is not int or not 0 <= n < END for n in shape):
        raise ValueError("no array has the shape: its numbers are not all from 0 to 2**62")
    if math.prod(n or 1 for n in shape) * dtype.itemsize >= END:
        raise ValueError(f"no array has the shape {list(shape)}")


class TensorFile:
    """A file open for its tensors, and closed when none of them is left.

    It is read, not mapped into memory: the pages of a map count as this process's memory for as long as it lives.

    Attributes:
        path: for messages.
        size: in bytes, when it was opened.
    """

    def __init__(self, path: Path):
        """Raises OSError where the file cannot be opened, or is a pipe or a device."""
        self.path = path
        with files.open_regular(path) as file:
            self._descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._descriptor)
        self.size = os.fstat(self._descriptor).st_size

    def bytes(self, start: int, count: int) -> bytes:
        """`count` bytes from `start` on, fewer at the end of the file."""
        return os.pread(self._descriptor, count, start)

    def tensor(self, name: str, start: int, length: int, shape: Sequence[int], dtype: np.dtype) -> Tensor:
        """The tensor whose values lie in C order in the `length` bytes from `start` on.

        Raises:
            ValueError: so many bytes do not make such an array.
        """
        check_shape(shape, dtype)
        if math.prod(shape) * dtype.itemsize != length:
            raise ValueError(f"{length} bytes do not make a {dtype.name} array of shape {list(shape)}")
        row = math.prod(shape[1:])

        def rows(begin: int, end: int) -> np.ndarray:
            values = np.empty((end - begin, *shape[1:]), dtype)
            self._read_into(values, start + begin * row * dtype.itemsize, name)
            return values

        def fill(out: np.ndarray) -> None:
            if not out.flags.c_contiguous:
                tensor._fill_by_rows(out)
            elif out.dtype == dtype:
                self._read_into(out, start, name)
            else:
                flat = out.reshape(-1)
                piece = np.empty(min(CAST_BYTES // dtype.itemsize, flat.size), dtype)
                for begin in range(0, flat.size, len(piece) or 1):
                    values = piece[: flat.size - begin]
                    self._read_into(values, start + begin * dtype.itemsize, name)
                    flat[begin : begin + len(values)] = values

        tensor = Tensor(tuple(shape), dtype, rows, fill)
        return tensor

    def _read_into(self, out: np.ndarray, start: int, name: str) -> None:
        memory, done = out.reshape(-1).view(np.uint8).data, 0
        while done < len(memory):
            try:
                count = os.preadv(self._descriptor, [memory[done : done + READ_BYTES]], start + done)
            except OSError as error:
                raise UserError(f"cannot read tensor {name} of {self.path}: {error.strerror or error}") from None
            if not count:
                raise UserError(f"{self.path} ends inside tensor {name}: it has become shorter since it was opened")
            done += count

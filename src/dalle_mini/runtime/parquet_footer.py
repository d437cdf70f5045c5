"""The sizes in a Parquet file's footer, read here: pyarrow ends the whole process on some footers that are damaged.

pyarrow checks a column chunk's metadata when Python first asks for it, and throws a C++ exception that nothing catches
where the footer contradicts itself (a histogram of the wrong length, say). Its readers of rows do catch it. So nobody
here asks pyarrow for a column chunk's metadata.

The footer is a struct of parquet.thrift (https://github.com/apache/parquet-format) in Thrift's compact protocol
(https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from typing import IO, NamedTuple

END = b"PAR1"
DICTIONARY, DELTA_BYTE_ARRAY = frozenset({2, 8}), 7  # of the enum Encoding
MOST_DEPTH = 16  # of structs in structs; the format needs 6

# Kinds of values in the compact protocol. A boolean field has no bytes of its own.
_TRUE, _FALSE, _BYTE, _INTEGERS, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = 1, 2, 3, (4, 5, 6), 7, 8, 9, 10, 11, 12


class Chunk(NamedTuple):
    """One column of one row group.

    Attributes:
        encodings: numbers of the enum Encoding.
        values: how many, nulls and empty lists included.
        unpacked, packed: bytes of its pages before and after compression.
        nulls: how many values are null, or None where the file does not say.
    """

    encodings: frozenset[int]
    values: int
    unpacked: int
    packed: int
    nulls: int | None


def column_chunks(file: IO[bytes]) -> tuple[tuple[Chunk, ...], ...]:
    """The column chunks of each row group. Raises ValueError where the footer is damaged, and what `file` raises."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 8))
    end = file.read(8)
    length = int.from_bytes(end[:4], "little")
    if len(end) < 8 or end[4:] != END or length > size - 8:
        raise ValueError("its footer is damaged, or encrypted")
    file.seek(size - 8 - length)
    return _parsed(file.read(length))


@functools.lru_cache(maxsize=2)  # the parts of a file come one after the other
def _parsed(footer: bytes) -> tuple[tuple[Chunk, ...], ...]:
    thrift = _Compact(footer)
    groups: tuple[tuple[Chunk, ...], ...] = ()
    try:
        for field, kind in thrift.fields():
            if (field, kind) == (4, _LIST):
                groups = tuple(_row_group(thrift) for _ in thrift.elements(_STRUCT))
            else:
                thrift.skip(kind)
    except IndexError:
        raise ValueError("its footer ends too early") from None
    return groups


def _row_group(thrift: _Compact) -> tuple[Chunk, ...]:
    chunks: tuple[Chunk, ...] = ()
    for field, kind in thrift.fields():
        if (field, kind) == (1, _LIST):
            chunks = tuple(_column_chunk(thrift) for _ in thrift.elements(_STRUCT))
        else:
            thrift.skip(kind)
    return chunks


def _column_chunk(thrift: _Compact) -> Chunk:
    chunk = None
    for field, kind in thrift.fields():
        if (field, kind) == (3, _STRUCT):
            chunk = _column_metadata(thrift)
        else:
            thrift.skip(kind)
    if chunk is None:
        raise ValueError("a column of its footer is not described")
    return chunk


def _column_metadata(thrift: _Compact) -> Chunk:
    encodings: frozenset[int] = frozenset()
    numbers, nulls = {5: 0, 6: 0, 7: 0}, None
    for field, kind in thrift.fields():
        if field in numbers and kind in _INTEGERS:
            numbers[field] = thrift.integer()
        elif (field, kind) == (2, _LIST):
            encodings = frozenset(thrift.integer() for _ in thrift.elements(*_INTEGERS))
        elif (field, kind) == (12, _STRUCT):
            nulls = _null_count(thrift)
        else:
            thrift.skip(kind)
    return Chunk(encodings, numbers[5], numbers[6], numbers[7], nulls)


def _null_count(thrift: _Compact) -> int | None:
    nulls = None
    for field, kind in thrift.fields():
        if field == 3 and kind in _INTEGERS:
            nulls = thrift.integer()
        else:
            thrift.skip(kind)
    return nulls


class _Compact:
    """A reader of the compact protocol. It raises IndexError at the end of the bytes, and ValueError on nonsense."""

    def __init__(self, data: bytes):
        self._data, self._at = data, 0

    def fields(self) -> Iterator[tuple[int, int]]:
        """(number, kind) of each field of a struct; the caller reads or skips its value before the next."""
        field = 0
        while byte := self._byte():
            field = field + (byte >> 4) if byte >> 4 else self.integer()
            yield field, byte & 15

    def elements(self, *kinds: int) -> Iterator[None]:
        """Once for each element of a list of such kinds; the caller reads it."""
        count, kind = self._list()
        if kind not in kinds:
            raise ValueError("a list of its footer has elements of another kind")
        for _ in range(count):
            yield

    def integer(self) -> int:
        number = self._unsigned()
        return (number >> 1) ^ -(number & 1)

    def skip(self, kind: int, depth: int = 0) -> None:
        if depth > MOST_DEPTH:
            raise ValueError("its footer is nested too deeply")
        if kind in _INTEGERS:
            self._unsigned()
        elif kind == _BINARY:
            self._pass_over(self._unsigned())
        elif kind == _STRUCT:
            for _, inner in self.fields():
                self.skip(inner, depth + 1)
        elif kind in (_LIST, _SET):
            count, inner = self._list()
            for _ in range(count):
                self._skip_element(inner, depth + 1)
        elif kind == _MAP and (count := self._unsigned()):
            kinds = self._byte()
            for _ in range(count):
                self._skip_element(kinds >> 4, depth + 1)
                self._skip_element(kinds & 15, depth + 1)
        elif kind in (_BYTE, _DOUBLE):
            self._pass_over(1 if kind == _BYTE else 8)
        elif kind not in (_TRUE, _FALSE, _MAP):
            raise ValueError("its footer has a value of an unknown kind")

    def _skip_element(self, kind: int, depth: int) -> None:
        """Skip a value of a list or a map, where a boolean is a byte. Each takes a byte at least, so the bytes end."""
        self.skip(_BYTE if kind in (_TRUE, _FALSE) else kind, depth)

    def _list(self) -> tuple[int, int]:
        byte = self._byte()
        return (byte >> 4 if byte >> 4 < 15 else self._unsigned()), byte & 15

    def _byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def _unsigned(self) -> int:
        number = shift = 0
        while shift < 70:
            byte = self._byte()
            number |= (byte & 127) << shift
            if byte < 128:
                return number
            shift += 7
        raise ValueError("a number of its footer has more than 64 bits")

    def _pass_over(self, count: int) -> None:
        self._at += count
        if self._at > len(self._data):
            raise IndexError

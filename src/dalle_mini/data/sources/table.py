"""A Parquet file as a source of examples reads it: in the bounds of `runtime/arrow.py`, a batch of rows in memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import IO, TYPE_CHECKING, Any

from dalle_mini.data.sources import captions
from dalle_mini.data.sources.rows import Layout, path_of
from dalle_mini.runtime import arrow
from dalle_mini.runtime.limits import limits
from dalle_mini.runtime.parquet_footer import DELTA_BYTE_ARRAY

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_BYTES = 16 << 20  # that are decoded at a time, if the file tells its sizes right
MOST_ROWS = 256
REPEATED = 1000  # times a file's bytes: what the pictures of its rows may have together, each counted in each row
SHORT = 1024  # bytes: paths are shorter in the mean, and pictures longer


class Table:
    """Some row groups of a file.

    Args:
        file: open for as long as the table is read.
        layout: which columns make examples; None where all are read as they are.
        groups: (first, stop) of its row groups, or None for all.
    Attributes:
        groups: the numbers of its row groups.
        schema: of all its columns.
        size: bytes of the file.
        most_rows, most_bytes: as many rows, and as many bytes of pictures and captions, a file of this size may have.

    Raises what pyarrow raises where the file is damaged.
    """

    def __init__(self, file: IO[bytes], layout: Layout | None, groups: tuple[int, int] | None = None):
        import pyarrow.parquet as pq

        self._layout, self._footer = layout, arrow.Footer(file)
        self._image = layout.image if layout else None
        self._about = self._footer.about
        self.size = file.seek(0, os.SEEK_END)
        self.most_rows = limits().parquet_rows + self.size
        self.most_bytes = limits().parquet_bytes + REPEATED * self.size
        self.groups = range(*(groups or (0, self._about.num_row_groups)))
        self.schema: pa.Schema = self._about.schema.to_arrow_schema()
        self._leaves = self._by_column()
        read = [leaf for name in (*self.asked, *self._others) for leaf in self._leaves[name]]
        self._file = pq.ParquetFile(
            file, metadata=self._about, read_dictionary=self._footer.dictionaries(self.groups, read),
            buffer_size=1 << 20,
            page_checksum_verification=True,
        )  # fmt: skip

    def about(self, group: int) -> Any:
        return self._about.row_group(group)

    @cached_property
    def asked(self) -> tuple[str, ...]:
        """The columns of which examples are made."""
        layout = self._layout
        if layout is None:
            return tuple(dict.fromkeys(self.schema.names))
        named = (layout.image, layout.key, *layout.captions, *(layout.joined or ()))
        return tuple(dict.fromkeys(name for name in named if name in self._leaves))

    @cached_property
    def _others(self) -> list[str]:
        """Columns of single values, for filters to ask for: neither embeddings nor other pictures."""
        import pyarrow as pa

        def is_single(kind: pa.DataType) -> bool:
            return not (pa.types.is_nested(kind) or arrow.is_bytes(kind) or pa.types.is_fixed_size_binary(kind))

        return [field.name for field in self.schema if field.name not in self.asked and is_single(field.type)]

    def wanted(self, group: int) -> tuple[str, ...]:
        """The columns worth reading in a row group."""
        return (*self.asked, *(name for name in self._others if not self.expands(group, [name])))

    def expands(self, group: int, columns: Iterable[str]) -> bool:
        """Whether these columns of a row group are out of all proportion to their bytes."""
        return any(self._footer.expands(group, leaf) for name in columns for leaf in self._leaves[name])

    def holds_bytes(self, column: str) -> bool:
        """Whether there may be text or pictures in a column."""
        return any(self._footer.leaf(leaf).physical_type == "BYTE_ARRAY" for leaf in self._leaves[column])

    def rows(self, group: int, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """The rows of a row group, a batch of them in memory. Raises what pyarrow raises where it is damaged."""
        for batch in self.batches(group, columns):
            yield from arrow.rows_of(batch, self.texts)

    def batches(self, group: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The rows of a row group; what is stored as a dictionary stays one. Raises as `rows`."""
        about = self.about(group)
        count = min(MOST_ROWS, max(1, BATCH_BYTES * about.num_rows // max(1, about.total_byte_size)))
        leaves = [leaf for name in columns for leaf in self._leaves[name]]
        for chunk in (self._footer.chunk(group, leaf) for leaf in leaves):
            if DELTA_BYTE_ARRAY in chunk.encodings:  # any value may hold nearly all of the one before it
                count = min(count, max(1, BATCH_BYTES // max(1, chunk.unpacked)))
        paths = [self._path(leaf) for leaf in leaves]
        # On one thread, column by column: memory is a batch of rows, not a row group.
        yield from self._file.iter_batches(count, row_groups=[group], columns=paths, use_threads=False)

    def texts(self, column: str) -> Callable[[bytes], str]:
        """How text of a column is read that is not UTF-8."""
        return arrow.text_or_path if column == self._image else captions.read_text

    @cached_property
    def tells_paths(self) -> bool:
        """Whether its column of pictures may hold paths instead."""
        return any(self._has_paths(group) for group in self.groups)

    def paths(self) -> Iterator[str]:
        """The paths in its column of pictures. Raises as `rows`."""
        image, leaf, row = self._image, self._path_leaf, 0
        if image is None or leaf is None:
            return
        for group in self.groups:
            row += self.about(group).num_rows
            if row > self.most_rows:
                return
            if not self._has_paths(group) or self._footer.expands(group, leaf):
                continue
            columns = [self._path(leaf)]
            for batch in self._file.iter_batches(MOST_ROWS, row_groups=[group], columns=columns, use_threads=False):
                yield from filter(None, (path_of(values[image]) for values in arrow.rows_of(batch, self.texts)))

    def _by_column(self) -> dict[str, list[int]]:
        """The numbers of the leaves of each column; of pictures in a struct those of its bytes and its path."""
        names = set(self.schema.names)
        leaves: dict[str, list[int]] = {name: [] for name in names}
        for number in range(self._about.num_columns):
            parts = self._path(number).split(".")
            beginnings = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
            name = next(name for name in beginnings if name in names)
            inner = ".".join(parts)[len(name) + 1 :]
            if not (name == self._image and inner) or inner in ("bytes", "path"):
                leaves[name].append(number)
        return leaves

    def _path(self, leaf: int) -> str:
        return self._footer.leaf(leaf).path

    @cached_property
    def _image_leaves(self) -> list[int]:
        """The leaves of the column of pictures."""
        return [] if self._image is None else self._leaves.get(self._image, [])

    @cached_property
    def _path_leaf(self) -> int | None:
        """The leaf of the column of pictures that may hold paths."""
        return next((leaf for leaf in self._image_leaves if not self._path(leaf).endswith(".bytes")), None)

    def _has_paths(self, group: int) -> bool:
        if self._path_leaf is None:
            return False
        column = self._footer.leaf(self._path_leaf)
        if column.physical_type != "BYTE_ARRAY" or column.max_repetition_level:
            return False
        beside = [leaf for leaf in self._image_leaves if leaf != self._path_leaf]
        if beside:  # a struct: its bytes are the picture where there are any
            nulls = self._footer.chunk(group, beside[0]).nulls
            return nulls is None or nulls > 0
        if column.logical_type.type == "STRING":
            return True
        chunk = self._footer.chunk(group, self._path_leaf)
        return chunk.unpacked <= SHORT * max(1, chunk.values)

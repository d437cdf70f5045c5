"""Parquet of Hugging Face data sets in the bounds of `table.py`.

`datasets` unpacks a row group at a time, in which a dictionary of one picture may stand for any number of them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dalle_mini.data.sources import reasons
from dalle_mini.data.sources.files import Unreadable
from dalle_mini.data.sources.table import BATCH_BYTES, Table
from dalle_mini.runtime import arrow

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import DatasetBuilder, IterableDataset


def bound(builder: DatasetBuilder) -> None:
    """Let a builder of Parquet files read them in bounds; others are left as they are.

    Files, splits and features are still its own matter. Reading raises Unreadable where a file expands too far.
    """
    from datasets.packaged_modules.parquet.parquet import Parquet

    if isinstance(builder, Parquet):
        builder._generate_tables = lambda files, row_groups_list=None: _tables(
            builder, files, row_groups_list or [None] * len(files)
        )


def tables(shard: IterableDataset) -> Iterator[pa.Table] | None:
    """The tables of a shard of Parquet files as `bound` made them; None of another shard.

    `IterableDataset.iter` would gather a number of rows, whatever they take.
    """
    if shard.info.builder_name != "parquet" or not shard._ex_iterable.iter_arrow:
        return None
    return (table for _, table in shard._ex_iterable.iter_arrow())


def _tables(builder: Any, files: list[str], row_groups: list) -> Iterator[tuple[Any, pa.Table]]:
    """(key, rows that have the builder's features) as the builder itself would yield them, but fewer at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets.builder import Key

    config, count = builder.config, 0
    filters = pq.filters_to_expression(config.filters) if isinstance(config.filters, list) else config.filters
    opened = getattr(sys.modules[builder.__module__], "open", open)  # which `datasets` replaces by one for the Hub
    for number, (name, groups) in enumerate(zip(files, row_groups, strict=True)):
        try:
            with opened(name, "rb") as file:
                for table in _of_file(Table(file, None), config.columns, groups):
                    table = builder._cast_table(table if filters is None else table.filter(filters))
                    yield Key(number, count), table
                    if len(table) == 1:  # which the writer of its cache keeps till there are hundreds, or more come
                        yield Key(number, count), table.slice(1)
                    count += 1
        except (pa.ArrowInvalid, ValueError):
            if config.on_bad_files == "error":
                raise


def _of_file(table: Table, columns: list[str] | None, groups: Any) -> Iterator[pa.Table]:
    row, left = 0, table.most_bytes
    for group in table.groups if groups is None else groups:
        row += table.about(group).num_rows
        if row > table.most_rows:
            raise Unreadable(reasons.EXPANDS)
        asked = [name for name in table.asked if columns is None or name in columns]
        expanding = {name for name in asked if table.expands(group, [name])}
        if any(map(table.holds_bytes, expanding)):
            raise Unreadable(reasons.EXPANDS)
        # Numbers that expand are left out: the builder puts nulls in their place.
        for batch in table.batches(group, [name for name in asked if name not in expanding]):
            for piece in _pieces(batch, table.schema):
                left -= piece.nbytes
                if left < 0:
                    raise Unreadable(reasons.EXPANDS)
                yield piece


def _pieces(batch: pa.RecordBatch, schema: pa.Schema) -> Iterator[pa.Table]:
    """A batch without its dictionaries, in tables that are small or of one row."""
    import pyarrow as pa

    packed = [name for name, kind in zip(batch.schema.names, batch.schema.types, strict=True) if _is_packed(kind)]
    size = sum(_unpacked_bytes(batch.column(name)) for name in packed)
    if size > BATCH_BYTES and batch.num_rows > 1:
        half = batch.num_rows // 2
        yield from _pieces(batch.slice(0, half), schema)
        yield from _pieces(batch.slice(half), schema)
        return
    if size > BATCH_BYTES + batch.nbytes:  # a list that repeats a value
        raise Unreadable(reasons.EXPANDS)
    piece = pa.Table.from_batches([batch])
    for name in packed:
        kind = arrow.plain_type(schema.field(name).type)
        piece = piece.set_column(piece.schema.get_field_index(name), name, piece[name].cast(kind))
    yield piece


def _is_packed(kind: pa.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        return True
    return any(_is_packed(kind.field(place).type) for place in range(kind.num_fields))


def _unpacked_bytes(values: pa.Array) -> int:
    """Bytes of values, with those of a dictionary as often as they stand in rows."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not _is_packed(values.type):
        return values.nbytes
    if not pa.types.is_dictionary(values.type):  # structs and lists
        inner = values.flatten()
        return sum(map(_unpacked_bytes, inner if isinstance(inner, list) else [inner]))
    if not (arrow.is_text(values.type) or arrow.is_bytes(values.type)):
        return 8 * len(values)  # categories that are numbers
    return pc.sum(pc.binary_length(values.dictionary).take(values.indices)).as_py() or 0

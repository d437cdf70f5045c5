"""Parquet files of captioned pictures: as bytes, as Hugging Face's struct {bytes, path}, or as paths.

img2dataset's `--output_format parquet` and clones of data sets from the Hub are such files.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import posixpath
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from dalle_mini.data import reasons
from dalle_mini.data.example import Example
from dalle_mini.data.sources import files
from dalle_mini.data.sources.fingerprint import Fingerprint, ListedPictures, of_archives
from dalle_mini.data.sources.rows import Kinds, Layout, Options, example_of, find_layout
from dalle_mini.errors import UserError, listed

if TYPE_CHECKING:
    import pyarrow as pa
    from fsspec import AbstractFileSystem

PART = 4096  # rows, about: whole row groups
FEW_FILES = 256  # as many are looked into ahead, to be divided by row groups; of more files each is a part
BATCH_BYTES = 16 << 20  # that are decoded at a time, if the file tells its sizes right
MOST_ROWS = 256
MOST_LOST = 1_000_000  # rows that are counted as damaged in one place, which may claim any number


class ParquetFiles:
    """Parquet files. A part is some row groups of one, or a file where there are many."""

    def __init__(
        self,
        spec: str,
        fs: AbstractFileSystem,
        root: str,
        paths: Sequence[str],
        options: Options,
        pictures: int = 0,
    ):
        """`pictures` lie loose in the folder: a notice tells of those that no table lists."""
        self.spec, self.paths, self.pictures = spec, paths, pictures
        schema = _first_schema(fs, paths)
        layout = find_layout(paths[0], schema.names, options, kinds_of(schema))
        self._base = RowGroups(fs, root, "", layout, options.image_root)
        self._tells_paths = _is_text(schema.field(layout.image).type)
        _refuse_urls(self._base, paths)

    def origin(self) -> dict[str, Any]:
        told = {"kind": "parquet", "source": self.spec} | self._base.layout.origin() | self._fingerprint.told()
        footers = hashlib.sha256(" ".join(self._parts_and_footers[1]).encode()).hexdigest()[:16]
        return told | {"footers": footers}

    def parts(self) -> Sequence[RowGroups]:
        return self._parts_and_footers[0]

    @cached_property
    def _parts_and_footers(self) -> tuple[list[RowGroups], list[str]]:
        """The parts, and what the files' footers are by their hashes, where there are few files."""
        whole = [replace(self._base, path=path) for path in self.paths]
        if len(whole) > FEW_FILES:
            return whole, []
        with ThreadPoolExecutor(files.THREADS) as pool:
            divided = list(pool.map(_divided, whole))
        return [part for parts, _ in divided for part in parts], [footer for _, footer in divided]

    @cached_property
    def _fingerprint(self) -> Fingerprint:
        fingerprint = of_archives(self._base.fs, self._base.root, self.paths)
        if self._tells_paths and len(self.paths) <= FEW_FILES:
            listed = ListedPictures(self._base.fs, self._base.image_root or self._base.root, fingerprint)
            for path in self.paths:
                for place in replace(self._base, path=path).places():
                    listed.add(place)
            if self._base.image_root is None:
                listed.tell_of_others(self.spec, self.pictures)
        return fingerprint


@dataclass(frozen=True)
class RowGroups:
    """Rows of one file. A key is that of its column `key` or `id`, or the file's name and the row's number.

    Attributes:
        groups: (first, stop) of its row groups, or None for all.
        first_row: the number of its first row within the file.
        image_root: the folder that no path of a picture may leave; the pile's where it is None.
    """

    fs: AbstractFileSystem
    root: str
    path: str
    layout: Layout
    image_root: str | None = None
    groups: tuple[int, int] | None = None
    first_row: int = 0
    size: int | None = None

    @property
    def file_name(self) -> str:
        return files.relative(self.root, self.path)

    @property
    def name(self) -> str:
        return self.file_name if self.groups is None else f"{self.file_name}/{self.first_row}"

    def examples(self) -> Iterator[Example]:
        """Its rows in order; of a row group that breaks each row that cannot be read is a problem."""
        import pyarrow.parquet as pq

        try:
            file = self.fs.open(self.path, "rb")
        except Exception:  # every store has exceptions of its own
            yield from self._lost(self.first_row, self.size or 1, reasons.CANNOT_READ)
            return
        with file:
            try:
                table = pq.ParquetFile(file, buffer_size=1 << 20, page_checksum_verification=True)
            except Exception:  # pyarrow's own exceptions derive from several
                yield from self._lost(self.first_row, self.size or 1, reasons.DAMAGED)
                return
            row = self.first_row
            for group in range(*(self.groups or (0, table.num_row_groups))):
                yield from self._group(table, group, row)
                row += table.metadata.row_group(group).num_rows

    def _group(self, table: Any, group: int, row: int) -> Iterator[Example]:
        about = table.metadata.row_group(group)
        rows = min(MOST_ROWS, max(1, BATCH_BYTES * about.num_rows // max(1, about.total_byte_size)))
        stop = row + about.num_rows
        names = _wanted(table.schema_arrow, self.layout)
        try:
            # On one thread, column by column: memory is a batch of rows, not a row group.
            for batch in table.iter_batches(rows, row_groups=[group], columns=names, use_threads=False):
                columns = {name: batch.column(name) for name in batch.schema.names}
                for i in range(batch.num_rows):
                    yield self._example(row, {name: column[i].as_py() for name, column in columns.items()})
                    row += 1
        except Exception:
            yield from self._lost(row, stop - row, reasons.DAMAGED)

    def _example(self, number: int, row: dict[str, Any]) -> Example:
        key = self.layout.key_of(row) or f"{files.without_suffix(self.file_name)}/{number}"
        return example_of(key, row, self.layout, self._read)

    def places(self) -> Iterator[str]:
        """Where the pictures lie that a column tells by their paths, as far as that can be read."""
        import pyarrow.parquet as pq

        with contextlib.suppress(Exception), self.fs.open(self.path, "rb") as file:
            for batch in pq.ParquetFile(file).iter_batches(columns=[self.layout.image], use_threads=False):
                for path in filter(None, batch.column(0).to_pylist()):
                    with contextlib.suppress(files.Unreadable):
                        yield self._place(path)

    def _place(self, path: str) -> str:
        folder = self.image_root or posixpath.dirname(self.path)
        return files.inside(self.fs, self.image_root or self.root, folder, path)

    def _read(self, path: str) -> bytes:
        return files.read(self.fs, self._place(path))

    def _lost(self, row: int, count: int, reason: str) -> Iterator[Example]:
        """An example with a problem for each of some rows that cannot be read."""
        for number in range(row, row + min(count, MOST_LOST)):
            yield Example(files.text_key(f"{files.without_suffix(self.file_name)}/{number}"), None, (), {}, reason)


def tells_pictures(fs: AbstractFileSystem, paths: Sequence[str], options: Options) -> bool:
    """Whether tables that lie among pictures tell which they are; those of img2dataset's statistics do not."""
    try:
        schema = _first_schema(fs, paths)
        find_layout(paths[0], schema.names, options, kinds_of(schema))
    except UserError:
        return False
    return True


def _divided(part: RowGroups) -> tuple[list[RowGroups], str]:
    """A file by its row groups, and a hash of its footer; one that cannot be looked into is a part, and will say so.

    Raises UserError where it has other columns than the first.
    """
    import pyarrow.parquet as pq

    try:
        with part.fs.open(part.path, "rb") as file:
            file.seek(-8, os.SEEK_END)
            file.seek(-8 - int.from_bytes(file.read(4), "little"), os.SEEK_END)
            footer = hashlib.sha256(file.read()).hexdigest()
            table = pq.ParquetFile(file)
            about, names = table.metadata, table.schema_arrow.names
    except Exception:
        return [part], ""
    if about.num_rows:
        _refuse_other_columns(part, names)
    counts = [about.row_group(group).num_rows for group in range(about.num_row_groups)]
    parts, start, row, size = [], 0, 0, 0
    for group, count in enumerate(counts):
        size += count
        if size >= PART or group + 1 == len(counts):
            parts.append(replace(part, groups=(start, group + 1), first_row=row, size=size))
            start, row, size = group + 1, row + size, 0
    return parts, footer


def _refuse_other_columns(part: RowGroups, names: Sequence[str]) -> None:
    layout = part.layout
    captions = [name for name in (*layout.captions, *(layout.joined or ())) if name]
    missing = [layout.image] if layout.image not in names else []
    missing += captions if not any(name in names for name in captions) else []
    if missing:
        raise UserError(
            f"{part.path}: has no column {listed(missing)}, which the first file has: its columns are "
            f"{listed(names, 30)}: name only files of one kind, by a pattern"
        )


def _first_schema(fs: AbstractFileSystem, paths: Sequence[str]) -> pa.Schema:
    """Of the first file that can be read: a damaged one is counted, but if all are there is nothing to begin with."""
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise UserError("reading Parquet needs pyarrow: pip install 'dalle-mini[data]'") from None
    reason = "there is no file"
    for path in paths[:FEW_FILES]:
        try:
            with fs.open(path, "rb") as file:
                return pq.read_schema(file)
        except Exception as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
    raise UserError(f"{paths[0]}: is no Parquet file that can be read ({reason})")


def _refuse_urls(part: RowGroups, paths: Sequence[str]) -> None:
    """Raises UserError where the pictures are still on the web."""
    import pyarrow.parquet as pq

    try:
        with part.fs.open(paths[0], "rb") as file:
            batches = pq.ParquetFile(file).iter_batches(1, columns=[part.layout.image], use_threads=False)
            first = next(batches).column(0)[0].as_py()
    except Exception:  # an empty file, or one that reading will find damaged
        return
    if isinstance(first, str) and first.startswith(("http://", "https://")):
        raise UserError(
            f"{paths[0]}: the column {part.layout.image!r} holds addresses on the web: download the pictures with "
            "img2dataset, and give its folder (docs/data.md shows the command)"
        )


def kinds_of(schema: pa.Schema) -> Kinds:
    """What a schema says of its columns: pictures are bytes, or structs with a field `bytes` of them."""
    import pyarrow as pa

    def holds_pictures(kind: pa.DataType) -> bool:
        if pa.types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0 and _is_bytes(kind.field("bytes").type)
        return _is_bytes(kind)

    def may_be_captions(kind: pa.DataType) -> bool:
        if pa.types.is_null(kind) or _is_text(kind) or _is_bytes(kind):
            return True
        inner = getattr(kind, "value_type", None)  # of lists, and of text that is stored once (a dictionary)
        return inner is not None and may_be_captions(inner)

    def is_number(kind: pa.DataType) -> bool:
        return pa.types.is_primitive(kind) or pa.types.is_decimal(kind)

    return Kinds(
        tuple(field.name for field in schema if holds_pictures(field.type)),
        {field.name: str(field.type) for field in schema if is_number(field.type)},
        {field.name: str(field.type)[:80] for field in schema if not may_be_captions(field.type)},
    )


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_bytes(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _wanted(schema: pa.Schema, layout: Layout) -> list[str]:
    """The columns worth reading: the layout's and single values, not embeddings or other pictures."""
    import pyarrow as pa

    named = {layout.image, *layout.captions, *(layout.joined or ())}
    return [
        field.name
        for field in schema
        if field.name in named or not (pa.types.is_nested(field.type) or _is_bytes(field.type))
    ]

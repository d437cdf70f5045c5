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
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from dalle_mini.data.sources import files, reasons
from dalle_mini.data.sources.example import Example
from dalle_mini.data.sources.fingerprint import Fingerprint, ListedImages, of_archives
from dalle_mini.data.sources.rows import Kinds, Layout, Options, example_of, find_layout, path_of
from dalle_mini.data.sources.table import Table
from dalle_mini.errors import UserError, listed
from dalle_mini.runtime.arrow import is_bytes, is_text, plain_type
from dalle_mini.runtime.files import reason
from dalle_mini.runtime.hashing import short_hash
from dalle_mini.runtime.installing import install_line

if TYPE_CHECKING:
    import pyarrow as pa
    from fsspec import AbstractFileSystem

PART = 4096  # rows, about: whole row groups
FEW_FILES = 256  # as many are looked into ahead, to be divided by row groups; of more files each is a part
MOST_LOST = 1_000_000  # rows that are counted as damaged in one place, which may claim any number


class ParquetFiles:
    """Parquet files. A part is some row groups of one, or a file where there are many."""

    sparse_columns = False

    def __init__(
        self,
        spec: str,
        fs: AbstractFileSystem,
        root: str,
        paths: Sequence[str],
        options: Options,
        images: int = 0,
    ):
        """`images` is how many lie loose in the folder: a notice tells of those that no table lists."""
        self.spec, self.paths, self.images = spec, paths, images
        schema = _first_schema(fs, paths)
        layout = find_layout(paths[0], schema.names, options, kinds_of(schema))
        self._base = RowGroups(fs, root, "", layout, options.image_root)
        _refuse_urls(self._base, paths)

    def origin(self) -> dict[str, Any]:
        told = {"kind": "parquet", "source": self.spec} | self._base.layout.origin() | self._fingerprint.told()
        footers = short_hash(" ".join(found.footer for found in self._looked_into))
        return told | {"footers": footers}

    def parts(self) -> Sequence[RowGroups]:
        if len(self.paths) > FEW_FILES:
            return [replace(self._base, path=path) for path in self.paths]
        return [part for found in self._looked_into for part in found.parts]

    @cached_property
    def _looked_into(self) -> list[Divided]:
        """The files by row groups, where there are few files."""
        if len(self.paths) > FEW_FILES:
            return []
        with ThreadPoolExecutor(files.THREADS) as pool:
            return list(pool.map(_divided, [replace(self._base, path=path) for path in self.paths]))

    @cached_property
    def _fingerprint(self) -> Fingerprint:
        fingerprint = of_archives(self._base.fs, self._base.root, self.paths)
        telling = [part for found in self._looked_into if found.tells_paths for part in found.parts]
        listed = ListedImages(self._base.fs, self._base.image_root or self._base.root, fingerprint)
        for part in telling:
            for place in part.places():
                listed.add(place)
        if telling and self._base.image_root is None:
            listed.tell_of_others(self.spec, self.images)
        return fingerprint


@dataclass(frozen=True)
class RowGroups:
    """Rows of one file. A key is that of its column `key` or `id`, or the file's name and the row's number.

    Attributes:
        groups: (first, stop) of its row groups, or None for all.
        first_row: the number of its first row within the file.
        image_root: the folder that no path of a picture may leave; the dataset's where it is None.
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
        try:
            file = files.opened(self.fs, self.path)
        except files.Unreadable as error:
            yield from self._lost(self.first_row, self.size or 1, error.reason)
            return
        except Exception:  # every store has exceptions of its own
            yield from self._lost(self.first_row, self.size or 1, reasons.CANNOT_READ)
            return
        with file:
            try:
                table = Table(file, self.layout, self.groups)
            except Exception:  # pyarrow's own exceptions derive from several
                yield from self._lost(self.first_row, self.size or 1, reasons.DAMAGED)
                return
            row, left = self.first_row, table.most_bytes
            for group in table.groups:
                about = table.about(group)
                if row + about.num_rows > table.most_rows:
                    yield from self._lost(row, 1, reasons.EXPANDS, f"{about.num_rows:,} rows of {table.size:,} bytes")
                    return
                for example in self._group(table, group, row):
                    left -= _bytes_of(example)
                    if left < 0:  # a dictionary of one picture makes any number of it
                        yield from self._lost(row, self._stop(table) - row, reasons.EXPANDS)
                        return
                    row += 1
                    yield example

    def _group(self, table: Table, group: int, row: int) -> Iterator[Example]:
        first, stop = row, row + table.about(group).num_rows
        if table.expands(group, table.asked):
            yield from self._lost(row, stop - row, reasons.EXPANDS)
            return
        # Where it breaks it is tried once more without the columns that nothing but --where can ask for.
        for names in (table.wanted(group), table.asked):
            try:
                for values in islice(table.rows(group, names), row - first, None):
                    yield self._example(row, values)
                    row += 1
                return
            except Exception as error:  # as above
                if type(error) is MemoryError:  # Arrow has one of its own, of sizes that a file may claim
                    raise
        yield from self._lost(row, stop - row, reasons.DAMAGED)

    def _stop(self, table: Table) -> int:
        """The number of the row behind its last."""
        return self.first_row + sum(table.about(group).num_rows for group in table.groups)

    def _example(self, number: int, row: dict[str, Any]) -> Example:
        key = self.layout.key_of(row) or f"{files.without_suffix(self.file_name)}/{number}"
        return example_of(key, row, self.layout, self._read)

    def places(self) -> Iterator[str]:
        """Where the pictures lie that a column tells by their paths, as far as that can be read."""
        with contextlib.suppress(Exception), files.opened(self.fs, self.path) as file:
            for path in Table(file, self.layout, self.groups).paths():
                with contextlib.suppress(files.Unreadable):
                    yield self._place(path)

    def _place(self, path: str) -> str:
        folder = self.image_root or posixpath.dirname(self.path)
        return files.inside(self.fs, self.image_root or self.root, folder, path)

    def _read(self, path: str) -> bytes:
        return files.read(self.fs, self._place(path))

    def _lost(self, row: int, count: int, reason: str, detail: str = "") -> Iterator[Example]:
        """An example with a problem for each of some rows that cannot be read."""
        for number in range(row, row + min(count, MOST_LOST)):
            key = files.text_key(f"{files.without_suffix(self.file_name)}/{number}")
            yield Example(key, None, (), {}, reason, detail)


def tells_images(fs: AbstractFileSystem, paths: Sequence[str], options: Options) -> bool:
    """Whether tables that lie among pictures tell which they are; those of img2dataset's statistics do not."""
    try:
        schema = _first_schema(fs, paths)
        find_layout(paths[0], schema.names, options, kinds_of(schema))
    except UserError:
        return False
    return True


class Divided(NamedTuple):
    """A file by its row groups, a hash of its footer, and whether its column of pictures may hold paths."""

    parts: list[RowGroups]
    footer: str = ""
    tells_paths: bool = False


def _divided(part: RowGroups) -> Divided:
    """A file by its row groups; one that cannot be looked into is a part, and will say so.

    Raises:
        UserError: it has other columns than the first.
    """
    try:
        with files.opened(part.fs, part.path) as file:
            file.seek(-8, os.SEEK_END)
            file.seek(-8 - int.from_bytes(file.read(4), "little"), os.SEEK_END)
            footer = hashlib.sha256(file.read()).hexdigest()
            table = Table(file, part.layout)
            counts, tells_paths = [table.about(group).num_rows for group in table.groups], table.tells_paths
    except Exception:
        return Divided([part])
    if any(counts):
        _refuse_other_columns(part, table.schema.names)
    parts, start, row, size = [], 0, 0, 0
    for group, count in enumerate(counts):
        size += count
        if size >= PART or group + 1 == len(counts):
            parts.append(replace(part, groups=(start, group + 1), first_row=row, size=size))
            start, row, size = group + 1, row + size, 0
    return Divided(parts, footer, tells_paths)


def _refuse_other_columns(part: RowGroups, names: Sequence[str]) -> None:
    layout = part.layout
    captions = [name for name in (*layout.captions, *(layout.joined or ())) if name]
    missing = [name for name in (layout.image,) if name is not None and name not in names]
    missing += captions if not any(name in names for name in captions) else []
    if missing:
        raise UserError(
            f"{part.path}: has no column {listed(missing)}, which the first file has: its columns are "
            f"{listed(names, 30)}: name only files of one kind, by a pattern"
        )


def _first_schema(fs: AbstractFileSystem, paths: Sequence[str]) -> pa.Schema:
    """The schema of the first file that can be read. Damaged ones are counted later, unless all of them are."""
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise UserError(f"reading Parquet needs pyarrow: {install_line('data')}") from None
    fault = "there is no file"
    for path in paths[:FEW_FILES]:
        try:
            with files.opened(fs, path) as file:
                return pq.read_schema(file)
        except Exception as error:
            fault = reason(error)
    raise UserError(f"{paths[0]}: is no Parquet file that can be read ({fault})")


def _refuse_urls(part: RowGroups, paths: Sequence[str]) -> None:
    """Raises UserError where the pictures are still on the web."""
    image = part.layout.image
    try:
        with files.opened(part.fs, paths[0]) as file:
            table = Table(file, part.layout)
            if image is None or table.expands(0, [image]):
                return
            first = path_of(next(table.rows(0, [image]))[image])
    except Exception:  # an empty file, or one that reading will find damaged
        return
    if first and first.startswith(("http://", "https://")):
        raise UserError(
            f"{paths[0]}: the column {image!r} holds addresses on the web: download the images with "
            "img2dataset, and give its folder (docs/data.md shows the command)"
        )


def kinds_of(schema: pa.Schema) -> Kinds:
    """The columns of a schema by what they may hold: images are bytes, or structs with a field `bytes` of them."""
    return Kinds(
        tuple(field.name for field in schema if _holds_images(field.type)),
        {field.name: str(field.type) for field in schema if _is_number(field.type)},
        {field.name: str(field.type)[:80] for field in schema if not _may_be_captions(field.type)},
    )


def _holds_images(kind: pa.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and is_bytes(kind.field("bytes").type)
    return is_bytes(kind)


def _may_be_captions(kind: pa.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_null(kind) or is_text(kind) or is_bytes(kind):
        return True
    inner = getattr(kind, "value_type", None)  # of lists, and of text that is stored once (a dictionary)
    return inner is not None and _may_be_captions(inner)


def _is_number(kind: pa.DataType) -> bool:
    import pyarrow as pa

    kind = plain_type(kind)
    return pa.types.is_primitive(kind) or pa.types.is_decimal(kind)


def _bytes_of(example: Example) -> int:
    image = len(example.image) if isinstance(example.image, bytes) else 0
    return image + sum(map(len, example.captions))

"""Folders of images that a `metadata.csv`, `.tsv` or `.jsonl` lists: Hugging Face's imagefolder convention.

https://huggingface.co/docs/datasets/image_dataset: the column `file_name` is a path relative to the metadata file, the
others are captions, and values for filters. Rows of one image that follow each other are its captions. Only images that
are listed are in the dataset.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import posixpath
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from dalle_mini.data.sources import captions, files, reasons
from dalle_mini.data.sources.example import Example
from dalle_mini.data.sources.fingerprint import Fingerprint, ListedImages
from dalle_mini.data.sources.folder import PART
from dalle_mini.data.sources.rows import Layout, Options, example_of, find_layout, json_row
from dalle_mini.errors import UserError
from dalle_mini.runtime.files import reason
from dalle_mini.runtime.limits import limits

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

NAMES = ("metadata.csv", "metadata.tsv", "metadata.jsonl")
FILE_NAME = "file_name"
LONGEST_NUMBER = 100  # characters; what is longer is text, and would take the square of its length to look through
PEEKED = 64  # rows of a .jsonl that tell its columns
HEAD = 1 << 16  # bytes that tell how a file is written
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|nan|NaN")


class Place(NamedTuple):
    """A place between two lines of a file: how many bytes and lines are before it."""

    byte: int = 0
    line: int = 0


START = Place()


class Record(NamedTuple):
    """A row of a metadata file, or the reason why it is none; the number of its first line, and where it ends."""

    row: dict[str, Any] | None
    problem: str | None
    line: int
    stop: Place
    detail: str = ""


class MetadataFolder:
    """Pictures that metadata files list. A part is some thousand rows."""

    def __init__(
        self,
        spec: str,
        fs: AbstractFileSystem,
        root: str,
        tables: Sequence[str],
        options: Options,
        images: int = 0,
    ):
        """`images` is how many lie in the folder: a notice tells of those that no table lists."""
        self.spec, self.fs, self.root, self.tables, self.options = spec, fs, root, tables, options
        self.images = images
        self.sparse_columns = any(path.endswith(".jsonl") for path in tables)
        self._layouts = [self._layout(path) for path in tables]  # a wrong column shows now

    def origin(self) -> dict[str, Any]:
        parts, told = self._read_through
        rows = sum(part.rows for part in parts)
        return {"kind": "metadata", "source": self.spec} | self._layouts[0][1].origin() | {"rows": rows} | told

    def parts(self) -> Sequence[Rows]:
        return self._read_through[0]

    def _layout(self, path: str) -> tuple[tuple[str, ...], Layout]:
        with _open(self.fs, path) as file:
            head = file.read(HEAD)
            if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
                raise UserError(f"{path}: is UTF-16; save it as UTF-8")
            if b"\r" in head.strip() and b"\n" not in head:
                raise UserError(f"{path}: its lines end in CR alone; save it with line ends of LF, or CR LF")
            file.seek(0)
            names = _json_names(file, path) if path.endswith(".jsonl") else _header(file, path)[0]
        image = self.options.image_column or (FILE_NAME if FILE_NAME in names else None)
        return names, replace(find_layout(path, names, replace(self.options, image_column=image)), key=None)

    @cached_property
    def _read_through(self) -> tuple[list[Rows], dict[str, Any]]:
        """The parts, and what tells the tables and their pictures from others: all is read once for both."""
        parts, digest, fingerprint = [], hashlib.sha256(), Fingerprint()
        listed = ListedImages(self.fs, self.options.image_root or self.root, fingerprint)
        for path, (names, layout) in zip(self.tables, self._layouts, strict=True):
            base = Rows(self.fs, self.root, path, names, layout, self.options.image_root)
            with _open(self.fs, path) as file:
                start, count, size, last = _start_of_rows(file, path), 0, 0, None
                stop = start
                for record in _records(_Digesting(file, digest), path, names, start):
                    name = base.file_of(record.row) if record.row else None
                    if count >= PART and name != last:  # rows of one picture stay together
                        parts.append(replace(base, start=start, rows=count, size=size))
                        start, count, size = stop, 0, 0
                    size += not size or name is None or name != last
                    count, stop, last = count + 1, record.stop, name
                    if name:
                        with contextlib.suppress(files.Unreadable):
                            listed.add(base.place(name))
            if count:
                parts.append(replace(base, start=start, rows=count, size=size))
        if self.options.image_root is None:
            listed.tell_of_others(self.spec, self.images)
        return parts, {"tables": digest.hexdigest()[:16]} | fingerprint.told()


@dataclass(frozen=True)
class Rows:
    """Some rows of a metadata file. A key is the image's path in the dataset, without suffix; without one, the line's.

    Attributes:
        start: where in the file they begin.
        rows: how many they are.
        size: how many examples they make: neighbours of one picture are one.
        image_root: the folder that no path may leave; the dataset's where it is None.
    """

    fs: AbstractFileSystem
    root: str
    table: str
    names: tuple[str, ...]
    layout: Layout
    image_root: str | None = None
    start: Place = START
    rows: int = 0
    size: int = 0

    @property
    def name(self) -> str:
        return f"{self.table_name}/{self.start.byte}"

    @property
    def table_name(self) -> str:
        return files.relative(self.root, self.table)

    def examples(self) -> Iterator[Example]:
        return files.in_order(self._example, self._grouped(), self.fs)

    def _grouped(self) -> Iterator[list[Record]]:
        """Records, with those of one picture that follow each other together."""
        group: list[Record] = []
        for record in self._records():
            if group and not (record.row and group[0].row and self.file_of(record.row) == self.file_of(group[0].row)):
                yield group
                group = []
            group.append(record)
        if group:
            yield group

    def _records(self) -> Iterator[Record]:
        try:
            with _open(self.fs, self.table) as file:
                file.seek(self.start.byte)
                for number, record in enumerate(_records(file, self.table, self.names, self.start)):
                    if number == self.rows:
                        return
                    yield record
        except Exception:  # the table is gone, or the connection failed
            yield Record(None, reasons.CANNOT_READ, self.start.line + 1, self.start)

    def file_of(self, row: Mapping[str, Any]) -> str:
        """The path by which a row names its image."""
        return str(self.layout.image_of(row) or "")

    def _line(self, record: Record) -> str:
        return f"{self.table_name}:{record.line}"

    @property
    def _root(self) -> str:
        return self.image_root or self.root

    def place(self, path: str) -> str:
        """Where a picture lies. Raises Unreadable where that is outside."""
        return files.inside(self.fs, self._root, self.image_root or posixpath.dirname(self.table), path)

    def _example(self, group: list[Record]) -> Example:
        first = group[0]
        if first.row is None:
            return Example(files.text_key(self._line(first)), None, (), {}, first.problem, first.detail)
        texts = {*self.layout.captions, *(self.layout.joined or ()), self.layout.image}
        named = [record.row for record in group if record.row is not None]
        rows = [{name: _typed(value, name in texts) for name, value in row.items()} for row in named]
        try:
            key = files.without_suffix(files.relative(self._root, self.place(self.file_of(first.row))))
        except files.Unreadable:
            key = self._line(first)

        def read(path: str) -> bytes:
            return files.read(self.fs, self.place(path))

        example = example_of(key, rows[0], self.layout, read)
        if len(rows) > 1:
            example = replace(example, captions=tuple(c for row in rows for c in self.layout.captions_of(row)))
        return example


class _Lines(Protocol):
    """A file that is read line by line."""

    def readline(self, limit: int, /) -> bytes: ...


class _Digesting:
    """A file that is hashed as it is read line by line."""

    def __init__(self, file: IO[bytes], digest: Any):
        self._file, self._digest = file, digest

    def readline(self, limit: int) -> bytes:
        line = self._file.readline(limit)
        self._digest.update(line)
        return line


def _open(fs: AbstractFileSystem, path: str) -> IO[bytes]:
    try:
        file = cast("io.RawIOBase", files.opened(fs, path))
        return io.BufferedReader(file, 1 << 20)  # a store's file cannot read a line up to a limit
    except Exception as error:  # every store has exceptions of its own
        raise UserError(f"{path}: cannot be read ({reason(error)})") from None


def _start_of_rows(file: IO[bytes], path: str) -> Place:
    """Puts the file at its first row, behind the names of a table's columns."""
    if path.endswith(".jsonl"):
        return START
    _, start = _header(file, path)
    file.seek(start.byte)
    return start


def _header(file: IO[bytes], path: str) -> tuple[tuple[str, ...], Place]:
    """(a table's columns, where its rows begin). Raises UserError where the first line does not name them well."""
    for values, stop in _table_rows(_lines(file, START), path):
        if values is None:
            raise UserError(f"{path}: its first line is too long: it must name the columns")
        names = tuple(name.strip() for name in _no_more_than(0, values))
        if not names:
            continue  # a blank line
        if len(names) == 1 and (sign := next((sign for sign in ";|,\t" if sign in names[0]), None)):
            wanted = "tabs" if path.endswith(".tsv") else "commas"
            raise UserError(f"{path}: {wanted} must separate its columns, not {sign!r}: it begins with {names[0]:.80}")
        twice = next((name for name, count in Counter(names).items() if name and count > 1), None)
        if twice is not None:
            raise UserError(f"{path}: two of its columns are called {twice!r}: rename one")
        return names, stop
    raise UserError(f"{path}: is empty: its first line must name the columns, such as {FILE_NAME} and text")


def _json_names(file: IO[bytes], path: str) -> tuple[str, ...]:
    """The columns that any of the first rows has: the others may lack some."""
    rows = (record.row for record in _records(file, path, (), START) if record.row is not None)
    names = tuple(dict.fromkeys(name for row in islice(rows, PEEKED) for name in row))
    if not names:
        raise UserError(f'{path}: there is no row in it, such as {{"{FILE_NAME}": "a.jpg", "text": "a caption"}}')
    return names


def _records(file: _Lines, path: str, names: Sequence[str], place: Place) -> Iterator[Record]:
    """The rows from `place` on."""
    if path.endswith(".jsonl"):
        for line, stop in _lines(file, place):
            if line is None:
                yield Record(None, reasons.FILE_TOO_LARGE, stop.line, stop)
            elif line.strip():
                yield _json_record(line, stop)
        return
    for values, stop in _table_rows(_lines(file, place), path):
        first, place = place.line + 1, stop
        if values is None:
            yield Record(None, reasons.FILE_TOO_LARGE, first, stop)
        elif len(values := _no_more_than(len(names), values)) > len(names):
            sign = "tab" if path.endswith(".tsv") else "comma"
            detail = f"{len(values)} values for {len(names)} columns: a {sign} in a caption needs quotes around it"
            yield Record(None, reasons.ROW_DAMAGED, first, stop, detail)
        elif values:
            yield Record(dict(zip(names, values, strict=False)), None, first, stop)


def _no_more_than(count: int, values: list[str]) -> list[str]:
    """Without the empty values after the `count` first, which trailing commas make."""
    stop = len(values)
    while stop > count and not values[stop - 1].strip():
        stop -= 1
    return values[:stop]


def _json_record(line: bytes, stop: Place) -> Record:
    detail = "no JSON object"
    try:
        row = json_row(line)
    except (ValueError, RecursionError) as error:
        row = None
        if isinstance(error, json.JSONDecodeError):
            detail = f"{error.msg} at character {error.colno}"
    if isinstance(row, dict):
        return Record(row, None, stop.line, stop)
    return Record(None, reasons.ROW_DAMAGED, stop.line, stop, detail)


def _lines(file: _Lines, place: Place) -> Iterator[tuple[bytes | None, Place]]:
    """(line, the place after it); None instead of a line that is too long to be read."""
    byte, number = place
    while line := file.readline(limits().text_bytes + 1):
        byte, number = byte + len(line), number + 1
        if len(line) <= limits().text_bytes:
            yield line, Place(byte, number)
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(limits().text_bytes)
            byte += len(line)
        yield None, Place(byte, number)


def _table_rows(lines: Iterable[tuple[bytes | None, Place]], path: str) -> Iterator[tuple[list[str] | None, Place]]:
    """(values, the place after them) of each row; None where a row is too long.

    A quote that is never closed would take all that follows into its row: then the line is read alone.
    """
    lines = iter(lines)
    again: deque[tuple[bytes | None, Place]] = deque()
    csv.field_size_limit(max(csv.field_size_limit(), limits().text_bytes))  # a novel's caption is one field
    dialect = "excel-tab" if path.endswith(".tsv") else "excel"
    while True:
        taken: list[tuple[bytes | None, Place]] = []

        def feed(taken=taken) -> Iterator[str]:
            while item := again.popleft() if again else next(lines, None):
                taken.append(item)
                if item[0] is None:
                    return
                yield captions.read_text(item[0])

        try:
            values = next(csv.reader(feed(), dialect, strict=True), None)
        except csv.Error:
            again.extendleft(reversed(taken[1:]))
            del taken[1:]
            try:
                first, _ = taken[0]
                assert first is not None  # of a line that is too long `csv` is told nothing
                values = next(csv.reader([captions.read_text(first)], dialect), [])
            except csv.Error:  # a field of more than csv.field_size_limit()
                values = None
        if not taken:
            return
        yield values, taken[-1][1]


def _typed(value: Any, is_text: bool) -> Any:
    """A table's text as what it says: a number, true or false, nothing."""
    if is_text or not isinstance(value, str):
        return value
    if len(value) <= LONGEST_NUMBER and _NUMBER.fullmatch(value):
        return int(value) if value.lstrip("+-").isdecimal() and len(value) < 20 else float(value)
    return {"": None, "true": True, "True": True, "false": False, "False": False}.get(value, value)

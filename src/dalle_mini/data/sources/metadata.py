"""Folders of pictures that a `metadata.csv`, `.tsv` or `.jsonl` lists: Hugging Face's imagefolder convention.

https://huggingface.co/docs/datasets/image_dataset: the column `file_name` is a path relative to the metadata file, the
others are captions and what filters look at. Rows of one picture that follow each other are its captions. Only what is
listed is in the pile.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import posixpath
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from dalle_mini.data import captions, reasons
from dalle_mini.data.example import Example
from dalle_mini.data.sources import files
from dalle_mini.data.sources.fingerprint import Fingerprint, ListedPictures
from dalle_mini.data.sources.folder import PART
from dalle_mini.data.sources.rows import Layout, Options, example_of, find_layout, first_of_each_key
from dalle_mini.errors import UserError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

NAMES = ("metadata.csv", "metadata.tsv", "metadata.jsonl")
FILE_NAME = "file_name"
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|nan|NaN")


class Record(NamedTuple):
    """A row of a metadata file, or the reason why it is none; and the byte after it."""

    row: dict[str, Any] | None
    problem: str | None
    stop: int


class MetadataFolder:
    """Pictures that metadata files list. A part is some thousand rows."""

    def __init__(
        self,
        spec: str,
        fs: AbstractFileSystem,
        root: str,
        tables: Sequence[str],
        options: Options,
        pictures: int = 0,
    ):
        """`pictures` lie in the folder: a notice tells of those that no table lists."""
        self.spec, self.fs, self.root, self.tables, self.options = spec, fs, root, tables, options
        self.pictures = pictures
        self._layouts = [self._layout(path) for path in tables]  # a wrong column shows now

    def origin(self) -> dict[str, Any]:
        parts, told = self._read_through
        rows = sum(part.rows for part in parts)
        return {"kind": "metadata", "source": self.spec} | self._layouts[0][1].origin() | {"rows": rows} | told

    def parts(self) -> Sequence[Rows]:
        return self._read_through[0]

    def _layout(self, path: str) -> tuple[tuple[str, ...], Layout]:
        with _open(self.fs, path) as file:
            head = file.read(2)
            if head in (b"\xff\xfe", b"\xfe\xff"):
                raise UserError(f"{path}: is UTF-16; save it as UTF-8")
            file.seek(0)
            names = next((tuple(found.row) for found in _records(file, path, (), 0) if found.row is not None), ())
        image = self.options.image_column or (FILE_NAME if FILE_NAME in names else None)
        return names, replace(find_layout(path, names, replace(self.options, image_column=image)), key=None)

    @cached_property
    def _read_through(self) -> tuple[list[Rows], dict[str, Any]]:
        """The parts, and what tells the tables and their pictures from others: all is read once for both."""
        parts, digest, fingerprint = [], hashlib.sha256(), Fingerprint()
        listed = ListedPictures(self.fs, self.options.image_root or self.root, fingerprint)
        for path, (names, layout) in zip(self.tables, self._layouts, strict=True):
            base = Rows(self.fs, self.root, path, names, layout, self.options.image_root)
            with _open(self.fs, path) as file:
                start, count, size, last = _start_of_rows(file, path), 0, 0, None
                stop = start
                for record in _records(_Digesting(file, digest), path, names, start):
                    name = base.file_of(record) if record.row else None
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
            listed.tell_of_others(self.spec, self.pictures)
        return parts, {"tables": digest.hexdigest()[:16]} | fingerprint.told()


@dataclass(frozen=True)
class Rows:
    """Some rows of a metadata file. A key is the picture's path in the pile, without suffix.

    Attributes:
        start: the byte of the file at which they begin.
        rows: how many they are.
        size: how many examples they make: neighbours of one picture are one.
        image_root: the folder that no path may leave; the pile's where it is None.
    """

    fs: AbstractFileSystem
    root: str
    table: str
    names: tuple[str, ...]
    layout: Layout
    image_root: str | None = None
    start: int = 0
    rows: int = 0
    size: int = 0

    @property
    def name(self) -> str:
        return f"{self.table_name}/{self.start}"

    @property
    def table_name(self) -> str:
        return files.relative(self.root, self.table)

    def examples(self) -> Iterator[Example]:
        return first_of_each_key(files.in_order(self._example, self._grouped(), self.fs))

    def _grouped(self) -> Iterator[list[Record]]:
        """Records, with those of one picture that follow each other together."""
        group: list[Record] = []
        for record in self._records():
            if group and not (record.row and group[0].row and self.file_of(record) == self.file_of(group[0])):
                yield group
                group = []
            group.append(record)
        if group:
            yield group

    def _records(self) -> Iterator[Record]:
        try:
            with _open(self.fs, self.table) as file:
                file.seek(self.start)
                for number, record in enumerate(_records(file, self.table, self.names, self.start)):
                    if number == self.rows:
                        return
                    yield record
        except Exception:  # the table is gone, or the connection failed
            yield Record(None, reasons.CANNOT_READ, self.start)

    def file_of(self, record: Record) -> str:
        """What a row calls its picture."""
        return str(record.row.get(self.layout.image) or "")

    @property
    def _root(self) -> str:
        return self.image_root or self.root

    def place(self, path: str) -> str:
        """Where a picture lies. Raises Unreadable where that is outside."""
        return files.inside(self.fs, self._root, self.image_root or posixpath.dirname(self.table), path)

    def _example(self, group: list[Record]) -> Example:
        first = group[0]
        if first.row is None:
            return Example(files.text_key(f"{self.table_name}/{first.stop}"), None, (), {}, first.problem)
        texts = {*self.layout.captions, *(self.layout.joined or ()), self.layout.image}
        rows = [{name: _typed(value, name in texts) for name, value in record.row.items()} for record in group]
        try:
            key = files.without_suffix(files.relative(self._root, self.place(self.file_of(first))))
        except files.Unreadable:
            key = f"{self.table_name}/{first.stop}"

        def read(path: str) -> bytes:
            return files.read(self.fs, self.place(path))

        example = example_of(key, rows[0], self.layout, read)
        if len(rows) > 1:
            example = replace(example, captions=tuple(c for row in rows for c in self.layout.captions_of(row)))
        return example


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
        return io.BufferedReader(fs.open(path, "rb"), 1 << 20)  # a store's file cannot read a line up to a limit
    except Exception as error:  # every store has exceptions of its own
        raise UserError(f"{path}: cannot be read ({str(error) or type(error).__name__})") from None


def _start_of_rows(file: IO[bytes], path: str) -> int:
    """Puts the file at its first row, behind the names of a table's columns."""
    if path.endswith(".jsonl"):
        return 0
    stop = next((stop for _, stop in _table_rows(_lines(file, 0), path)), 0)
    file.seek(stop)
    return stop


def _records(file: IO[bytes], path: str, names: Sequence[str], place: int) -> Iterator[Record]:
    """The rows from `place` on; of a table without `names` the first line is its columns', as a row of empty texts."""
    if path.endswith(".jsonl"):
        for line, stop in _lines(file, place):
            if line is None:
                yield Record(None, reasons.FILE_TOO_LARGE, stop)
            elif line.strip():
                yield _json_record(line, stop)
        return
    for values, stop in _table_rows(_lines(file, place), path):
        if values is None:
            yield Record(None, reasons.FILE_TOO_LARGE, stop)
        elif not names:
            yield Record(dict.fromkeys(values, ""), None, stop)
        elif len(values) > len(names):
            yield Record(None, reasons.DAMAGED, stop)
        elif values:
            yield Record(dict(zip(names, values, strict=False)), None, stop)


def _json_record(line: bytes, stop: int) -> Record:
    try:
        row = json.loads(captions.read_text(line))
    except (ValueError, RecursionError):
        row = None
    return Record(row, None, stop) if isinstance(row, dict) else Record(None, reasons.DAMAGED, stop)


def _lines(file: IO[bytes], place: int) -> Iterator[tuple[bytes | None, int]]:
    """(line, the byte after it); None in the place of a line that is too long to be read."""
    while line := file.readline(files.MAX_TEXT + 1):
        place += len(line)
        if len(line) <= files.MAX_TEXT:
            yield line, place
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(files.MAX_TEXT)
            place += len(line)
        yield None, place


def _table_rows(lines: Iterable[tuple[bytes | None, int]], path: str) -> Iterator[tuple[list[str] | None, int]]:
    """(values, the byte after them) of each row; None where a row is too long.

    A quote that is never closed would take all that follows into its row: then the line is read alone.
    """
    lines, again = iter(lines), deque()
    dialect = "excel-tab" if path.endswith(".tsv") else "excel"
    while True:
        taken: list[tuple[bytes | None, int]] = []

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
                values = next(csv.reader([captions.read_text(taken[0][0])], dialect), [])
            except csv.Error:  # a field of more than csv.field_size_limit()
                values = None
        if not taken:
            return
        yield values, taken[-1][1]


def _typed(value: Any, is_text: bool) -> Any:
    """A table's text as what it says: a number, true or false, nothing."""
    if is_text or not isinstance(value, str):
        return value
    if _NUMBER.fullmatch(value):
        return int(value) if value.lstrip("+-").isdecimal() and len(value) < 20 else float(value)
    return {"": None, "true": True, "True": True, "false": False, "False": False}.get(value, value)

"""A file of prompts: text, JSON lines, CSV, TSV or Parquet.

A row has a `prompt` and, if the user likes, an `id`, which names its folder, and sampling options of its own. A
problem of the whole file is an error before anything is drawn; a problem of one row is kept with the row.
"""

import csv
import dataclasses
import difflib
import errno
import functools
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dalle_mini.errors import UserError, listed
from dalle_mini.runtime.arrow import Footer, is_text, rows_of, unreadable
from dalle_mini.runtime.files import in_units, open_regular, read_bytes, reason
from dalle_mini.runtime.installing import install_line
from dalle_mini.runtime.limits import exceeded, limits
from dalle_mini.settings import PER_PROMPT, check_utf8

FORMATS = (".txt", ".jsonl", ".csv", ".tsv", ".parquet")
KNOWN = ("prompt", "id", *PER_PROMPT)
WHOLE = ("seed", "top_k")
ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
TEXTS = ("prompt", "negative_prompt")
BATCH, ROW_BYTES = 256, 200  # rows of a table that are read at a time; what a row takes beside its text
DIGITS = (
    6  # of the number that is the id of a prompt without one: the same however many follow, so that a list can grow
)
ALIKE = 0.85  # two names, from 0 to 1: a letter that is missing or another one, in words of this length


@dataclasses.dataclass(frozen=True)
class Entry:
    """One prompt of a file.

    Attributes:
        id: its own, or its number among the file's prompts from 1, with zeros in front; and underscores behind, where
            that is another's own.
        prompt: the caption.
        options: those of `settings.PER_PROMPT` that it has.
        error: what is wrong with the row, if something is.
    """

    id: str
    prompt: str
    options: dict[str, Any]
    error: str | None = None


def read_prompts(path: str | os.PathLike) -> list[Entry]:
    """The prompts of a file in its order; blank lines are passed over.

    Raises:
        UserError: the file cannot be read, is not UTF-8 throughout, has no `prompt` column or no prompt at all, or a
            column whose name is nearly a known one; or two rows have one id. The message names file and line.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"{path}: prompts are read from {', '.join(FORMATS)} files")
    try:
        rows = list(_parquet(path) if path.suffix.lower() == ".parquet" else _rows(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)})") from None
    if not rows:
        raise UserError(f"{path}: there is no prompt in it")
    own = {name.lower() for name in (_own_id(row) for _, row in rows) if name is not None}
    entries = [_entry(row, _free(f"{number:0{DIGITS}d}", own), where) for number, (where, row) in enumerate(rows, 1)]
    seen: dict[str, str] = {}
    for entry, (where, _) in zip(entries, rows, strict=True):
        # Folders of file systems that do not know capitals from small letters would be the same.
        earlier = seen.setdefault(entry.id.lower(), where)
        if earlier != where:
            raise UserError(f"{path}: {earlier} and {where} have the same id, {entry.id!r:.60}: ids must differ")
    return entries


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, row) of each row of a text file."""
    text = _decoded(path)
    kind = path.suffix.lower()
    if kind == ".txt":
        for number, line in enumerate(io.StringIO(text, newline=None), 1):  # split at newlines alone
            if line.strip():
                yield f"line {number}", {"prompt": line.strip()}
    elif kind == ".jsonl":
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}: line {number} is no JSON ({error})") from None
            row = {"prompt": row} if isinstance(row, str) else row
            if not isinstance(row, dict) or "prompt" not in row:
                raise UserError(f'{path}: line {number} is no object with a "prompt"')
            _check_spelling(f"{path}: line {number}", row)
            yield f"line {number}", row
    else:
        try:
            reader = csv.DictReader(io.StringIO(text), delimiter="\t" if kind == ".tsv" else ",", strict=True)
            _check_columns(path, reader.fieldnames or [])
            for row in reader:
                if None in row:
                    raise UserError(f"{path}: line {reader.line_num} has more fields than there are columns: quote it")
                if any(value and value.strip() for value in row.values()):
                    yield f"line {reader.line_num}", {name: value for name, value in row.items() if value}
        except csv.Error as error:
            raise UserError(f"{path}: line {reader.line_num} is no CSV ({error})") from None


def _parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"{path}: Parquet files need pyarrow: {install_line('batch')}") from None
    with open_regular(path) as stream:
        try:
            footer = Footer(stream)
            about = footer.about
            schema = about.schema.to_arrow_schema()
            _check_columns(path, schema.names)
            columns = [name for name in schema.names if name in KNOWN]
            for name in columns:
                _check_type(path, name, schema.field(name).type)
            leaves = [leaf for leaf in range(about.num_columns) if footer.leaf(leaf).path in columns]
            groups = range(about.num_row_groups)
            if any(footer.expands(group, leaf) for group in groups for leaf in leaves):
                raise UserError(f"{path}: its prompts are out of all proportion to its bytes")
            stored = footer.dictionaries(groups, leaves)
            file = parquet.ParquetFile(stream, metadata=about, read_dictionary=stored)
            number, size = 0, 0
            for batch in file.iter_batches(BATCH, columns=columns, use_threads=False):
                for row in rows_of(batch, partial(_refuse_text, path)):
                    number += 1
                    row = {name: value for name, value in row.items() if value is not None}
                    size += ROW_BYTES + sum(len(value) for value in row.values() if isinstance(value, str))
                    if size > limits().prompts_bytes:
                        raise UserError(f"{path}: its prompts are {_too_many()}")
                    yield f"row {number}", row
        except unreadable() as error:
            raise UserError(f"{path}: no Parquet file that can be read ({reason(error)})") from None


def _refuse_text(path: Path, column: str) -> Callable[[bytes], str]:
    """Refuse text that is not UTF-8, as in other files: Parquet itself does not check it."""

    def refuse(text: bytes) -> str:
        raise UserError(f"{path}: column {column} cannot be read ({text[:40]!r} is not UTF-8)")

    return refuse


def _check_type(path: Path, name: str, kind) -> None:
    """Check that a column of a table can hold what it is for.

    Raises:
        UserError: it cannot.
    """
    import pyarrow

    is_number = pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind)
    if not (is_text(kind) or pyarrow.types.is_null(kind) or (is_number and name not in TEXTS)):
        wanted = "text is wanted" if name in TEXTS else "a number is wanted" if name != "id" else "text or a number is"
        raise UserError(f"{path}: column {name} holds {kind!s:.60}: {wanted}")


def _decoded(path: Path) -> str:
    try:
        data = read_bytes(path, limits().prompts_bytes)
    except OSError as error:
        if error.errno != errno.EFBIG:
            raise
        raise UserError(f"{path}: {_too_many()}") from None
    encoding = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}: line {line} is not UTF-8: save the whole file in that encoding") from None
    if "\0" in text:
        raise UserError(f"{path}: holds zero bytes: it is no text file")
    return text


def _too_many() -> str:
    return f"larger than {in_units(limits().prompts_bytes)}: split the file ({exceeded('prompts_bytes')})"


def _check_columns(path: Path, names: Sequence[str]) -> None:
    if "prompt" not in names:
        others = f", but {listed([repr(name) for name in names])}" if names else ": it is empty"
        raise UserError(f"{path}: has no column named prompt{others}")
    if len(set(names)) != len(names):
        raise UserError(f"{path}: has two columns of one name among {listed([repr(name) for name in names])}")

    _check_spelling(str(path), names)


def _check_spelling(where: str, names: Iterable[str]) -> None:
    """Check that no name is nearly a known one: it would be passed over without a word.

    Raises:
        UserError: one is.
    """
    for name in names:
        known = name if name in KNOWN else _nearest(name)
        if known not in (None, name):
            raise UserError(f"{where} has a column named {name!r:.60}: call it {known!r}, or something else")


@functools.lru_cache(1024)
def _nearest(name: str) -> str | None:
    plain = name.strip().lower().replace("-", "_").replace(" ", "_")
    return next(iter(difflib.get_close_matches(plain, KNOWN, n=1, cutoff=ALIKE)), None)


def _own_id(row: dict[str, Any]) -> str | None:
    name = row.get("id")
    return None if name is None else str(_whole(name))


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    return name


def _whole(value):
    """A whole number that is held as a float, as columns with gaps are, as an int; everything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _number(text: str) -> int | float:
    """Raises ValueError where the text is no number."""
    try:
        return int(text)
    except ValueError:
        return float(text)


def _entry(row: dict[str, Any], number: str, where: str) -> Entry:
    """A row with its own id, or `number`."""
    prompt, error, options = row.get("prompt"), None, {}
    name = _own_id(row) or number
    if not ID.fullmatch(name):
        error = f"{where}: id {name!r:.60} is no name of a folder: letters, digits, dots, dashes and underscores are"
        name = number
    if not isinstance(prompt, str) or not prompt.strip():
        prompt, error = prompt if isinstance(prompt, str) else "", error or f"{where}: the prompt is blank or no text"
    try:
        check_utf8(f"{where}: the prompt", prompt)
    except UserError as invalid:
        error = error or str(invalid)
    for option in PER_PROMPT:
        value = row.get(option)
        if value is None:
            continue
        if isinstance(value, str) and option != "negative_prompt":
            try:
                value = _number(value) if option in WHOLE else float(value)
            except ValueError:
                error = error or f"{where}: {option} is {value!r:.60}, not a number"
                continue
        options[option] = _whole(value) if option in WHOLE else value
    return Entry(name, prompt, options, error)

"""Parquet of strangers: what its bytes may become is judged by its footer, and values are made one at a time.

Files hold dates beyond the year 9999, time zones that nobody knows, and text that is not UTF-8, as other programs wrote
it: one value that Python cannot hold costs nothing but itself. A column that is stored as a dictionary has each value
once, however many rows repeat it, and stays one in memory: a row's value is made when the row is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from dalle_mini.runtime.limits import limits

if TYPE_CHECKING:
    import pyarrow as pa

MOST_OF_A_LIST, LIST_BYTES = 1000, 16 << 20  # values of one list, and bytes of them: captions of a picture, say
EXPANSION = 200  # times as large as they are packed: honest text and pictures become less


def unreadable() -> tuple[type[Exception], ...]:
    """The exceptions of pyarrow on a damaged file: its own, and UnicodeDecodeError for a name that is not UTF-8."""
    import pyarrow as pa

    return pa.ArrowException, UnicodeDecodeError


def text_or_path(data: bytes) -> str:
    """Text, or a path whose name holds bytes that are no text, as `os` has it."""
    return data.decode("utf-8", "surrogateescape")


def rows_of(batch: pa.RecordBatch | pa.Table, text: Callable[[str], Callable[[bytes], str]]) -> Iterator[dict]:
    """The rows of a batch; of columns with one name the first. `text` says how one reads what is not UTF-8."""
    columns: dict[str, Any] = {}
    for place, name in enumerate(batch.schema.names):
        columns.setdefault(name, batch.column(place))
    texts = {name: text(name) for name in columns}
    for i in range(batch.num_rows):
        yield {name: value_of(column[i], texts[name]) for name, column in columns.items()}


def value_of(scalar: pa.Scalar, text: Callable[[bytes], str] = text_or_path) -> Any:
    """A value; None where Python has none like it. Text that is not UTF-8 is read by `text`."""
    if "List" in type(scalar).__name__ and scalar.is_valid:
        return _list(scalar, text)
    try:
        return scalar.as_py()
    except Exception:  # pyarrow, the calendar and the time zones raise several types
        return _odd(scalar, text)


def _list(scalar: pa.Scalar, text: Callable[[bytes], str]) -> list:
    """The first values of a list, which a dictionary may make of one."""
    found, size = [], 0
    for one in scalar.values[:MOST_OF_A_LIST]:
        found.append(value := value_of(one, text))
        size += len(value) if isinstance(value, str | bytes) else 1
        if size > LIST_BYTES:
            break
    return found


def _odd(scalar: pa.Scalar, text: Callable[[bytes], str]) -> Any:
    import pyarrow as pa

    if isinstance(scalar, pa.DictionaryScalar):
        return value_of(scalar.value, text)
    if isinstance(scalar, pa.StructScalar):
        names = [scalar.type.field(place).name for place in range(scalar.type.num_fields)]
        return {name: value_of(scalar[place], text) for place, name in reversed([*enumerate(names)])}
    if is_text(scalar.type):
        return text(scalar.as_buffer().to_pybytes())
    if pa.types.is_timestamp(scalar.type):
        try:
            return scalar.cast(pa.timestamp("us", "UTC"), safe=False).as_py()  # of a zone that is not known here
        except Exception:
            return None
    return None


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type of the values that are stored once, as pandas' categories are."""
    import pyarrow as pa

    return kind.value_type if pa.types.is_dictionary(kind) else kind


def is_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    kind = plain_type(kind)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def is_bytes(kind: pa.DataType) -> bool:
    import pyarrow as pa

    kind = plain_type(kind)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def dictionaries(about: Any, groups: Iterable[int], leaves: Iterable[int]) -> list[str]:
    """Those of some columns, by their paths, which any of some row groups stores as a dictionary.

    They are for `read_dictionary` of pyarrow's `ParquetFile`; `about` is a file's metadata.
    """
    leaves = [leaf for leaf in set(leaves) if about.schema.column(leaf).physical_type == "BYTE_ARRAY"]
    stored = {
        leaf
        for group in map(about.row_group, groups)
        for leaf in leaves
        if any("DICTIONARY" in encoding for encoding in group.column(leaf).encodings)
    }
    return [about.schema.column(leaf).path for leaf in sorted(stored)]


def expands(about: Any, group: int, leaf: int) -> bool:
    """Whether a column of a row group is out of all proportion to its bytes."""
    chunk, column = about.row_group(group).column(leaf), about.schema.column(leaf)
    size = chunk.total_uncompressed_size
    if column.physical_type == "FIXED_LEN_BYTE_ARRAY":
        size = max(size, column.length * chunk.num_values)
    if size > limits().parquet_chunk and size > EXPANSION * chunk.total_compressed_size:
        return True
    return column.max_repetition_level > 0 and chunk.num_values > limits().parquet_values

"""Parquet files of strangers. The footer tells how far a file may grow in memory, and values are made one at a time.

Other programs write dates beyond the year 9999, unknown time zones, and text that is not UTF-8. A value that Python
cannot hold is lost alone, and its row stays. A column that is stored as a dictionary stays one in memory; a row's value
is made when the row is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import IO, TYPE_CHECKING, Any

from dalle_mini.runtime.limits import limits
from dalle_mini.runtime.parquet_footer import DICTIONARY, Chunk, column_chunks

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

MOST_OF_A_LIST, LIST_BYTES = 1000, 16 << 20  # values of one list, such as the captions of a picture, and their bytes
EXPANSION = 200  # times as large as they are packed: honest text and pictures become less


def unreadable(*others: type[Exception]) -> tuple[type[Exception], ...]:
    """The exceptions of pyarrow on a damaged file, and `others`.

    They are its own, and UnicodeDecodeError for a name that is not UTF-8.
    """
    import pyarrow as pa

    return pa.ArrowException, UnicodeDecodeError, *others


def text_or_path(data: bytes) -> str:
    """Text, or a path whose name holds bytes that are no text, as `os` has it."""
    return data.decode("utf-8", "surrogateescape")


def rows_of(batch: pa.RecordBatch | pa.Table, text: Callable[[str], Callable[[bytes], str]]) -> Iterator[dict]:
    """The rows of a batch, with the first of columns of one name. `text` chooses how to read text that is not UTF-8."""
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
    """The type of the values; for a dictionary, as pandas' categories are stored, that of its entries."""
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


class Footer:
    """The metadata of a Parquet file, and what may be asked of its column chunks (`runtime/parquet_footer.py`).

    Attributes:
        about: pyarrow's `FileMetaData`. Do not ask its row groups for columns: that can end the process.

    Raises:
        pyarrow's exceptions: the file is damaged (`unreadable`).
    """

    def __init__(self, file: IO[bytes]):
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.about: pq.FileMetaData = pq.read_metadata(file)
        try:
            self._chunks = column_chunks(file)
        except ValueError as error:
            raise pa.ArrowInvalid(str(error)) from None
        if [len(group) for group in self._chunks] != [self.about.num_columns] * self.about.num_row_groups:
            raise pa.ArrowInvalid("its footer lacks columns")

    def chunk(self, group: int, leaf: int) -> Chunk:
        return self._chunks[group][leaf]

    def leaf(self, number: int) -> pq.ColumnSchema:
        return self.about.schema.column(number)

    def dictionaries(self, groups: Iterable[int], leaves: Iterable[int]) -> list[str]:
        """The paths of those columns that any of some row groups stores as a dictionary.

        They are for `read_dictionary` of pyarrow's `ParquetFile`.
        """
        leaves = sorted(leaf for leaf in set(leaves) if self.leaf(leaf).physical_type == "BYTE_ARRAY")
        groups = list(groups)
        stored = [leaf for leaf in leaves if any(self.chunk(group, leaf).encodings & DICTIONARY for group in groups)]
        return [self.leaf(leaf).path for leaf in stored]

    def expands(self, group: int, leaf: int) -> bool:
        """Whether a column of a row group is out of all proportion to its bytes."""
        chunk, column = self.chunk(group, leaf), self.leaf(leaf)
        size = chunk.unpacked
        if column.physical_type == "FIXED_LEN_BYTE_ARRAY":
            size = max(size, column.length * chunk.values)
        if size > limits().parquet_chunk and size > EXPANSION * chunk.packed:
            return True
        return column.max_repetition_level > 0 and chunk.values > limits().parquet_values

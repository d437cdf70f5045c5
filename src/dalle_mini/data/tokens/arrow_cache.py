"""Parquet files -> record batches that are mapped into memory, by way of the Arrow files in the cache of `datasets`."""

import contextlib
import glob
import hashlib
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dalle_mini.errors import UserError
from dalle_mini.runtime import console
from dalle_mini.runtime.arrow import unreadable
from dalle_mini.runtime.files import open_regular, reason

CHUNK = 10_000  # rows of a record batch of the mapped files: few enough objects for a billion rows
MAPPED = 2**30  # bytes of mapped pages that a process should have at most
TOUCHED = 2**21  # bytes that a row may bring in: newer kernels map as much as that around each place that is read


@dataclass(frozen=True)
class ShardFile:
    """A Parquet file: its rows, and the SHA-256 of all its bytes, or of its footer alone where `columns` came of it."""

    path: Path
    rows: int
    sha256: str
    columns: tuple[str, ...] = ()

    def list_length(self, column: str) -> int:
        """The length of the list in the first row of a column. Raises UserError where there is none."""
        with _damaged(self.path), open_regular(self.path) as file:
            for batch in pq.ParquetFile(file).iter_batches(1, columns=[column]):
                value = batch.column(0)[0]
                if isinstance(value, pa.ListScalar) and value.is_valid and len(value):
                    return len(value)
                raise UserError(f"{self.path}: the first row of {column} is no list of tokens")
        raise UserError(f"{self.path}: no rows")


def footer(path: Path) -> ShardFile:
    """A Parquet file by its footer. Raises UserError where it is damaged."""
    with _damaged(path):
        with open_regular(path) as file:
            found = pq.read_metadata(file)
            file.seek(-8, os.SEEK_END)
            length = int.from_bytes(file.read(4), "little")
            file.seek(-8 - length, os.SEEK_END)
            digest = hashlib.sha256(file.read()).hexdigest()
        return ShardFile(path, found.num_rows, digest, tuple(found.schema.to_arrow_schema().names))


def bounds(path: Path, column: str) -> tuple[int, int]:
    """(lowest, highest) value of a list column, by what its file tells of it; (0, 0) where that tells nothing."""
    found = [0]
    with _damaged(path):
        with open_regular(path) as file:
            described = pq.read_metadata(file)
        for group in map(described.row_group, range(described.num_row_groups)):
            for chunk in map(group.column, range(group.num_columns)):
                told = chunk.statistics if chunk.path_in_schema.partition(".")[0] == column else None
                if told is not None and told.has_min_max:
                    found += [told.min, told.max]
    return min(found), max(found)


class Pages:
    """The mapped files of a data set, and what of them is counted as this process's memory.

    Pages that were looked at stay the process's until the kernel wants them back, which it does before anything fails.
    But who watches the process (Kubernetes, for one) cannot tell, so those of larger data sets are handed back every
    few hundred rows. They stay in the kernel's cache: looking at them again costs 8 microseconds a row, and no reading.
    """

    def __init__(self):
        self._files: list[mmap.mmap] = []
        self._rows = 0

    def map(self, file: Path) -> list[pa.RecordBatch]:
        """The batches of an Arrow stream, where they lie: only what is looked at is read."""
        with file.open("rb") as opened:
            pages = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        if hasattr(mmap, "MADV_RANDOM"):
            pages.madvise(mmap.MADV_RANDOM)  # rows are shuffled: the 128 kB ahead of each would be read in vain
        self._files.append(pages)
        return pa.ipc.open_stream(pa.py_buffer(pages)).read_all().to_batches()

    def looked_at(self, rows: int) -> None:
        """So many more rows were read, in any thread."""
        self._rows += rows
        if self._rows * TOUCHED > MAPPED and sum(map(len, self._files)) > MAPPED and hasattr(mmap, "MADV_DONTNEED"):
            self._rows = 0
            for pages in self._files:
                pages.madvise(mmap.MADV_DONTNEED)


def map_shards(folder: Path, shards: list[ShardFile], columns: pa.Schema) -> tuple[list[pa.RecordBatch], Pages]:
    """The rows of all shards, in their order, and the memory that they are mapped into.

    The first time they are checked and written to the cache (`HF_DATASETS_CACHE`), which takes as much room as they
    do; files that change since are noticed by size and time, and checked and written again.

    Raises:
        UserError: a file is missing, damaged, or has other columns.
    """
    import datasets

    for shard in shards:
        if not shard.path.is_file():
            raise UserError(f"{shard.path} is missing: fetch it again, or encode again into another folder")
    with _explained(folder, shards, columns), _quiet():
        builder = datasets.load_dataset_builder(
            "parquet",
            data_files={"rows": [glob.escape(str(shard.path)) for shard in shards]},
            columns=columns.names,
            features=datasets.Features.from_arrow_schema(columns),
            writer_batch_size=CHUNK,
        )
        if not os.path.isdir(builder.cache_dir):
            for shard in shards:
                _check(shard)
        builder.download_and_prepare()
    pages = Pages()
    try:
        files = [Path(file["filename"]) for file in builder.as_dataset("rows").cache_files]
        batches = [batch for file in files for batch in pages.map(file)]
    except (pa.ArrowException, ValueError, OSError) as error:
        batches, fault = [], reason(error)
    else:
        fault = "rows are missing"
    if sum(batch.num_rows for batch in batches) != sum(shard.rows for shard in shards):
        raise UserError(
            f"{builder.cache_dir}: the cached copy of {folder} is damaged ({fault}): delete it and run again"
        )
    return batches, pages


def _check(shard: ShardFile) -> None:
    """Compare a file with the SHA-256 that its manifest has for it."""
    if shard.columns:
        return  # of the original's notebook: no such thing
    with shard.path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() == shard.sha256:
            return
    raise UserError(f"{shard.path}: damaged (wrong SHA-256): fetch it again, or encode again into another folder")


@contextlib.contextmanager
def _explained(folder: Path, shards: list[ShardFile], columns: pa.Schema) -> Iterator[None]:
    """The exceptions of `datasets`, as one line about the file that caused them."""
    from datasets.exceptions import DatasetGenerationError

    try:
        yield
    except UserError:
        raise
    except (DatasetGenerationError, pa.ArrowException, ValueError, TypeError) as error:
        for shard in shards:  # which of them is it?
            with _damaged(shard.path), open_regular(shard.path) as file:
                for batch in pq.ParquetFile(file).iter_batches(columns=columns.names):
                    if missing := set(columns.names) - set(batch.schema.names):
                        raise UserError(f"{shard.path}: no column {', '.join(sorted(missing))}") from None
                    _refuse_what_is_no_text(shard, batch.schema, columns)
                    pa.Table.from_batches([batch]).cast(columns)
        cause = error.__cause__ or error
        raise UserError(f"{folder}: cannot be mapped ({reason(cause)}){_room(cause)}") from None
    except OSError as error:
        raise UserError(f"{folder}: cannot be mapped ({reason(error)}){_room(error)}") from None


def _room(error: BaseException) -> str:
    where = "as much room as its shards take is needed in the cache, which HF_DATASETS_CACHE may put elsewhere"
    return f": {where}" if isinstance(error, OSError) else ""


def _refuse_what_is_no_text(shard: ShardFile, found: pa.Schema, columns: pa.Schema) -> None:
    for column in columns:
        kind = found.field(column.name).type
        if pa.types.is_string(column.type) and pa.types.is_nested(kind):
            raise UserError(f"{shard.path}: {column.name} must be text, and is {kind}") from None


@contextlib.contextmanager
def _damaged(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path} is missing: fetch it again, or encode again into another folder") from None
    except unreadable(OSError) as error:
        raise UserError(f"{path}: damaged, or not such a shard ({reason(error)})") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The bar of `datasets` only where somebody may watch it, and none of its own words on what is raised anyway."""
    import datasets

    verbosity = datasets.logging.get_verbosity()
    shows_bars = not (datasets.are_progress_bars_disabled() or console.is_terminal())
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    if shows_bars:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if shows_bars:
            datasets.enable_progress_bars()

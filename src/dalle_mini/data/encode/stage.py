"""Some parts of a source -> staged files, one a part, each whole or not there. This is what any engine runs.

A staged file holds all examples of a part: the kept ones' rows as the shards will have them, and the dropped ones with
their reasons. Duplicates, splits and shards, which concern the dataset as a whole, come afterwards, in `finish.py`.
"""

import io
import json
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dalle_mini.data.encode.crops import Block, Preparation, Rejected, Row
from dalle_mini.data.encode.encoders import Networks
from dalle_mini.data.encode.filters import Filters, score_problem
from dalle_mini.data.encode.workers import Restart, start_readers
from dalle_mini.data.sources.example import Part
from dalle_mini.data.sources.reasons import CLIP_SCORE
from dalle_mini.data.tokens.shards import schema
from dalle_mini.errors import UserError
from dalle_mini.models.image_tokenizer import TokenGrid
from dalle_mini.runtime.cores import usable_cores
from dalle_mini.runtime.folders import WORK, LocalFolder, RemoteFolder
from dalle_mini.runtime.hashing import hash_64
from dalle_mini.runtime.parsing import convert, parse_json

PARTS = f"{WORK}/parts"
STATE = b"dalle_mini"  # the key of a staged file's own metadata
WAITING = 2  # batches that a device has been given and not finished


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        images: that were read now, by this process or those that it started.
        kept: how many of them are kept, before duplicates are looked for.
        parts_done, parts: of this process's share; those that were there already are done.
        total: images that are to be read now, where the source can tell.
    """

    images: int
    kept: int
    parts_done: int
    parts: int
    total: int | None = None


def staged_name(number: int) -> str:
    return f"{PARTS}/{number:06d}.parquet"


def staged_schema(image_length: int, codebook_size: int) -> pa.Schema:
    """A shard's columns, and what the second pass asks for. A dropped example is a row with a reason and no tokens."""
    columns = [
        ("position", pa.int64()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("key_hash", pa.uint64()),
        ("exact", pa.uint64()),
        ("look", pa.uint64()),
    ]
    return pa.schema([*schema(image_length, codebook_size), *(pa.field(*column) for column in columns)])


def missing_parts(folder: LocalFolder | RemoteFolder, parts: int) -> list[int]:
    """Numbers of the parts that are not staged yet."""
    there = folder.names(PARTS)
    return [number for number in range(parts) if staged_name(number).rpartition("/")[2] not in there]


def encode_parts(
    parts: Sequence[tuple[int, Part]],
    preparation: Preparation,
    networks: Networks,
    folder: LocalFolder | RemoteFolder,
    run: str,
    *,
    workers: int | None = None,
    progress: Callable[[int, int, int], None] = lambda images, kept, parts: None,
) -> None:
    """Encode parts and stage them in `folder`. A staged file is a pure function of part, preparation and networks.

    Worker processes read and decode several parts at a time; batches go to the devices as they are full, and results
    come back while later ones are computed.

    Args:
        parts: with their numbers in the source.
        run: the run's hash: a staged file says whose it is.
        workers: processes that read and decode, by default one a core; 0 does it in this one.
        progress: called with images read, images kept, and parts staged, since the last call.
    Raises:
        UserError: a file cannot be written; what was staged before stays.
    """
    if not parts:
        return
    processes = usable_cores() if workers is None else workers
    staged: dict[int, StagedPart] = {}
    waiting: deque = deque()  # in the order in which they were given to the devices

    def finish_oldest() -> None:
        part, read, result = waiting.popleft()
        if read.block is None:
            part.write(folder, run)
            progress(0, 0, 1)
            return
        part.add(read.block, *result())
        read.free()
        progress(read.block.seen, sum(row.crop == 0 for row in read.block.rows), 0)

    with start_readers(parts, preparation, networks.batch_size, processes) as readers:
        for read in readers:
            if read is None:  # the memory of what waits may be all there is
                if waiting:
                    finish_oldest()
                continue
            if isinstance(read, Restart):
                staged.pop(read.number, None)  # what waits goes to the old one, which nobody writes
                continue
            part = staged.setdefault(read.number, StagedPart(read.number, networks.tokenizer, preparation.filters))
            if read.block is None:
                waiting.append((staged.pop(read.number), read, None))
            elif read.block.rows:
                waiting.append(
                    (part, read, networks.start(read.block.images, [row.caption for row in read.block.rows]))
                )
            else:
                part.add(read.block, None, None)
                progress(read.block.seen, 0, 0)
            while len(waiting) > WAITING * len(networks.devices) or (waiting and waiting[0][1].block is None):
                finish_oldest()
        while waiting:
            finish_oldest()


@dataclass(frozen=True)
class StagedState:
    """A staged file's metadata: its run, images seen, and crops that CLIP's score dropped while others stay."""

    run: str
    seen: int
    crops_dropped: int


class StagedPart:
    """The rows and rejected examples of a part that is being encoded."""

    def __init__(self, number: int, tokenizer: TokenGrid, filters: Filters) -> None:
        self._number, self._filters = number, filters
        self._schema = staged_schema(tokenizer.grid**2, tokenizer.codebook_size)
        self._rows: list[tuple[Row, float | None]] = []
        self._tokens: list[np.ndarray] = []
        self._rejected: list[Rejected] = []
        self._scored_out: dict[int, list[tuple[str, float]]] = {}  # by position: key and score of each such crop
        self._seen = 0

    def add(self, block: Block, tokens: np.ndarray | None, scores: np.ndarray | None) -> None:
        """Take a block and what the networks made of it; `tokens` is None where it has no rows."""
        self._seen += block.seen
        self._rejected += block.rejected
        if tokens is None:
            return
        told: list[float | None] = [None] * len(block.rows) if scores is None else scores.tolist()
        keep = []
        for i, (row, score) in enumerate(zip(block.rows, told, strict=True)):
            if score_problem(score, self._filters) is None:
                keep.append(i)
                self._rows.append((row, score))
                continue
            assert score is not None  # options without CLIP's scores have no bounds for them
            self._scored_out.setdefault(row.position, []).append((row.key, score))
        self._tokens.append(tokens[keep])

    def write(self, folder: LocalFolder | RemoteFolder, run: str) -> None:
        file = io.BytesIO()
        pq.write_table(self._table(run), file, compression="zstd", use_dictionary=False)
        folder.write(staged_name(self._number), file.getvalue())

    def _table(self, run: str) -> pa.Table:
        kept = {row.position for row, _ in self._rows}
        rejected = self._rejected + [
            Rejected(position, crops[0][0], CLIP_SCORE, f"{max(score for _, score in crops):.4f}")
            for position, crops in self._scored_out.items()
            if position not in kept
        ]
        crops_dropped = sum(len(crops) for position, crops in self._scored_out.items() if position in kept)
        state = {"run": run, "seen": self._seen, "crops_dropped": crops_dropped}
        rows, blank = [row for row, _ in self._rows], [None] * len(rejected)
        positions = [row.position for row in rows] + [one.position for one in rejected]
        keys = [row.key for row in rows] + [one.key for one in rejected]
        columns = {
            "key": [_text(key) for key in keys],
            "crop": [row.crop for row in rows] + blank,
            "caption": [_text(row.caption) for row in rows] + blank,
            "other_captions": [[_text(one) for one in row.other_captions] for row in rows] + blank,
            "tokens": self._token_column(len(rejected)),
            "width": [row.width for row in rows] + blank,
            "height": [row.height for row in rows] + blank,
            "clip_score": [score for _, score in self._rows] + blank,
            "position": positions,
            "reason": [None] * len(rows) + [one.reason for one in rejected],
            "detail": [None] * len(rows) + [_text(one.detail) for one in rejected],
            "key_hash": [hash_64(key) for key in keys],
            "exact": [row.exact for row in rows] + blank,
            "look": [row.look for row in rows] + blank,
        }
        arrays = [
            column if isinstance(column, pa.Array) else pa.array(column, self._schema.field(name).type)
            for name, column in columns.items()
        ]
        table = pa.Table.from_arrays(arrays, schema=self._schema.with_metadata({STATE: json.dumps(state)}))
        return table.sort_by([("position", "ascending"), ("crop", "ascending")])

    def _token_column(self, nulls: int) -> pa.Array:
        kind = self._schema.field("tokens").type
        dtype = kind.value_type.to_pandas_dtype()
        length = kind.list_size
        tokens = np.concatenate([np.zeros((0, length), dtype), *self._tokens]).astype(dtype)
        kept = pa.FixedSizeListArray.from_arrays(pa.array(tokens.reshape(-1)), type=kind)
        return pa.concat_arrays([kept, pa.nulls(nulls, kind)])


def _text(text: str) -> str:
    """Half a character of JSON's escapes is no text that can be stored."""
    return text.encode("utf-8", "replace").decode()


def read_staged(
    folder: LocalFolder | RemoteFolder, number: int, run: str, columns: Sequence[str] | None = None
) -> tuple[pa.Table, StagedState]:
    """A staged part's rows and its counts, or a UserError where it is gone or not this run's."""
    name = staged_name(number)
    data = folder.read(name)
    if data is None:
        raise UserError(f"{folder}/{name} is gone: run the same command again")
    try:
        table = pq.read_table(pa.BufferReader(data), columns=columns and list(columns))
        state = convert(parse_json((table.schema.metadata or {})[STATE]), StagedState)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}/{name} is damaged ({error}): delete it and run the same command again") from None
    if state.run != run:
        raise UserError(f"{folder}/{name} is of another run: delete {folder}/{WORK} and run the same command again")
    return table, state

"""The second pass over a dataset: staged parts -> shards without duplicates, in splits, and last the manifest.

Two streams over the staged files. The first takes three hashes a picture into memory, some 100 bytes while they are
sorted, and knows then which pictures repeat an earlier one. The second writes. The order is that of the source's parts,
so that of equal pictures the same one stays whoever encoded what, and when.
"""

import hashlib
import io
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dalle_mini.data.encode.duplicates import duplicates, near_duplicates
from dalle_mini.data.encode.filters import Filters
from dalle_mini.data.encode.stage import read_staged
from dalle_mini.data.sources import reasons
from dalle_mini.data.tokens.shards import (
    DROPPED,
    DROPPED_SCHEMA,
    MANIFEST,
    SPLITS,
    FilterCount,
    Manifest,
    Shard,
    Split,
    TokensOf,
    schema,
    shard_name,
    write_table,
)
from dalle_mini.errors import UserError
from dalle_mini.runtime.files import as_utf8
from dalle_mini.runtime.folders import LocalFolder, RemoteFolder
from dalle_mini.runtime.hashing import in_share

# In this order an example meets them, and the first to say no is the reason.
ORDER = (
    *(reasons.NO_IMAGE, reasons.FILE_TOO_LARGE, reasons.CANNOT_READ, reasons.CUT_SHORT, reasons.DAMAGED),
    *(reasons.ROW_DAMAGED, reasons.EXPANDS, reasons.LEAVES_FOLDER, reasons.NO_FILE),
    *(reasons.WHERE_MISSING, reasons.WHERE_FALSE),
    *(reasons.NO_CAPTION, reasons.CAPTION_TOO_SHORT, reasons.CAPTION_TOO_LONG, reasons.NOT_ENGLISH),
    *(reasons.EMPTY_FILE, reasons.NOT_AN_IMAGE, reasons.TOO_MUCH, reasons.TOO_MANY_PIXELS),
    *(reasons.UNREAD_NUMBERS, reasons.IMAGE_DAMAGED, reasons.NO_RANGE),
    *(reasons.IMAGE_TOO_SMALL, reasons.ASPECT_RATIO, reasons.CLIP_SCORE),
    *(reasons.DUPLICATE_KEY, reasons.DUPLICATE, reasons.NEAR_DUPLICATE),
)
HASHES = ("position", "reason", "key_hash", "exact", "look")
ORIGINAL = -1  # instead of the picture that another one repeats


@dataclass(frozen=True)
class Plan:
    """The second pass's task: how many parts there are, and the fields that go into the manifest as they are."""

    run: str
    parts: int
    vqgan: TokensOf
    clip: dict[str, str] | None
    source: dict[str, Any]
    options: dict[str, Any]
    filters: Filters
    validation: float
    shard_rows: int


@dataclass
class Repeats:
    """Which images repeat another, by their number among all that came so far: [n] each."""

    of: np.ndarray  # int64: the number of the first, or ORIGINAL
    why: np.ndarray  # int8: which of REPEATS


class NothingKept(UserError):
    """Every example was dropped. dropped.parquet has the reasons; there is no manifest."""


REPEATS = (reasons.DUPLICATE_KEY, reasons.DUPLICATE, reasons.NEAR_DUPLICATE)


def finish(
    folder: LocalFolder | RemoteFolder, plan: Plan, progress: Callable[[int, int], None] = lambda done, total: None
) -> Manifest:
    """Write dropped.parquet, the shards and, last, the manifest. Doing it again writes the same bytes.

    Raises:
        NothingKept: there would be no row.
        UserError: a staged part is missing or damaged, or something cannot be written.
    """
    repeats = find_repeats(folder, plan, lambda done: progress(done, 2 * plan.parts))
    counts: Counter[str] = Counter()
    codes = np.zeros(plan.vqgan.codebook_size, np.int64)
    columns = schema(plan.vqgan.image_length, plan.vqgan.codebook_size)
    writers = {split: ShardWriter(folder, split, columns, plan.shard_rows) for split in SPLITS}
    dropped = DroppedWriter()
    keys: dict[int, str] = {}  # of the pictures that others repeat
    wanted = np.unique(repeats.of[repeats.of != ORIGINAL])
    number = 0
    for part in range(plan.parts):
        table, state = read_staged(folder, part, plan.run)
        counts.update(seen=state.seen, crops_dropped=state.crops_dropped)
        table, number = _without_repeats(table, number, repeats, wanted, keys)
        rejected = table.filter(pc.is_valid(table["reason"]))
        dropped.add(rejected)
        rows = table.filter(pc.is_null(table["reason"]))
        counts["kept"] += len(np.unique(rows["position"].to_numpy()))
        codes += np.bincount(_tokens(rows), minlength=len(codes))
        # A key alone decides it: whatever joins the dataset later, or leaves it, no image changes sides.
        validates = in_share(rows["key_hash"].to_numpy(), plan.validation)
        for split, chosen in zip(SPLITS, (~validates, validates), strict=True):
            writers[split].add(rows.filter(pa.array(chosen)))
        progress(plan.parts + part + 1, 2 * plan.parts)
    splits = {split: writer.close() for split, writer in writers.items()}
    dropped_rows, rows = dropped.close(folder), sum(split.rows for split in splits.values())
    if not rows:
        raise NothingKept(_nothing(folder, counts["seen"], dropped.counts))
    manifest = Manifest(
        rows=rows,
        kept=counts["kept"],
        seen=counts["seen"],
        dropped={reason: dropped.counts[reason] for reason in ORDER if dropped.counts[reason]},
        crops_dropped=counts["crops_dropped"],
        filters=_filter_counts(counts["seen"], dropped.counts),
        codebook_use=tuple(codes.tolist()),
        vqgan=plan.vqgan,
        clip=plan.clip,
        source=plan.source,
        options=plan.options,
        splits=splits,
        dropped_rows=dropped_rows,
    )
    folder.write(MANIFEST, as_utf8(manifest.to_json()))
    return manifest


def find_repeats(
    folder: LocalFolder | RemoteFolder, plan: Plan, progress: Callable[[int], None] = lambda done: None
) -> Repeats:
    """Which images repeat the key, or the look, of an earlier one; those that are dropped already do not count.

    Keys and exact hashes are compared by 64 bits: among 400 million pictures the chance that two different ones meet
    is 1 in 200.
    """
    hashes: dict[str, list[np.ndarray]] = {"key_hash": [], "exact": [], "look": []}
    looked_for = [*hashes] if plan.filters.duplicates else ["key_hash"]
    for part in range(plan.parts):
        table, _ = read_staged(folder, part, plan.run, HASHES)
        table = table.filter(pc.is_null(table["reason"]))
        first = _first_of_image(table["position"].to_numpy())
        for name in looked_for:
            hashes[name].append(table[name].to_numpy()[first])
        progress(part + 1)
    all_of = {name: np.concatenate([np.empty(0, np.uint64), *hashes.pop(name)]) for name in looked_for}
    repeats = Repeats(np.full(len(all_of["key_hash"]), ORIGINAL), np.zeros(len(all_of["key_hash"]), np.int8))
    _mark(repeats, 0, all_of["key_hash"], duplicates)
    if plan.filters.duplicates:
        _mark(repeats, 1, all_of["exact"], duplicates)
    if plan.filters.duplicates == "near":
        _mark(repeats, 2, all_of["look"], lambda looks: near_duplicates(looks, plan.filters.near_distance))
    return repeats


def _mark(repeats: Repeats, why: int, hashes: np.ndarray, find: Callable[[np.ndarray], np.ndarray]) -> None:
    left = np.flatnonzero(repeats.of == ORIGINAL)
    found = find(hashes[left])
    again = np.flatnonzero(found >= 0)
    repeats.of[left[again]] = left[found[again]]
    repeats.why[left[again]] = why


def _without_repeats(
    table: pa.Table, number: int, repeats: Repeats, wanted: np.ndarray, keys: dict[int, str]
) -> tuple[pa.Table, int]:
    """A part's table, in which pictures that repeat others have a reason and one row; and the next picture's number.

    `keys` learns those of the `wanted` pictures in this part.
    """
    kept = np.flatnonzero(table["reason"].is_null().to_numpy())
    first = _first_of_image(table["position"].to_numpy()[kept])
    image = number + np.cumsum(np.isin(np.arange(len(kept)), first)) - 1  # of each kept row
    for row, its in zip(kept[first], image[first], strict=True):
        if (at := np.searchsorted(wanted, its)) < len(wanted) and wanted[at] == its:
            keys[int(its)] = table["key"][int(row)].as_py()
    again = repeats.of[image] != ORIGINAL
    if again.any():
        reason, detail = table["reason"].to_pylist(), table["detail"].to_pylist()
        for row, its in zip(kept[again], image[again], strict=True):
            reason[row], detail[row] = REPEATS[repeats.why[its]], keys[int(repeats.of[its])]
        for name, values in (("reason", reason), ("detail", detail)):
            table = table.set_column(table.schema.get_field_index(name), name, pa.array(values, pa.string()))
        stays = np.ones(len(table), bool)
        stays[np.setdiff1d(kept[again], kept[first])] = False  # further crops of them
        table = table.filter(pa.array(stays))
    return table, number + len(first)


def _first_of_image(positions: np.ndarray) -> np.ndarray:
    """Indices of the first row of each picture; the crops of one follow each other."""
    return np.flatnonzero(np.r_[True, positions[1:] != positions[:-1]]) if len(positions) else np.empty(0, np.int64)


def _tokens(rows: pa.Table) -> np.ndarray:
    return rows["tokens"].combine_chunks().flatten().to_numpy()


def _nothing(folder: LocalFolder | RemoteFolder, seen: int, dropped: Counter) -> str:
    if not seen:
        return f"{folder}: nothing was kept: the source has no images"
    why = ", ".join(f"{count:,} {reason}" for reason, count in dropped.most_common())
    return f"{folder}: nothing was kept: all {seen:,} images were dropped ({why}): {DROPPED} there lists them"


def _filter_counts(seen: int, dropped: Counter) -> tuple[FilterCount, ...]:
    counts, left = [], seen
    for reason in ORDER:
        left -= dropped[reason]
        counts.append(FilterCount(reason, left, dropped[reason]))
    return tuple(counts)


@dataclass
class ShardWriter:
    """One split's rows into shards of `shard_rows`, of which the last may be smaller."""

    folder: LocalFolder | RemoteFolder
    split: str
    columns: pa.Schema
    shard_rows: int
    _shards: list[Shard] = field(default_factory=list)
    _waiting: list[pa.Table] = field(default_factory=list)
    _count: int = 0

    def add(self, rows: pa.Table) -> None:
        if len(rows):
            self._waiting.append(rows.select(self.columns.names).cast(self.columns))
            self._count += len(rows)
        while self._count >= self.shard_rows:
            self._write(self.shard_rows)

    def close(self) -> Split:
        if self._count:
            self._write(self._count)
        return Split(sum(shard.rows for shard in self._shards), tuple(self._shards))

    def _write(self, rows: int) -> None:
        table = pa.concat_tables(self._waiting)
        self._waiting, self._count = [table.slice(rows)], self._count - rows
        file = io.BytesIO()
        write_table(table.slice(0, rows).replace_schema_metadata(None), file)
        self._shards.append(_write(self.folder, shard_name(self.split, len(self._shards)), rows, file))


class DroppedWriter:
    """The rejected examples, in the order of the source, compressed in memory: some 20 bytes each."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._file, self._rows = io.BytesIO(), 0
        self._parquet = pq.ParquetWriter(self._file, DROPPED_SCHEMA, compression="zstd")

    def add(self, rejected: pa.Table) -> None:
        self.counts.update(rejected["reason"].to_pylist())
        self._rows += len(rejected)
        if len(rejected):
            rows = rejected.select(DROPPED_SCHEMA.names).cast(DROPPED_SCHEMA)
            self._parquet.write_table(rows.replace_schema_metadata(None))

    def close(self, folder: LocalFolder | RemoteFolder) -> Shard:
        self._parquet.close()
        return _write(folder, DROPPED, self._rows, self._file)


def _write(folder: LocalFolder | RemoteFolder, name: str, rows: int, file: io.BytesIO) -> Shard:
    data = file.getvalue()
    folder.write(name, data)
    return Shard(name, rows, hashlib.sha256(data).hexdigest())

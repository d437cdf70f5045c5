"""The contents of an encoded folder: its manifest's counts, and a random sample of its rows."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dalle_mini.data.tokens.shards import DROPPED_SCHEMA, Manifest, Shard, check_columns, read_table, schema
from dalle_mini.errors import UserError, listed
from dalle_mini.runtime.arrow import unreadable
from dalle_mini.runtime.files import open_regular, reason

SAMPLE = 250_000  # rows: a report should take minutes, not a night
EXAMPLES = 5  # of what was dropped, for each reason
_MAY_BE_NULL = ("other_captions", "clip_score")


@dataclass(frozen=True)
class Row:
    """One row, as it is shown. `tokens` is [image_length], `score` None where CLIP was not asked."""

    split: str
    key: str
    crop: int
    caption: str
    others: tuple[str, ...]
    tokens: np.ndarray
    width: int
    height: int
    score: float | None


@dataclass
class Survey:
    """The figures and rows of a report.

    Attributes:
        sampled: rows from which the arrays below are made; each is [sampled], and scores [those that have one].
        characters, words: lengths of the captions.
        captions: captions of the picture.
        aspect: width / height.
        side: the shorter side, pixels.
        scores: CLIP's.
        codes: different tokens of the picture.
        random: rows drawn evenly from the sample.
        worst: the extremes of the sample by kind, the worst first.
        dropped: some (key, detail) of dropped pictures, by reason.
    """

    manifest: Manifest
    sampled: int = 0
    characters: np.ndarray = field(default_factory=lambda: np.empty(0))
    words: np.ndarray = field(default_factory=lambda: np.empty(0))
    captions: np.ndarray = field(default_factory=lambda: np.empty(0))
    aspect: np.ndarray = field(default_factory=lambda: np.empty(0))
    side: np.ndarray = field(default_factory=lambda: np.empty(0))
    scores: np.ndarray = field(default_factory=lambda: np.empty(0))
    codes: np.ndarray = field(default_factory=lambda: np.empty(0))
    random: list[Row] = field(default_factory=list)
    worst: dict[str, list[Row]] = field(default_factory=dict)
    dropped: dict[str, list[tuple[str, str]]] = field(default_factory=dict)


def survey(
    folder: Path,
    *,
    rows: int = 24,
    worst: int = 8,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Survey:
    """Look at up to `SAMPLE` rows, whole row groups drawn evenly from all shards.

    Args:
        rows: number of rows to draw evenly.
        worst: number of rows of each kind of extreme.
        progress: called with (rows read, rows to read).
    Raises:
        UserError: the manifest or a shard is missing or damaged, or there are no rows.
    """
    manifest = Manifest.read(folder)
    if not manifest.rows:
        raise UserError(f"{folder}: no rows: all {manifest.seen:,} images were dropped")
    chance = np.random.default_rng(seed)
    found = Survey(manifest, dropped=_dropped(folder, manifest.dropped_rows))
    groups, columns = _groups(folder, manifest), schema(manifest.vqgan.image_length, manifest.vqgan.codebook_size)
    total = sum(count for *_, count in groups)
    measures: dict[str, list[np.ndarray]] = {name: [] for name in _MEASURES}
    shown = _Extremes(worst, rows)
    for number in chance.permutation(len(groups)):
        split, shard, group, _ = groups[number]
        table = _read_group(folder / shard.file, group, columns)
        measured = _measure(table)
        for name, values in measured.items():
            measures[name].append(values)
        shown.take(split, table, measured, chance)
        found.sampled += len(table)
        progress(found.sampled, min(total, SAMPLE))
        if found.sampled >= SAMPLE:
            break
    for name, parts in measures.items():
        setattr(found, name, np.concatenate(parts))
    found.scores = found.scores[np.isfinite(found.scores)]
    found.random, found.worst = shown.random(), shown.worst()
    return found


_MEASURES = ("characters", "words", "captions", "aspect", "side", "scores", "codes")


def _measure(table: pa.Table) -> dict[str, np.ndarray]:
    """One number a row for each of `_MEASURES`."""
    width, height = (table.column(name).to_numpy().astype(np.float64) for name in ("width", "height"))
    tokens = np.sort(_tokens(table), axis=1)
    return {
        "characters": pc.utf8_length(table.column("caption")).to_numpy(),
        "words": pc.list_value_length(pc.utf8_split_whitespace(table.column("caption"))).to_numpy(),
        "captions": 1 + pc.list_value_length(table.column("other_captions")).fill_null(0).to_numpy(),
        "aspect": width / np.maximum(height, 1),
        "side": np.minimum(width, height),
        "scores": table.column("clip_score").fill_null(float("nan")).to_numpy(),
        "codes": 1 + (np.diff(tokens.astype(np.int64), axis=1) > 0).sum(1),
    }


class _Extremes:
    """Keeps the rows to show while the sample passes by."""

    # Title, measure, and 1 for its least or -1 for its greatest values.
    KINDS = (
        ("Lowest CLIP scores", "scores", 1),
        ("Fewest different codes", "codes", 1),
        ("Shortest captions", "characters", 1),
        ("Longest captions", "characters", -1),
    )

    def __init__(self, each: int, rows: int):
        self._each, self._rows = each, rows
        self._kept: dict[str, list[tuple[float, int, Row]]] = {}
        self._count = 0

    def take(self, split: str, table: pa.Table, measured: dict[str, np.ndarray], chance: np.random.Generator) -> None:
        for title, name, sign in self.KINDS:
            self._keep(title, self._each, sign * measured[name].astype(np.float64), split, table)
        self._keep("random", self._rows, chance.random(len(table)), split, table)  # the least of even draws are any
        self._count += len(table)

    def _keep(self, title: str, count: int, ranks: np.ndarray, split: str, table: pa.Table) -> None:
        best = [number for number in np.argsort(ranks, kind="stable")[:count].tolist() if not np.isnan(ranks[number])]
        known = self._kept.get(title, [])
        new = [(ranks[number], self._count + number, _row(split, table, number)) for number in best]
        self._kept[title] = sorted(known + new, key=lambda one: one[:2])[:count]

    def random(self) -> list[Row]:
        return [row for *_, row in self._kept["random"]]

    def worst(self) -> dict[str, list[Row]]:
        kinds = {title: [row for *_, row in self._kept[title]] for title, *_ in self.KINDS}
        return {title: rows for title, rows in kinds.items() if rows}


def _row(split: str, table: pa.Table, number: int) -> Row:
    found = table.slice(number, 1).drop_columns(["tokens"]).to_pylist()[0]
    return Row(
        split,
        found["key"],
        found["crop"],
        found["caption"],
        tuple(found["other_captions"] or ()),
        _tokens(table.slice(number, 1))[0].copy(),
        found["width"],
        found["height"],
        found["clip_score"],
    )


def _tokens(table: pa.Table) -> np.ndarray:
    column = table.column("tokens").combine_chunks()
    return column.flatten().to_numpy().reshape(len(table), -1)


def _groups(folder: Path, manifest: Manifest) -> list[tuple[str, Shard, int, int]]:
    """(split, shard, row group, its rows) of all row groups, by the shards' own account."""
    groups = []
    for split, shards in manifest.splits.items():
        for shard in shards.shards:
            try:
                with open_regular(folder / shard.file) as file:
                    footer = pq.read_metadata(file)
            except unreadable(OSError) as error:
                what = "missing" if isinstance(error, FileNotFoundError) else "damaged"
                raise UserError(f"{folder / shard.file}: {what}: encode again into another folder") from None
            if footer.num_rows != shard.rows:
                raise UserError(f"{folder / shard.file}: damaged: {footer.num_rows} rows, not {shard.rows}")
            groups += [
                (split, shard, group, footer.row_group(group).num_rows) for group in range(footer.num_row_groups)
            ]
    return groups


def _read_group(path: Path, group: int, columns: pa.Schema) -> pa.Table:
    try:
        with open_regular(path) as opened:
            file = pq.ParquetFile(opened)
            check_columns(path, file.schema_arrow, columns)
            table = file.read_row_group(group, columns=columns.names)
        table.validate(full=True)  # text that is no UTF-8 too
    except unreadable(OSError) as error:
        raise UserError(f"{path}: damaged ({reason(error)}): encode again into another folder") from None
    nulls = [name for name in columns.names if name not in _MAY_BE_NULL and table[name].null_count]
    if nulls or table["tokens"].combine_chunks().flatten().null_count:
        raise UserError(f"{path}: damaged: rows without {listed(nulls or ['tokens'])}: encode again elsewhere")
    return table


def _dropped(folder: Path, shard: Shard | None) -> dict[str, list[tuple[str, str]]]:
    """The first pictures that were dropped for each reason; nothing if the folder has no list of them."""
    if shard is None or not (folder / shard.file).exists():
        return {}
    table = read_table(folder / shard.file)
    check_columns(folder / shard.file, table.schema, DROPPED_SCHEMA)
    examples: dict[str, list[tuple[str, str]]] = {}
    try:
        table.validate(full=True)
        for key, why, detail in _rows_of(table):
            some = examples.setdefault(why or "", [])
            if len(some) < EXAMPLES:
                some.append((key or "", detail or ""))
    except unreadable() as error:
        raise UserError(f"{folder / shard.file}: damaged ({reason(error)})") from None
    return examples


def _rows_of(table: pa.Table) -> Iterator[tuple[str, str, str | None]]:
    for batch in table.select(["key", "reason", "detail"]).to_batches(10_000):
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)

"""Folders of encoded pictures that no picture was encoded for."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dalle_mini.data.tokens.shards import Manifest, Shard, Split, TokensOf, schema, shard_name, write_table

VQGAN = "0123456789abcdef"
WORDS = ("a", "the", "red", "blue", "old", "tiny", "house", "cat", "river", "boat", "tree", "in", "under", "with")


def caption(number: int) -> str:
    """The row's number is read back from it; some have to be normalised."""
    words = np.random.default_rng(number).choice(WORDS, 4)
    return f"{' '.join(words)} {number}" + ("", ", Café &amp; more", "!")[number % 3]


def write_tokens(
    folder: Path,
    rows: dict[str, int] | int,
    *,
    shard_rows: int = 100,
    image_length: int = 4,
    codebook_size: int = 64,
    vqgan: str = VQGAN,
    source: str = "nowhere",
    resolution: int = 8,
    others: int = 0,
    prefix: str = "",
    tokens=None,
    captions: dict[int, str] | None = None,
    source_of_rows: dict | None = None,
    **manifest,
) -> Path:
    """An encoded folder. Row r of a split has the tokens r % codebook_size, r // codebook_size % codebook_size, ...

    `others`: row r has r % (others + 1) further captions. `tokens`: [rows, image_length], instead, of every split.
    `captions`: of some rows, instead. `manifest` replaces what the manifest would say.
    """
    folder.mkdir(parents=True, exist_ok=True)
    columns = schema(image_length, codebook_size)
    use, splits = np.zeros(codebook_size, int), {}
    for split, count in ({"train": rows} if isinstance(rows, int) else rows).items():
        shards = []
        for number, start in enumerate(range(0, count, shard_rows)):
            these = np.arange(start, min(start + shard_rows, count))
            if tokens is None:
                codes = these[:, None] // codebook_size ** np.arange(image_length) % codebook_size
            else:
                codes = np.asarray(tokens)[these]
            use += np.bincount(codes.ravel(), minlength=codebook_size)[:codebook_size]
            table = pa.table(
                {
                    "key": [f"{prefix}{split}/{row:06d}" for row in these],
                    "crop": pa.array(np.zeros(len(these)), pa.int16()),
                    "caption": [prefix + (captions or {}).get(row, caption(row)) for row in these.tolist()],
                    "other_captions": [[f"{k} of {row}" for k in range(row % (others + 1))] for row in these.tolist()],
                    "tokens": pa.FixedSizeListArray.from_arrays(
                        pa.array(codes.ravel(), columns.field("tokens").type.value_type), image_length
                    ),
                    "width": pa.array(200 + these % 100, pa.int32()),
                    "height": pa.array(150 + these % 70, pa.int32()),
                    "clip_score": pa.array((these % 7 / 10).astype(np.float32)),
                },
                schema=columns,
            )
            path = folder / shard_name(split, number)
            with path.open("wb") as file:
                write_table(table, file)
            shards.append(Shard(path.name, len(these), hashlib.sha256(path.read_bytes()).hexdigest()))
        splits[split] = Split(count, tuple(shards))
    total = sum(split.rows for split in splits.values())
    said = {
        "rows": total,
        "kept": total,
        "seen": total,
        "dropped": {},
        "crops_dropped": 0,
        "filters": (),
        "codebook_use": tuple(use.tolist()),
        "vqgan": TokensOf(vqgan, codebook_size, image_length, resolution, source),
        "clip": None,
        "source": source_of_rows or {},
        "options": {},
        "splits": splits,
    }
    (folder / "manifest.json").write_text(Manifest(**said | manifest).to_json())
    return folder


def write_notebook(folder: Path, rows: int, *, files: int = 2, image_length: int = 4, codebook_size: int = 64) -> Path:
    """Shards of the original's notebook: 001.parquet ... of `caption` and `encoding`, a list of 64-bit numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, these in enumerate(np.array_split(np.arange(rows), files), 1):
        codes = these[:, None] // codebook_size ** np.arange(image_length) % codebook_size
        table = pa.table({"caption": [caption(row) for row in these], "encoding": codes.tolist()})
        pq.write_table(table, folder / f"{number:03d}.parquet")
    return folder

"""Folders of encoded pictures: Parquet shards, and a manifest that says what they are.

    OUT/train-00000.parquet ...  OUT/validation-00000.parquet ...
    OUT/dropped.parquet          what is not in them: key, reason, detail
    OUT/manifest.json            written last: a folder without it is not finished

`datasets.load_dataset(OUT)` reads them too. A row is one crop of one picture:

| column | type | |
|---|---|---|
| key | string | the picture's name within its source; crops of one picture share it |
| crop | int16 | number of the crop, from 0 |
| caption | string | cleaned, not normalised |
| other_captions | list of string | further captions of the picture; may be empty |
| tokens | fixed-size list of uint16 (int32 where the codebook has more than 65,536 codes) | row-major |
| width, height | int32 | of the picture before it was resized, pixels |
| clip_score | float32 | CLIP's cosine of picture and caption, null where it was not asked for |
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Self

import pyarrow as pa
import pyarrow.parquet as pq

from dalle_mini.errors import UserError
from dalle_mini.runtime.files import open_regular

MANIFEST = "manifest.json"
DROPPED = "dropped.parquet"
SPLITS = ("train", "validation")
FORMAT = 1
ROW_GROUP = 8192  # rows: what a reader takes into memory at a time

DROPPED_SCHEMA = pa.schema([("key", pa.string()), ("reason", pa.string()), ("detail", pa.string())])


def schema(image_length: int, codebook_size: int) -> pa.Schema:
    """The columns of a shard whose pictures have `image_length` tokens out of `codebook_size`."""
    token = pa.uint16() if codebook_size <= 2**16 else pa.int32()
    return pa.schema(
        [
            ("key", pa.string()),
            ("crop", pa.int16()),
            ("caption", pa.string()),
            ("other_captions", pa.list_(pa.string())),
            ("tokens", pa.list_(token, image_length)),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("clip_score", pa.float32()),
        ]
    )


def shard_name(split: str, number: int) -> str:
    return f"{split}-{number:05d}.parquet"


@dataclass(frozen=True)
class Shard:
    """One Parquet file: its name in the folder, its rows, and the SHA-256 of its bytes in hexadecimal.

    Raises ValueError where the name is none of a file in the folder: manifests come from strangers.
    """

    file: str
    rows: int
    sha256: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w-][\w.-]*\.parquet", str(self.file), re.ASCII):
            raise ValueError(f"{str(self.file)!r:.60} is no shard's name")


@dataclass(frozen=True)
class Split:
    rows: int
    shards: tuple[Shard, ...]


@dataclass(frozen=True)
class TokensOf:
    """The VQGAN that made the tokens.

    Attributes:
        identity: a hash of what decides which token a picture gets (`encode.identity`).
        codebook_size: its number of codes.
        image_length: tokens of a picture.
        resolution: pixels of a picture's side, as the VQGAN sees it.
        source: what the user called it: a folder, or a repository of the Hub. It may lie elsewhere by now.
    """

    identity: str
    codebook_size: int
    image_length: int
    resolution: int
    source: str


@dataclass(frozen=True)
class FilterCount:
    """How many pictures came to a filter and passed, and how many it dropped."""

    name: str
    kept: int
    dropped: int


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says. Pictures seen = pictures kept + the sum of `dropped`, always.

    Attributes:
        rows: of all shards. A row is a crop: with one crop a picture, as many as `kept`.
        kept: pictures with at least one row.
        seen: pictures that the source gave, readable or not.
        dropped: pictures without a row, by reason.
        crops_dropped: crops that CLIP's score dropped from pictures of which others stayed.
        filters: what each filter did, in the order in which they were asked. The first to say no is the reason.
        codebook_use: how often each code occurs in the rows, int [codebook_size].
        vqgan: whose tokens they are.
        clip: `identity` and `source` of the CLIP that gave the scores, if any did.
        source: what tells the pile of pictures from another (`Source.origin`).
        options: all that was chosen and decides what is in the shards.
        splits: by name, "train" and "validation".
        dropped_rows: the file of what was dropped.
        format: of the folder.
    """

    rows: int
    kept: int
    seen: int
    dropped: dict[str, int]
    crops_dropped: int
    filters: tuple[FilterCount, ...]
    codebook_use: tuple[int, ...]
    vqgan: TokensOf
    clip: dict[str, str] | None
    source: dict[str, Any]
    options: dict[str, Any]
    splits: dict[str, Split]
    dropped_rows: Shard | None = None
    format: int = field(default=FORMAT)

    def to_json(self) -> str:
        lines = json.dumps(dataclasses.asdict(self) | {"codebook_use": None}, indent=2, ensure_ascii=False)
        codes = json.dumps(list(self.codebook_use), separators=(",", ":"))  # one line, not thousands
        return lines.replace('"codebook_use": null', f'"codebook_use": {codes}', 1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Raises ValueError, KeyError or TypeError where the text is no manifest."""
        found = json.loads(text)
        if not isinstance(found, dict):
            raise TypeError("not a JSON object")
        if found.get("format") != FORMAT:
            raise ValueError(f"format is {found.get('format')!r:.40}, this version reads {FORMAT}")
        found["filters"] = tuple(FilterCount(**count) for count in found["filters"])
        found["codebook_use"] = tuple(found["codebook_use"])
        found["vqgan"] = TokensOf(**found["vqgan"])
        found["splits"] = {name: _split(split) for name, split in found["splits"].items()}
        found["dropped_rows"] = found["dropped_rows"] and Shard(**found["dropped_rows"])
        return cls(**found)

    @classmethod
    def read(cls, folder: str | Path) -> Self:
        """The manifest of a local folder. Raises UserError where there is none, or a damaged one."""
        path = Path(folder) / MANIFEST
        try:
            return cls.from_json(path.read_bytes())
        except FileNotFoundError:
            raise UserError(
                f"{folder}: no {MANIFEST}, so no encoded pictures: run dalle-mini encode SOURCE {folder}, "
                "or the same command again if it was interrupted"
            ) from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: damaged, or of another version ({error}): encode again") from None


def _split(found: dict) -> Split:
    return Split(found["rows"], tuple(Shard(**shard) for shard in found["shards"]))


def write_table(table: pa.Table, file: BinaryIO) -> None:
    """One shard's rows as Parquet: the same bytes for the same rows, however they came together."""
    plain = [name for name in table.column_names if name not in ("reason", "crop")]
    pq.write_table(
        table.combine_chunks(),
        file,
        row_group_size=ROW_GROUP,
        compression="zstd",
        use_dictionary=[name for name in table.column_names if name not in plain],
    )


def read_table(path: str | Path, columns: list[str] | None = None) -> pa.Table:
    """A shard's rows, all columns by default. Raises UserError where the file is missing or damaged."""
    try:
        with open_regular(path) as file:
            return pq.read_table(file, columns=columns, partitioning=None)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: encode again into another folder") from None
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: damaged ({str(error).splitlines()[0]}): encode again into another folder") from None

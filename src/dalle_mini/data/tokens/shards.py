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

import dataclasses
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Self

import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import Meta

from dalle_mini.errors import UserError
from dalle_mini.runtime import files
from dalle_mini.runtime.arrow import unreadable
from dalle_mini.runtime.files import open_regular
from dalle_mini.runtime.limits import limits
from dalle_mini.runtime.parsing import ParseError, convert, parse_json

MANIFEST = "manifest.json"
DROPPED = "dropped.parquet"
SPLITS = ("train", "validation")
FORMAT = 1
ROW_GROUP = 8192  # rows: what a reader takes into memory at a time

Count = Annotated[int, Meta(ge=0, le=2**53)]
_FILE = re.compile(r"[\w-][\w.-]*\.parquet", re.ASCII)  # in the folder itself

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

    Raises:
        ValueError: the name is none of a file in the folder: manifests come from strangers.
    """

    file: str
    rows: Count
    sha256: str

    def __post_init__(self) -> None:
        if not _FILE.fullmatch(self.file):
            raise ValueError(f"{self.file!r:.60} is no shard's name")


@dataclass(frozen=True)
class Split:
    rows: Count
    shards: tuple[Shard, ...]

    def __post_init__(self) -> None:
        if self.rows != sum(shard.rows for shard in self.shards):
            raise ValueError("rows are not those of the shards together")


@dataclass(frozen=True)
class TokensOf:
    """The VQGAN that made the tokens.

    Attributes:
        identity: its fingerprint (`models/fingerprint.py`).
        codebook_size: its number of codes.
        image_length: tokens of a picture.
        resolution: pixels of a picture's side, as the VQGAN sees it.
        source: what the user called it: a folder, or a repository of the Hub. It may lie elsewhere by now.
    """

    identity: str
    codebook_size: Annotated[int, Meta(ge=1, le=2**31 - 1)]
    image_length: Annotated[int, Meta(ge=1, le=2**20)]
    resolution: Annotated[int, Meta(ge=1, le=2**16)]
    source: str


@dataclass(frozen=True)
class FilterCount:
    """How many pictures came to a filter and passed, and how many it dropped."""

    name: str
    kept: Count
    dropped: Count


@dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json`. Pictures seen = pictures kept + the sum of `dropped`, always.

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
        source: what tells the dataset of pictures from another (`Source.origin`).
        options: all that was chosen and decides what is in the shards.
        splits: by name, "train" and "validation".
        dropped_rows: the file of what was dropped.
        format: of the folder.
    """

    rows: Count
    kept: Count
    seen: Count
    dropped: dict[str, Count]
    crops_dropped: Count
    filters: tuple[FilterCount, ...]
    codebook_use: tuple[Count, ...]
    vqgan: TokensOf
    clip: dict[str, str] | None
    source: dict[str, Any]
    options: dict[str, Any]
    splits: dict[str, Split]
    dropped_rows: Shard | None = None
    format: int = field(default=FORMAT)

    def __post_init__(self) -> None:
        if self.rows != sum(split.rows for split in self.splits.values()):
            raise ValueError("rows are not those of the splits together")
        if len(self.codebook_use) != self.vqgan.codebook_size:
            raise ValueError(f"codebook_use tells of {len(self.codebook_use)} codes of {self.vqgan.codebook_size}")
        if self.clip is not None and "identity" not in self.clip:
            raise ValueError("clip has no identity")

    def to_json(self) -> str:
        lines = json.dumps(dataclasses.asdict(self) | {"codebook_use": None}, indent=2, ensure_ascii=False)
        codes = json.dumps(list(self.codebook_use), separators=(",", ":"))  # one line, not thousands
        return lines.replace('"codebook_use": null', f'"codebook_use": {codes}', 1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Raises ParseError where the text is no manifest, naming the field."""
        found = parse_json(text)
        if isinstance(found, dict) and found.get("format") != FORMAT:
            raise ParseError(f"format is {found.get('format')!r:.40}, this version reads {FORMAT}")
        return convert(found, cls)

    @classmethod
    def read(cls, folder: str | Path) -> Self:
        """The manifest of a local folder. Raises UserError where there is none, or a damaged one."""
        path = Path(folder) / MANIFEST
        try:
            return cls.from_json(files.read_bytes(path, limits().json_bytes))
        except FileNotFoundError:
            raise UserError(
                f"{folder}: no {MANIFEST}, so no encoded images: if they are raw, encode them into another folder "
                f"(dalle-mini encode {folder} OUT) and name that one; if an encode was interrupted, run it again"
            ) from None
        except (OSError, ParseError) as error:
            raise UserError(f"{path}: damaged, or of another version ({files.reason(error)}): encode again") from None


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


def check_columns(path: Path, found: pa.Schema, wanted: pa.Schema) -> None:
    """Raises UserError where a shard lacks a column, has one of another type, or has it twice."""
    for column in wanted:
        kinds = [field.type for field in found if field.name == column.name]
        if kinds != [column.type]:
            kind = " and ".join(map(str, kinds)) or "missing"
            raise UserError(f"{path}: damaged: the column {column.name} is {kind}, not {column.type}")


def read_table(path: str | Path, columns: list[str] | None = None) -> pa.Table:
    """A shard's rows, all columns by default. Raises UserError where the file is missing or damaged."""
    try:
        with open_regular(path) as file:
            return pq.read_table(file, columns=columns, partitioning=None)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: encode again into another folder") from None
    except unreadable(OSError) as error:
        raise UserError(f"{path}: damaged ({files.reason(error)}): encode again into another folder") from None

"""Encoded shards -> rows, in any order and without holding them in memory.

`datasets` turns the Parquet shards into Arrow files in its cache, once, and maps those into memory: opening them again
takes no longer than opening files, and the operating system keeps and drops their pages as it sees fit. Rows are picked
from the mapped columns here, ten times faster than by `Dataset.__getitem__`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from dalle_mini.data.sources.captions import read_text
from dalle_mini.data.tokens.arrow_cache import ShardFile, bounds, footer, map_shards
from dalle_mini.data.tokens.shards import MANIFEST, SPLITS, Manifest, schema
from dalle_mini.errors import UserError
from dalle_mini.runtime.arrow import value_of
from dalle_mini.runtime.files import as_utf8
from dalle_mini.runtime.hashing import short_hash
from dalle_mini.runtime.paths import no_folder

if TYPE_CHECKING:
    from dalle_mini.models.image_tokenizer import ImageTokenizer

ORIGINAL_CODES = 16_384  # of the VQGAN of the original
_FINGERPRINT = re.compile(r"[0-9a-f]{16}")


class TokenDataset:
    """The rows of one split: captions, and the VQGAN tokens of their pictures.

    Args:
        source: a folder that `dalle-mini encode` wrote; a data set repository of the Hub (`owner/name`) that holds
            such files; or either of these with Parquet files as the original's notebook made them: columns `caption`
            and `encoding`, in folders `train` and `validation`, or all in one, which is `train`.
        split: "train" or "validation".
        vqgan: the VQGAN whose tokens they are: a folder, a repository, a loaded one, or its fingerprint. It must be
            named for files of the original's notebook, which do not tell; a fingerprint alone stands for a codebook of
            16,384 codes, as the original's. For all other files it is a check.
        revision, token, cache_dir, local_files_only: of a repository, as of `weights.hub.repository.resolve`.

    Attributes:
        folder: where the shards are; what errors call the data set.
        vqgan: fingerprint of the VQGAN whose tokens they are.
        codebook_size: its number of codes.
        image_length: tokens of a picture.
        manifest: what `encode` wrote; None for the original's.
        digest: a short hash that tells these rows from others, wherever they lie.

    Raises:
        UserError: the manifest is missing or damaged, shards are missing or damaged (their SHA-256 is compared when
            they are first mapped), there are no rows, or they are tokens of another VQGAN.
    """

    def __init__(
        self,
        source: str | Path,
        split: str = "train",
        *,
        vqgan: str | Path | ImageTokenizer | None = None,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ):
        if split not in SPLITS:
            raise UserError(f"split {split!r}: it is one of {', '.join(SPLITS)}")
        hub = {"revision": revision, "token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
        self.folder, self.split = _folder(source, split, hub), split
        self._renamed: dict[str, str] = {}
        self.manifest: Manifest | None = None
        if (self.folder / MANIFEST).exists() or not (paths := _notebook_shards(self.folder, split)):
            shards, columns = self._ours(vqgan)
        else:
            shards, columns = self._notebooks(vqgan, paths)
        sums = [f"{shard.path.name} {shard.rows} {shard.sha256}" for shard in shards]
        self.digest = short_hash(as_utf8("\n".join([self.vqgan, *sums])))
        if not sum(shard.rows for shard in shards):
            raise UserError(f"{self.folder}: no {split} rows: there is nothing to read")
        batches, self._pages = map_shards(self.folder, shards, columns)
        self._starts = np.cumsum([0, *(batch.num_rows for batch in batches)])
        self._columns: dict[str, list] = {}
        for name in columns.names:
            arrays = [batch.column(name) for batch in batches]
            name = self._renamed.get(name, name)
            self._columns[name] = [self._view(array) for array in arrays] if name == "tokens" else arrays

    def __len__(self) -> int:
        return int(self._starts[-1])

    def rows(
        self, indices: Sequence[int] | np.ndarray, columns: Sequence[str] = ("caption", "other_captions", "tokens")
    ) -> dict[str, Any]:
        """Some columns of some rows, in the order of `indices`.

        Returns:
            by column: `tokens` as an array [n, image_length] (uint16; int32 where the codebook has more than 65,536
            codes), any other as a list of n. A column that the shards lack is None in every row.
        Raises:
            UserError: a token is beyond the codebook: these are not tokens of this VQGAN.
            IndexError: there is no such row.
        """
        indices = np.asarray(indices, np.int64)
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"{self.folder}: rows {indices.min()} to {indices.max()} of {len(self)}")
        chunks = np.searchsorted(self._starts, indices, side="right") - 1
        places = list(zip(chunks.tolist(), (indices - self._starts[chunks]).tolist(), strict=True))
        found: dict[str, Any] = {}
        for name in columns:
            column = self._columns.get(name)
            if column is None:
                found[name] = [None] * len(indices)
            elif name == "tokens":
                found[name] = self._tokens(indices, places)
            else:
                try:
                    found[name] = [column[chunk][row].as_py() for chunk, row in places]
                except ValueError:  # a caption that is not UTF-8
                    found[name] = [value_of(column[chunk][row], read_text) for chunk, row in places]
        self._pages.looked_at(len(indices))
        return found

    def name(self, index: int) -> str:
        """The name of a row: the image's key, and its crop where that is not the first."""
        found = self.rows([index], ("key", "crop"))
        key, crop = found["key"][0], found["crop"][0]
        return f"row {index}" if key is None else f"{key} (crop {crop})" if crop else key

    def _tokens(self, indices: np.ndarray, places: list[tuple[int, int]]) -> np.ndarray:
        column = self._columns["tokens"]
        tokens = np.empty((len(places), self.image_length), column[0].dtype)
        for place, (chunk, row) in enumerate(places):
            tokens[place] = column[chunk][row]
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < self.codebook_size:
            wrong = np.flatnonzero(((tokens < 0) | (tokens >= self.codebook_size)).any(1))[0]
            raise UserError(
                f"{self.folder}: {self.name(int(indices[wrong]))} has the token {tokens[wrong].max()}, and VQGAN "
                f"{self.vqgan} has {self.codebook_size} codes: these are another one's tokens, or damaged"
            )
        return tokens

    def _ours(self, vqgan: str | Path | ImageTokenizer | None) -> tuple[list[ShardFile], pa.Schema]:
        """A folder that `encode` wrote: its manifest says what it is."""
        self.manifest = manifest = Manifest.read(self.folder)
        of = manifest.vqgan
        self.vqgan, self.codebook_size, self.image_length = of.identity, of.codebook_size, of.image_length
        if vqgan is not None and (named := known_vqgan(vqgan)[0]) != self.vqgan:
            raise UserError(
                f"{self.folder}: tokens of another VQGAN ({self.vqgan}, {of.source}) than the one named ({named}): "
                "name theirs, or encode again"
            )
        split = manifest.splits.get(self.split)
        shards = [ShardFile(self.folder / one.file, one.rows, one.sha256) for one in split.shards] if split else []
        return shards, schema(self.image_length, self.codebook_size)

    def _notebooks(
        self, vqgan: str | Path | ImageTokenizer | None, paths: list[Path]
    ) -> tuple[list[ShardFile], pa.Schema]:
        """The shards of the original's notebook: columns `caption` and `encoding`, and not a word of the VQGAN."""
        footers = [footer(path) for path in paths]
        first = next((shard for shard in footers if shard.rows), None)
        if first is None:
            raise UserError(f"{self.folder}: no {self.split} rows: there is nothing to read")
        if vqgan is None:
            raise UserError(
                f"{self.folder}: no {MANIFEST}, so whose tokens these are is not known: name their VQGAN "
                "(data.vqgan of a run, vqgan= in Python), its folder, its repository or its fingerprint"
            )
        self.vqgan, self.codebook_size = known_vqgan(vqgan)
        self.image_length = first.list_length("encoding")
        for path in paths:
            lowest, highest = bounds(path, "encoding")
            if not 0 <= lowest <= highest < self.codebook_size:
                raise UserError(
                    f"{path}: it has the token {highest if highest >= self.codebook_size else lowest}, and VQGAN "
                    f"{self.vqgan} has {self.codebook_size} codes: these are another one's tokens, or damaged"
                )
        self._renamed = {"encoding": "tokens"}
        ours = schema(self.image_length, self.codebook_size)
        return footers, pa.schema([ours.field("caption"), ours.field("tokens").with_name("encoding")])

    def _view(self, tokens: pa.FixedSizeListArray) -> np.ndarray:
        """A mapped column's tokens as an array that reads them where they lie."""
        if tokens.null_count or tokens.values.null_count:
            raise UserError(f"{self.folder}: rows without tokens: the shards are damaged; encode again")
        return tokens.flatten().to_numpy().reshape(-1, self.image_length)


def known_vqgan(vqgan: str | Path | ImageTokenizer) -> tuple[str, int]:
    """(fingerprint, number of codes) of a VQGAN: a loaded one, a folder, a repository of the Hub, or a fingerprint."""
    if isinstance(vqgan, str) and _FINGERPRINT.fullmatch(vqgan):
        return vqgan, ORIGINAL_CODES
    from dalle_mini.models.fingerprint import fingerprint
    from dalle_mini.models.image_tokenizer import load_image_tokenizer
    from dalle_mini.weights.bundle import find_part

    model = load_image_tokenizer(find_part("vqgan", vqgan)) if isinstance(vqgan, str | Path) else vqgan
    return fingerprint(model), model.codebook_size


def _folder(source: str | Path, split: str, hub: dict[str, Any]) -> Path:
    """A local folder with the split's files, which come from the Hub where the source is not here."""
    path = Path(source).expanduser()
    if path.exists():
        return path
    if isinstance(source, Path) or not re.fullmatch(r"[\w.-]+/[\w.-]+", source) or source.startswith("."):
        raise UserError(f"{no_folder(source)} (a data set of the Hub is written owner/name)")
    from dalle_mini.data.tokens.fetch_hub import fetch_dataset

    try:
        return fetch_dataset(source, split, **hub)
    except UserError as error:
        raise UserError(f"{no_folder(source)}; nor, as a data set of the Hub: {error}") from None


def _notebook_shards(folder: Path, split: str) -> list[Path]:
    """The Parquet files of a split of the original's, whose columns tell them; none where it has none."""
    inside = folder / split
    paths = sorted(inside.glob("*.parquet")) if inside.is_dir() else []
    if not paths and split == "train":
        paths = sorted(folder.glob("*.parquet"))
    return paths if paths and {"caption", "encoding"} <= set(footer(paths[0]).columns) else []

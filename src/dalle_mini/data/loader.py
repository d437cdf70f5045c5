"""Encoded shards -> arrays to train on."""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path

import numpy as np

from dalle_mini.errors import UserError


class TokenDataset:
    """All shards of a folder that `encode` wrote.

    Attributes:
      tokens: uint16 [n, image_length].
      captions: n strings.
      vqgan: identity of the VQGAN whose tokens they are.
      codebook_size: its number of codes.
    Raises UserError where the folder is incomplete or a shard is damaged.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        try:
            manifest = json.loads((self.folder / "manifest.json").read_text())
            self.vqgan, self.codebook_size, rows = (manifest[key] for key in ("vqgan", "codebook_size", "rows"))
        except FileNotFoundError:
            raise UserError(f"{self.folder}: no manifest.json, so no encoded tokens: encode pictures first") from None
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.folder / 'manifest.json'}: damaged ({error})") from None
        tokens, captions = [], []
        for path in sorted(self.folder.glob("*.npz")):
            try:
                with np.load(path, allow_pickle=False) as shard:
                    tokens.append(shard["tokens"])
                    captions.extend(shard["captions"].tolist())
            except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
                raise UserError(f"{path}: damaged ({error}); delete it and encode again") from None
        if len(captions) != rows:
            raise UserError(f"{self.folder}: {len(captions)} of {rows} rows are there: encode again to finish it")
        self.tokens, self.captions = np.concatenate(tokens), captions

    def __len__(self) -> int:
        return len(self.captions)

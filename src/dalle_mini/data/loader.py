"""Encoded shards -> arrays to train on."""

from __future__ import annotations

import hashlib
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


class TokenBatches:
    """Tokenised batches of a `TokenDataset`: what a seq2seq run trains on."""

    def __init__(self, dataset, tokenizer, normalizer, *, text_length, batch_size, seed=0, caption_dropout=0.0):
        normalize = normalizer or (lambda caption: caption)
        self.vqgan, self.codebook_size = dataset.vqgan, dataset.codebook_size
        self.image_length = dataset.tokens.shape[1]
        self.batch_size, self.seed, self.caption_dropout = batch_size, seed, caption_dropout
        ids, mask = tokenizer([normalize(caption) for caption in dataset.captions], max_length=text_length)
        self.table = {"input_ids": ids, "attention_mask": mask, "labels": dataset.tokens.astype(np.int32)}
        blank_ids, blank_mask = tokenizer([""], max_length=text_length)
        self.blank = {"input_ids": blank_ids, "attention_mask": blank_mask}

    def at(self, step: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng((self.seed, step))
        rows = rng.integers(0, len(self.table["labels"]), self.batch_size)
        batch = {name: array[rows] for name, array in self.table.items()}
        blank = rng.random(self.batch_size)[:, None] < self.caption_dropout
        return batch | {name: np.where(blank, row, batch[name]) for name, row in self.blank.items()}

    def evaluation(self, batch_size: int):
        count = len(self.table["labels"])
        for start in range(0, count, batch_size):
            rows = np.arange(start, start + batch_size)
            batch = {name: array[np.minimum(rows, count - 1)] for name, array in self.table.items()}
            yield {**batch, "mask": (rows < count).astype(np.float32)}

    def origin(self) -> dict[str, str]:
        hashes = {name: hashlib.sha256(array.tobytes()).hexdigest()[:16] for name, array in self.table.items()}
        return {"captions": hashes["input_ids"], "tokens": hashes["labels"]}

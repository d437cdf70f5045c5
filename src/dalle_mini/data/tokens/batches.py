"""Rows -> the batches of a run, as arrays of fixed shapes.

The batch of a step is a function of (seed, step, global batch size). Each process makes its own rows of it, a
contiguous part, so that 1, 2 or 8 of them make the same global batch; a run resumes at any step, for there is nothing
to restore.

Step s holds the positions from `s * batch_size` on of an endless order (`mixture.py`). An epoch's last batch that does
not come out even is filled with the first rows of the next epoch: no row is left out, and none is repeated to fill up.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dalle_mini.data.tokens.dataset import TokenDataset
from dalle_mini.data.tokens.mixture import Mixture
from dalle_mini.errors import UserError, listed
from dalle_mini.text import CaptionNormalizer, CaptionTokenizer

_DROPOUT, _CAPTION = range(2)  # streams of chance, apart from the shuffle's


class TokenBatches:
    """Batches of tokenised captions and image tokens.

    Args:
        datasets: one data set or several, of one VQGAN.
        tokenizer: as of the model.
        normalizer: of the captions; None leaves them as they are.
        batch_size: pictures of a step over all processes.
        seed: of the shuffle, of dropped captions and of which caption is taken.
        text_length: tokens of a caption, padded.
        caption_dropout: the share of captions that are replaced by the empty one, after normalisation, so that the
            model also learns the unconditional distribution that guidance pushes away from.
        weights: how often a row comes from each data set; None mixes all rows evenly (`Mixture`).
        process_index, process_count: which part of each batch this process makes; jax's own by default. Where several
            processes hold the same rows (a model that is split between them) it is the index of their data shard.

    Attributes:
        vqgan, codebook_size, image_length: of the tokens.
        size: rows of all data sets, which is an epoch where there are no weights.

    Raises:
        UserError: the data sets do not go together or the batch does not divide.
    """

    def __init__(
        self,
        datasets: TokenDataset | Sequence[TokenDataset],
        tokenizer: CaptionTokenizer,
        normalizer: CaptionNormalizer | None,
        *,
        batch_size: int,
        seed: int,
        text_length: int,
        caption_dropout: float = 0.0,
        weights: Sequence[float] | None = None,
        process_index: int | None = None,
        process_count: int | None = None,
    ):
        self.datasets = (datasets,) if isinstance(datasets, TokenDataset) else tuple(datasets)
        check_compatible(self.datasets)
        if process_index is None or process_count is None:
            import jax

            process_index = jax.process_index() if process_index is None else process_index
            process_count = jax.process_count() if process_count is None else process_count
        if batch_size < 1 or batch_size % process_count:
            raise UserError(f"batch_size {batch_size}: it must be a multiple of the {process_count} processes")
        if not 0 <= caption_dropout <= 1:
            raise UserError(f"caption_dropout {caption_dropout}: a share from 0 to 1")
        if not 0 <= seed < 2**63:
            raise UserError(f"seed {seed}: a whole number from 0 up")
        first = self.datasets[0]
        self.vqgan, self.codebook_size, self.image_length = first.vqgan, first.codebook_size, first.image_length
        self.batch_size, self.seed, self.caption_dropout = batch_size, seed, caption_dropout
        self.weights = None if weights is None else tuple(weights)
        self.tokenizer, self.normalizer, self.text_length = tokenizer, normalizer, text_length
        self._share = batch_size // process_count
        self._process, self._processes = process_index, process_count
        sizes = [len(data) for data in self.datasets]
        self._ends, self.size = np.cumsum(sizes), sum(sizes)
        self._order = Mixture(sizes, seed, weights)

    def at(self, step: int) -> dict[str, np.ndarray]:
        """This process's rows of a step's batch.

        Returns:
            input_ids, attention_mask: int32 [b, text_length].
            labels: uint16 [b, image_length] (int32 where the codebook has more than 65,536 codes).
            b is batch_size / process_count.
        """
        start = step * self.batch_size + self._process * self._share
        found = self._read(self._order.rows(start, self._share))
        which = self._chance(_CAPTION, start)
        captions = [
            own if not others else [own, *others][int(draw * (1 + len(others)))]
            for own, others, draw in zip(found["caption"], found["other_captions"], which.tolist(), strict=True)
        ]
        blank = self._chance(_DROPOUT, start) < self.caption_dropout
        return self._text(captions, blank) | {"labels": found["tokens"]}

    def rows(self, step: int) -> list[str]:
        """The names of the images of a step's global batch, in their order: they are told when the batch is bad."""
        rows = self._order.rows(step * self.batch_size, self.batch_size)
        return [f"{self.datasets[which].folder}: {self.datasets[which].name(row)}" for which, row in self._where(rows)]

    def epoch(self, step: int) -> float:
        """How many epochs have gone by before a step; with weights, of as many rows as there are."""
        return step * self.batch_size / self.size

    def evaluation(self, batch_size: int) -> Evaluation:
        """Every row once, in batches of one size over all processes.

        Raises:
            UserError: the batch does not divide between them.
        """
        if batch_size < 1 or batch_size % self._processes:
            raise UserError(f"evaluation: batch_size {batch_size} is no multiple of the {self._processes} processes")
        return Evaluation(self, batch_size)

    def origin(self) -> dict[str, Any]:
        """Flat JSON that tells these batches from others, to be kept with the run that they train."""
        datasets = {
            f"data_{number}": f"{data.digest} ({len(data):,} rows)" for number, data in enumerate(self.datasets)
        }
        return datasets | {
            "vqgan": self.vqgan,
            "weights": None if self.weights is None else " ".join(map(str, self.weights)),
            "caption_dropout": self.caption_dropout,
            "text_length": self.text_length,
            "tokenizer": self.tokenizer.digest,
            "normalizer": None if self.normalizer is None else self.normalizer.digest,
        }

    def _chance(self, stream: int, start: int) -> np.ndarray:
        """A number in [0, 1) for each of this process's positions: draw p of a stream is the same whoever asks."""
        generator = np.random.PCG64(np.random.SeedSequence(self.seed, spawn_key=(stream,)))
        return np.random.Generator(generator.advance(start)).random(self._share)

    def _where(self, rows: np.ndarray) -> list[tuple[int, int]]:
        """(data set, row of it) of each row of all."""
        which = np.searchsorted(self._ends, rows, side="right")
        starts = np.concatenate([[0], self._ends])[which]
        return list(zip(which.tolist(), (rows - starts).tolist(), strict=True))

    def _read(self, rows: np.ndarray) -> dict[str, Any]:
        if len(self.datasets) == 1:
            return self.datasets[0].rows(rows)
        which = np.searchsorted(self._ends, rows, side="right")
        found: dict[str, Any] = {"caption": [None] * len(rows), "other_captions": [None] * len(rows)}
        for number, data in enumerate(self.datasets):
            places = np.flatnonzero(which == number)
            if len(places):
                part = data.rows(rows[places] - (self._ends[number] - len(data)))
                tokens = found.setdefault("tokens", np.empty((len(rows), self.image_length), part["tokens"].dtype))
                tokens[places] = part["tokens"]
                for name in ("caption", "other_captions"):
                    for place, value in zip(places.tolist(), part[name], strict=True):
                        found[name][place] = value
        return found

    def _text(self, captions: Sequence[str | None], blank: np.ndarray) -> dict[str, np.ndarray]:
        normalize = self.normalizer or (lambda caption: caption)
        texts = [
            "" if empty else normalize(caption or "") for caption, empty in zip(captions, blank.tolist(), strict=True)
        ]
        input_ids, attention_mask = self.tokenizer(texts, max_length=self.text_length)
        return {"input_ids": input_ids, "attention_mask": attention_mask}


@dataclass(frozen=True)
class Evaluation:
    """Batches that hold every row once, in order, each picture with its first caption.

    Iterating gives what `TokenBatches.at` does, and `label_mask`, float32 [b]: 0 for the rows that fill up the last
    batch (row 0 again), 1 for all others. Every process gets its part of as many batches, the last perhaps all masked.
    """

    batches: TokenBatches
    batch_size: int

    def __len__(self) -> int:
        return math.ceil(self.batches.size / self.batch_size)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return map(self.at, range(len(self)))

    def at(self, number: int) -> dict[str, np.ndarray]:
        share = self.batch_size // self.batches._processes
        positions = number * self.batch_size + self.batches._process * share + np.arange(share)
        mask = positions < self.batches.size
        found = self.batches._read(np.where(mask, positions, 0))
        text = self.batches._text(found["caption"], np.zeros(share, bool))
        return text | {"labels": found["tokens"], "label_mask": mask.astype(np.float32)}


def check_compatible(datasets: Sequence[TokenDataset]) -> None:
    """Raises UserError where data sets cannot be trained on together, or there is none."""
    if not datasets:
        raise UserError("no data set given: name at least one")
    first = datasets[0]
    others = [data for data in datasets if data.vqgan != first.vqgan]
    if others:
        raise UserError(
            f"{listed(str(data.folder) for data in others)}: tokens of another VQGAN ({others[0].vqgan}) than those of "
            f"{first.folder} ({first.vqgan}): encode all with the same one"
        )
    for data in datasets:
        for name in ("codebook_size", "image_length"):
            if getattr(data, name) != getattr(first, name):
                raise UserError(
                    f"{data.folder}: its {name} is {getattr(data, name)}, that of {first.folder} {getattr(first, name)}"
                )

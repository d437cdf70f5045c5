"""Captioned images to learn from as pixels, for VQGAN and CLIP: a user's datasets, and emoji that are drawn.

A source is map-style, so that the batch of a step is a function of the seed and the step alone.
"""

import dataclasses
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dalle_mini.addresses import without_secrets
from dalle_mini.data.images.packed import SPLITS, PackedImages, Packing, pack
from dalle_mini.emoji.drawn import DRAWN_NAMES, DrawnEmoji, EmojiOptions
from dalle_mini.errors import UserError, shown
from dalle_mini.runtime.hashing import short_hash
from dalle_mini.runtime.paths import path_setting, source_setting
from dalle_mini.settings import LARGEST

MIXED = 10_000_000  # images of sources that are mixed by weights: enough never to come round again


class ImageSource(Protocol):
    """A map-style source of captioned images of one size."""

    def __len__(self) -> int: ...

    def batch(self, indices: Iterable[int]) -> tuple[np.ndarray, list[str]]:
        """Images uint8 [n, size, size, 3], and each one's first caption, in the order of `indices`."""

    def captions(self, index: int) -> list[str]:
        """All captions of an image."""

    def origin(self) -> dict[str, Any]:
        """JSON that tells this source from others."""


@dataclass(frozen=True)
class DatasetOptions:
    """Which datasets a run learns from, and how they are mixed, divided, filtered and kept.

    Attributes:
        train: datasets, as `dalle-mini encode` reads them (docs/data.md): folders, tars, Parquet files, data sets. Or
            "emoji", single emoji on plain backgrounds, and "emoji-scenes", up to three on any background.
        weights: in which proportions they are mixed; None is by their sizes.
        validation: datasets for evaluation; None holds images of `train` out of training.
        held_out: the share that is held out then, by a hash of their names; emoji have held-out pairs of their own.
        min_side, max_aspect: images of shorter sides, pixels, or a larger ratio of sides are dropped; null: none.
        cache: where packed images are kept, for several runs; None is the run's folder.

    Raises:
        UserError: a value makes no sense.
    """

    train: tuple[str, ...] = source_setting((), names=DRAWN_NAMES)
    weights: tuple[float, ...] | None = None
    validation: tuple[str, ...] | None = source_setting(names=DRAWN_NAMES)
    held_out: float = 0.05
    min_side: int | None = 64
    max_aspect: float | None = 2.0
    cache: str | None = path_setting()

    def __post_init__(self):
        for name, least, most in (("min_side", 0, 1 << 20), ("max_aspect", 1, LARGEST)):
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise UserError(f"data.{name}: {shown(value)} is not a number from {least} to {most:.10g}")
        if not all(weight <= LARGEST for weight in self.weights or ()):
            raise UserError(f"data.weights: a weight may be at most {LARGEST:.10g}")
        if not 0 < self.held_out < 1:
            raise UserError(f"data.held_out: {self.held_out} is not a share, more than 0 and less than 1")
        if self.weights is not None and (
            len(self.weights) != len(self.train) or min(self.weights) < 0 or sum(self.weights) <= 0
        ):
            raise UserError(f"data.weights: {len(self.train)} sources need as many weights, of 0 or more and not all 0")


@dataclass(frozen=True)
class ImageData(EmojiOptions, DatasetOptions):
    """The section `data` of a run that learns from images: its datasets, and which emoji are drawn where it names them.

    Raises:
        UserError: a value makes no sense.
    """

    def __post_init__(self):
        DatasetOptions.__post_init__(self)
        EmojiOptions.__post_init__(self)


def pack_datasets(data: ImageData, resolution: int, folder: Path, *, captions: bool) -> None:
    """Pack a run's datasets, where they are not packed yet, below `folder` or the cache that `data` names.

    Args:
        resolution: side of the images, pixels.
        captions: drop images without one.

    Raises:
        UserError: a dataset is missing, or holds no usable image.
    """
    from dalle_mini.data.sources import open_source

    if not data.train:
        choices = f"a folder, tars, Parquet files, or {DRAWN_NAMES[0]}"
        raise UserError(f"data.train: name the images to learn from: {choices}")
    packing = Packing(resolution, data.min_side, data.max_aspect, captions)
    for spec in dict.fromkeys((*data.train, *(data.validation or ()))):
        if spec not in DRAWN_NAMES:
            pack(open_source(spec), _packed(data, spec, packing, folder), packing)


def open_images(
    data: ImageData, resolution: int, folder: Path, *, captions: bool, seed: int
) -> tuple[ImageSource, ImageSource]:
    """(images to train on, images held out) of datasets that `pack_datasets` packed with the same arguments.

    Args:
        seed: of the emoji that are drawn.

    Raises:
        UserError: packed images are damaged, or nothing is held out.
    """
    packing = Packing(resolution, data.min_side, data.max_aspect, captions)

    def opened(spec: str, held_out: bool, named: bool) -> ImageSource:
        if spec in DRAWN_NAMES:
            return DrawnEmoji(spec, resolution, seed, "heldout" if held_out else "train", data)
        place = _packed(data, spec, packing, folder)
        return PackedImages(place) if named else PackedImages(place, SPLITS[held_out], data.held_out)

    apart = data.validation is not None
    train = [opened(spec, False, apart) for spec in data.train]
    held_out = [opened(spec, True, apart) for spec in data.validation or data.train]
    return MixedImages(train, data.weights), MixedImages(held_out, None if apart else data.weights)


def open_labelled(data: ImageData, datasets: Sequence[str], resolution: int, folder: Path) -> ImageSource:
    """Datasets to classify, packed if they are not; an image without captions is named by its key.

    Raises:
        UserError: as `pack_datasets` and `open_images`.
    """
    own = dataclasses.replace(data, train=tuple(datasets), weights=None, validation=tuple(datasets))
    pack_datasets(own, resolution, folder, captions=False)
    return open_images(own, resolution, folder, captions=False, seed=0)[1]


class MixedImages:
    """Several sources as one, whose indices are shared out by weights, or by the sources' sizes.

    With weights its length is a made-up one, in which each source comes round again as often as its weight asks.
    """

    def __init__(self, sources: Sequence[ImageSource], weights: Sequence[float] | None = None):
        self.sources, self.weights = list(sources), weights
        sizes = [len(source) for source in sources]
        if weights is not None:
            sizes = [round(MIXED * weight / sum(weights)) for weight in weights]
        self._ends = np.cumsum(sizes)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def batch(self, indices: Iterable[int]) -> tuple[np.ndarray, list[str]]:
        """Images uint8 [n, size, size, 3] and their captions, in the order of `indices`."""
        indices = np.asarray(list(indices), np.int64)
        which, within = self._places(indices)
        images, captions = None, [""] * len(indices)
        for number in np.unique(which):
            places = np.flatnonzero(which == number)
            found, texts = self.sources[number].batch(within[places])
            if images is None:
                images = np.empty((len(indices), *found.shape[1:]), np.uint8)
            images[places] = found
            for place, text in zip(places, texts, strict=True):
                captions[place] = text
        assert images is not None  # there is an index
        return images, captions

    def captions(self, index: int) -> list[str]:
        """All captions of an image."""
        (number,), (within,) = self._places(np.array([index]))
        return self.sources[number].captions(int(within))

    def _places(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(which source, which of its images) for each index."""
        which = np.searchsorted(self._ends, indices, side="right")
        begins = np.concatenate([[0], self._ends[:-1]])[which]
        return which, (indices - begins) % np.array([len(source) for source in self.sources])[which]

    def origin(self) -> dict[str, Any]:
        return {"sources": [source.origin() for source in self.sources], "weights": self.weights}


def _packed(data: ImageData, spec: str, packing: Packing, folder: Path) -> Path:
    """The folder of a dataset's packed images, named by a hash of all that decides them but the files themselves."""
    place = folder if data.cache is None else Path(data.cache)
    earlier = [spec]  # whose secrets were a part of it, too
    if os.path.isabs(spec):
        earlier.append(os.path.relpath(spec))  # of before settings were absolute
    places = [place / short_hash(repr((one, packing))) for one in (*earlier, without_secrets(spec))]
    return next(filter(Path.is_dir, places), places[-1])

"""Captioned pictures to learn from as they are, for VQGAN and CLIP: a user's piles, and what is drawn on the spot.

A source is map-style: `len(source)`, `source.batch(indices) -> (uint8 [n, S, S, 3], captions)`, and `origin()`, which
tells it from others. So the batch of a step is a function of the seed and the step alone. `captions(index)` are all of
a picture's captions, of which a batch has the first.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dalle_mini.addresses import without_secrets
from dalle_mini.data.images.packed import SPLITS, PackedPictures, Packing, pack
from dalle_mini.errors import UserError, shown
from dalle_mini.runtime.paths import path_setting, source_setting
from dalle_mini.settings import LARGEST

EMOJI, SCENES = DRAWN_NAMES = "emoji", "emoji-scenes"  # what is drawn; a folder of that name is written ./emoji
DRAWN = 10_000_000  # pictures of a source that draws: enough never to come round again


class Pictures(Protocol):
    """A map-style source of captioned pictures of one size."""

    def __len__(self) -> int: ...
    def batch(self, indices: Iterable[int]) -> tuple[np.ndarray, list[str]]: ...
    def captions(self, index: int) -> list[str]: ...
    def origin(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class PictureData:
    """What a run learns from.

    Attributes:
        train: piles, as `dalle-mini encode` reads them (docs/data.md): folders, tars, Parquet files, data sets. Or
            "emoji", single emoji on plain backgrounds, and "emoji-scenes", up to three on any background.
        weights: in which proportions they are mixed; None is by their sizes.
        validation: piles for evaluation; None holds pictures of `train` out of training.
        held_out: the share that is held out then, by a hash of their names; emoji have held-out pairs of their own.
        min_side, max_aspect: pictures of shorter sides, pixels, or a larger ratio of sides are dropped; null: none.
        cache: where packed pictures are kept, for several runs; None is the run's folder.
        emoji_kinds: which emoji are drawn, by kinds of `data.emoji.EVERYDAY` for "emoji" and of `data.scene_emoji.MORE`
            for "emoji-scenes"; None is all.
        people: draw people too in "emoji-scenes", in the genders and skin tones that the font has.
        jitter: cells by which a single emoji may be off the centre.
    """

    train: tuple[str, ...] = source_setting((), names=DRAWN_NAMES)
    weights: tuple[float, ...] | None = None
    validation: tuple[str, ...] | None = source_setting(names=DRAWN_NAMES)
    held_out: float = 0.05
    min_side: int | None = 64
    max_aspect: float | None = 2.0
    cache: str | None = path_setting()
    emoji_kinds: tuple[str, ...] | None = None
    people: bool = False
    jitter: int = 1

    def __post_init__(self):
        for name, least, most in (("min_side", 0, 1 << 20), ("max_aspect", 1, LARGEST), ("jitter", 0, 1 << 20)):
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


def pack_piles(data: PictureData, resolution: int, folder: Path, *, captions: bool) -> None:
    """Pack what is not packed yet of a run's piles, below `folder` or the cache that `data` names.

    Args:
        resolution: side of the pictures, pixels.
        captions: drop pictures without one.
    Raises UserError where a pile is missing, or holds no usable picture.
    """
    from dalle_mini.data.sources import open_source

    if not data.train:
        raise UserError(f"data.train: name the pictures to learn from: a folder, tars, Parquet files, or {EMOJI}")
    packing = Packing(resolution, data.min_side, data.max_aspect, captions)
    for spec in dict.fromkeys((*data.train, *(data.validation or ()))):
        if spec not in (EMOJI, SCENES):
            pack(open_source(spec), _packed(data, spec, packing, folder), packing)


def open_pictures(
    data: PictureData, resolution: int, folder: Path, *, captions: bool, seed: int
) -> tuple[Pictures, Pictures]:
    """(pictures to train on, pictures held out), of piles that `pack_piles` packed with the same arguments.

    Args:
        seed: of what is drawn.
    Raises UserError where packed pictures are damaged, or nothing is held out.
    """
    packing = Packing(resolution, data.min_side, data.max_aspect, captions)

    def opened(spec: str, held_out: bool, named: bool) -> Pictures:
        if spec in (EMOJI, SCENES):
            return DrawnPictures(spec, resolution, seed, "heldout" if held_out else "train", data)
        place = _packed(data, spec, packing, folder)
        return PackedPictures(place) if named else PackedPictures(place, SPLITS[held_out], data.held_out)

    apart = data.validation is not None
    train = [opened(spec, False, apart) for spec in data.train]
    held_out = [opened(spec, True, apart) for spec in data.validation or data.train]
    return MixedPictures(train, data.weights), MixedPictures(held_out, None if apart else data.weights)


def open_labelled(data: PictureData, piles: Sequence[str], resolution: int, folder: Path) -> Pictures:
    """Piles to classify, packed if they are not; a picture without captions is named by its key.

    Raises UserError as `pack_piles` and `open_pictures`.
    """
    own = dataclasses.replace(data, train=tuple(piles), weights=None, validation=tuple(piles))
    pack_piles(own, resolution, folder, captions=False)
    return open_pictures(own, resolution, folder, captions=False, seed=0)[1]


class DrawnPictures:
    """Emoji, or scenes of them, that are drawn when they are asked for.

    Raises UserError where the font is missing, the size is not one that it draws, or there is no such kind of emoji.
    """

    def __init__(self, kind: str, size: int, seed: int, split: str, data: PictureData):
        from dalle_mini.emoji.art import EmojiPictures, everyday_emoji, find_font
        from dalle_mini.emoji.scenes import EmojiScenes
        from dalle_mini.emoji.vocabulary import scene_emoji

        if kind == EMOJI:
            emoji = everyday_emoji(kinds=data.emoji_kinds)
            self._source = EmojiPictures(size, seed, DRAWN, emoji, split, jitter=data.jitter)
        else:
            emoji = scene_emoji(kinds=data.emoji_kinds, people=data.people)
            self._source = EmojiScenes(size, seed, DRAWN, emoji, split, jitter=data.jitter)
        drawn = [(one.characters, one.name) for one in self._source.emoji]
        self._made_from = {
            "kind": kind,
            "split": split,
            "seed": seed,
            "size": size,
            "jitter": data.jitter,
            "emoji": _short_hash(json.dumps(drawn).encode()),
            "font": _short_hash(find_font().read_bytes()),
        }

    def __len__(self) -> int:
        return len(self._source)

    def batch(self, indices: Iterable[int]) -> tuple[np.ndarray, list[str]]:
        return self._source.batch(indices)

    def captions(self, index: int) -> list[str]:
        return [self._source.caption(index)]

    def origin(self) -> dict[str, Any]:
        return self._made_from


class MixedPictures:
    """Several sources as one, whose indices are shared out by weights, or by the sources' sizes.

    With weights its length is a made-up one, in which each source comes round again as often as its weight asks.
    """

    def __init__(self, sources: Sequence[Pictures], weights: Sequence[float] | None = None):
        self.sources, self.weights = list(sources), weights
        sizes = [len(source) for source in sources]
        if weights is not None:
            sizes = [round(DRAWN * weight / sum(weights)) for weight in weights]
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
        return images, captions

    def captions(self, index: int) -> list[str]:
        """All captions of a picture."""
        (number,), (within,) = self._places(np.array([index]))
        return self.sources[number].captions(int(within))

    def _places(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(which source, which of its pictures) for each index."""
        which = np.searchsorted(self._ends, indices, side="right")
        begins = np.concatenate([[0], self._ends[:-1]])[which]
        return which, (indices - begins) % np.array([len(source) for source in self.sources])[which]

    def origin(self) -> dict[str, Any]:
        return {"sources": [source.origin() for source in self.sources], "weights": self.weights}


def _packed(data: PictureData, spec: str, packing: Packing, folder: Path) -> Path:
    """Where a pile's packed pictures are: a folder by the hash of all that decides them but the files themselves."""
    place = folder if data.cache is None else Path(data.cache)
    earlier = [spec]  # whose secrets were a part of it, too
    if os.path.isabs(spec):
        earlier.append(os.path.relpath(spec))  # of before settings were absolute
    places = [place / _short_hash(repr((one, packing)).encode()) for one in (*earlier, without_secrets(spec))]
    return next(filter(Path.is_dir, places), places[-1])


def _short_hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]

"""An example of a source -> the pictures that the VQGAN sees, or the reason why there are none. No network, no JAX."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image

from dalle_mini.data.encode.duplicates import image_hashes
from dalle_mini.data.encode.filters import Filters, image_problem, keep_captions
from dalle_mini.data.sources import reasons
from dalle_mini.data.sources.example import Example, Part
from dalle_mini.errors import UserError, shown
from dalle_mini.imaging.decoding import decode_scaled
from dalle_mini.imaging.pixels import resize_and_crop
from dalle_mini.imaging.problems import BadImage
from dalle_mini.runtime.hashing import hash_64s

CENTER, RANDOM = "center", "random:"
MOST_CROPS = 1000
ZOOM = (9 / 8, 12 / 8)  # of a random crop: how much larger than the crop the picture is
QUICK = 2  # times the pixels that a side will have: what a JPEG file may be decoded at
MANY_REJECTED = 512  # examples, after which a reader tells of them even without a full batch
LONGEST_DETAIL = 500  # characters


class Row(NamedTuple):
    """One crop, without its pixels and tokens."""

    position: int  # of the example in its part
    key: str
    crop: int
    caption: str
    other_captions: tuple[str, ...]
    width: int
    height: int
    exact: int | None  # hashes of the whole picture, 64 bits; None where duplicates are not looked for
    look: int | None


class Rejected(NamedTuple):
    """An example that is dropped."""

    position: int
    key: str
    reason: str
    detail: str = ""


class Block(NamedTuple):
    """A batch of crops on its way to the VQGAN, uint8 [rows, S, S, 3], and what was dropped on the way there."""

    images: np.ndarray
    rows: list[Row]
    rejected: list[Rejected]
    seen: int  # examples that were read for it


class Cropper(Protocol):
    """Makes crops of an example. It is pickled, for it works in other processes."""

    @property
    def resolution(self) -> int:
        """Pixels of a crop's side, S."""

    def __call__(self, position: int, example: Example) -> Rejected | list[tuple[Row, np.ndarray]]:
        """The crops of the example at this position of its part, each uint8 [S, S, 3], or why there are none."""


@dataclass(frozen=True)
class Preparation:
    """The `Cropper` of `encode`.

    Attributes:
        resolution: pixels of a crop's side.
        filters: what is kept.
        crops: "center", or "random:N".
        seed: of the random crops.
        quick_jpeg: decode JPEG files no larger than it takes, where duplicates, of which all pixels are compared, are
            not looked for.
    """

    resolution: int
    filters: Filters
    crops: str = CENTER
    seed: int = 0
    quick_jpeg: bool = False

    def __call__(self, position: int, example: Example) -> Rejected | list[tuple[Row, np.ndarray]]:
        captions, reason = keep_captions(example, self.filters)
        if reason:
            return Rejected(position, example.key, reason, example.detail[:LONGEST_DETAIL])
        sides: list[int] = []

        def problem(width: int, height: int) -> str | None:
            sides[:] = width, height
            return image_problem(width, height, self.filters)

        assert example.image is not None  # else `example.problem` says why, and `keep_captions` that
        try:
            image, (width, height) = decode_scaled(example.image, self._needed(), self.filters.max_pixels, problem)
        except BadImage as bad:
            detail = bad.detail or " x ".join(map(str, sides))
            return Rejected(position, example.key, bad.reason, detail[:LONGEST_DETAIL])
        exact = look = None
        if self.filters.duplicates:
            digest, look = image_hashes(image)
            exact = int.from_bytes(digest[:8], "big")
        return [
            (Row(position, example.key, n, captions[0], captions[1:], width, height, exact, look), crop)
            for n, crop in enumerate(self._crops(image, example.key))
        ]

    def _needed(self) -> int | None:
        """Pixels of a side of which enough are left for Lanczos to make crops of."""
        if not self.quick_jpeg or self.filters.duplicates:
            return None
        zoom = 1 if self.crops == CENTER else ZOOM[1]
        return math.ceil(QUICK * zoom * self.resolution)

    def _crops(self, image: Image.Image, key: str) -> Iterator[np.ndarray]:
        if self.crops == CENTER:
            yield resize_and_crop(image, self.resolution)
            return
        for n in range(crop_count(self.crops)):
            yield random_crop(image, self.resolution, self.seed, key, n)


def crop_count(crops: str) -> int:
    """Crops of each picture that an option "center" or "random:N" makes. Raises UserError where it is neither."""
    if crops == CENTER:
        return 1
    count = crops.removeprefix(RANDOM)
    is_number = crops.startswith(RANDOM) and count.isdecimal() and len(count) < 10
    if not is_number or not 1 <= int(count) <= MOST_CROPS:
        raise UserError(f"--crops is {shown(crops)}: it must be center, or random:N with N from 1 to {MOST_CROPS}")
    return int(count)


def random_crop(image: Image.Image, size: int, seed: int, key: str, n: int) -> np.ndarray:
    """A square of a picture, resized by Lanczos: uint8 [size, size, 3], a pure function of its arguments.

    As in the DALL·E paper (Ramesh et al. 2021, appendix A.2): the picture's shortest side becomes 9/8 to 12/8 of the
    crop's, and the crop is anywhere in it. A small picture is not enlarged for it, beyond what `size` needs.
    """
    zoom, x, y = (number / 2**64 for number in hash_64s(f"{seed} {n} {key}", 3))
    shortest = min(image.size)
    side = shortest / (ZOOM[0] + zoom * (ZOOM[1] - ZOOM[0]))
    side = max(side, min(shortest, size))
    left, top = x * (image.width - side), y * (image.height - side)
    return np.asarray(image.resize((size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side)))


def blocks(
    part: Part,
    preparation: Cropper,
    batch_size: int,
    new_batch: Callable[[], np.ndarray],
    skip: frozenset[int] = frozenset(),
    place: Callable[[int], None] = lambda position: None,
) -> Iterator[Block]:
    """Read a part: its crops in order, in batches of `batch_size` of which only the last may be smaller.

    Args:
        new_batch: gives the memory for a batch, uint8 [batch_size, S, S, 3].
        skip: positions of examples whose pictures are not touched, for decoding them has killed a process.
        place: is told the position of the example that comes next.
    """
    nothing = np.empty((0, preparation.resolution, preparation.resolution, 3), np.uint8)
    rows: list[Row] = []
    rejected: list[Rejected] = []
    images, seen = nothing, 0
    place(0)
    for position, example in enumerate(part.examples()):
        seen += 1
        crops: Rejected | list[tuple[Row, np.ndarray]]
        if position in skip:
            crops = Rejected(position, example.key, reasons.IMAGE_DAMAGED, "decoding it ended the process")
        else:
            crops = preparation(position, example)
        if isinstance(crops, Rejected):
            rejected.append(crops)
            crops = []
        for row, crop in crops:
            if not rows:
                images = new_batch()
            images[len(rows)] = crop
            rows.append(row)
            if len(rows) == batch_size:
                yield Block(images, rows, rejected, seen)
                rows, rejected, seen = [], [], 0
        if len(rejected) >= MANY_REJECTED:
            yield Block(nothing, [], rejected, seen)
            rejected, seen = [], 0
        place(position + 1)
    if rows or rejected or seen:
        yield Block(images[: len(rows)], rows, rejected, seen)

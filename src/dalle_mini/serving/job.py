"""A job in memory, and its images as clients get them."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image as Pillow
from PIL.PngImagePlugin import PngInfo

from dalle_mini.serving.drawing import About, Picture
from dalle_mini.serving.fitting import COMPRESSION
from dalle_mini.serving.orders import Order
from dalle_mini.serving.store import ENDED, Image, Record, best_first
from dalle_mini.serving.watching import EventLog

TEXT = "dalle-mini"  # the chunk of a PNG that holds its address


@dataclasses.dataclass
class Job:
    """A job that has not ended, or has while somebody watched it."""

    record: Record
    log: EventLog
    total: int  # passes of all of its images, at most
    state: str = "queued"
    missing: int = 0  # candidates that are not on disk yet
    flying: int = 0  # candidates that are being drawn
    now: int = 0  # passes of the parts that are being drawn
    watchers: int = 0
    seen: float = 0.0  # the last sign of its client
    finished: list[Image] = dataclasses.field(default_factory=list)  # so far, in no order
    images: list[Image] = dataclasses.field(default_factory=list)  # the best, when all are
    error: str | None = None
    begun: float | None = None

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def is_over(self) -> bool:
        return self.state in ENDED

    @property
    def each(self) -> int:
        """Passes of an image, at most."""
        return self.total // self.record.order.settings.candidates

    @property
    def passes(self) -> int:
        """Those that are done, of `total`."""
        return self.total - self.missing * self.each + min(self.now, self.missing * self.each)

    def tell_finished(self, images: Sequence[Image]) -> None:
        """Images that are finished while others are still drawn, each with its place among those so far."""
        self.finished += images
        order = [image.candidate for image in sorted(self.finished, key=best_first)]
        for image in images:
            self.log.forget("partial", image.candidate)
            self.log.tell("finished", Finished(image, order.index(image.candidate) + 1, len(order)), image.candidate)


class Finished(NamedTuple):
    """A finished image of a job that goes on: `rank` is its place among the `finished` so far, by CLIP."""

    image: Image
    rank: int
    finished: int


def told_image(image: Image, record: Record, about: About) -> dict[str, Any]:
    """An image as clients are told of it, without its URL."""
    return {
        "number": image.number,
        "candidate": image.candidate,
        "score": round(image.score, 4),
        "tokens": image.tokens.tolist(),
        "address": record.order.address(image.candidate, about, record.kept),
    }


def png_of(order: Order, picture: Picture, kept: tuple[int, ...] | None, about: About) -> bytes:
    """A picture as a PNG with its address."""
    return png(picture.pixels, {TEXT: order.address(picture.candidate, about, kept)})


def png(pixels: np.ndarray, texts: dict[str, str]) -> bytes:
    """Pixels uint8 [H, W, 3] as a PNG with text chunks."""
    info = PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    Pillow.fromarray(pixels).save(buffer := io.BytesIO(), "PNG", pnginfo=info, compress_level=COMPRESSION)
    return buffer.getvalue()

"""Samples of a CLIP run: held-out captions and the images that they find."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from PIL import Image

from dalle_mini.errors import UserError
from dalle_mini.training.config.sections import MOST_IMAGES, check_most
from dalle_mini.training.tracking.samples import Sample

if TYPE_CHECKING:
    from dalle_mini.training.clip.trainer import CLIPTrainer

RIGHT, WRONG = (18, 135, 111), (200, 55, 79)
SHOWN = 4  # images, the best at the top left


@dataclass(frozen=True)
class RetrievalConfig:
    """How many held-out captions search while training; what they find is kept in `samples/`. 0 is none."""

    captions: int = 8

    def __post_init__(self):
        if self.captions < 0:
            raise UserError(f"samples.captions: {self.captions} is not a number of 0 or more")
        check_most("samples", self, captions=MOST_IMAGES)


@dataclass(frozen=True)
class Retrieval:
    """The settings of a sample.

    Attributes:
        picture: the number of the caption's own image among those held out.
        found, cosines: the numbers of the images that are shown, best first, and their cosines.
        place: the place of the first right one; 1 is the best.
    """

    picture: int
    found: list[int]
    cosines: list[float]
    place: int


class Retrievals:
    """Searches with the first held-out captions again and again, among all pairs of the evaluation."""

    def __init__(self, config: RetrievalConfig, trainer: CLIPTrainer):
        self.count, self.trainer = config.captions, trainer

    def draw(self, params: Any) -> list[Sample]:
        """One sample a caption. All processes call it; the first one draws, the others return none."""
        if not self.count:
            return []
        images, captions = self.trainer.held_out_pairs()
        asked = captions[: self.count]
        vectors, texts = self.trainer.image_vectors(params, images), self.trainer.text_vectors(params, asked)
        if jax.process_index() != 0:
            return []
        return [
            _sample(number, caption, texts[number] @ vectors.T, images, captions)
            for number, caption in enumerate(asked)
        ]


def _sample(number: int, caption: str, cosines: np.ndarray, images: np.ndarray, captions: list[str]) -> Sample:
    order = np.argsort(-cosines, kind="stable")
    right = np.array([captions[i] == caption for i in order])
    best = order[:SHOWN]
    told = Retrieval(number, best.tolist(), [round(float(cosines[i]), 4) for i in best], int(right.argmax()) + 1)
    sheet = framed(images[best], right[:SHOWN])
    return Sample(f"{number + 1}: {caption}", [Image.fromarray(sheet)], None, [number], told)


def framed(images: np.ndarray, right: np.ndarray) -> np.ndarray:
    """At most four images uint8 [n, S, S, 3] in two rows, in green frames if `right` bool [n], else in red ones."""
    side = images.shape[1]
    edge = max(2, side // 16)
    cell = side + 3 * edge
    sheet = np.full((2 * cell - edge, 2 * cell - edge, 3), 255, np.uint8)
    for place, (image, is_right) in enumerate(zip(images, right, strict=True)):
        top, left = (cell * i for i in divmod(place, 2))
        sheet[top : top + side + 2 * edge, left : left + side + 2 * edge] = RIGHT if is_right else WRONG
        sheet[top + edge : top + edge + side, left + edge : left + edge + side] = image
    return sheet

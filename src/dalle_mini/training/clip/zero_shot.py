"""The evaluation of a CLIP run: its settings, and zero-shot classification of images by prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dalle_mini.emoji.drawn import DRAWN_NAMES
from dalle_mini.errors import UserError
from dalle_mini.evaluation.retrieval import accuracies, class_of, class_vectors
from dalle_mini.runtime import parsing
from dalle_mini.runtime.paths import path_setting, source_setting
from dalle_mini.training.config.sections import MOST_IMAGES, check_most


@dataclass(frozen=True)
class EvaluationConfig:
    """The settings of the evaluation.

    Attributes:
        pairs: at most so many held-out images and captions search each other.
        classes: names to classify images by, without training on them.
        classes_file: a text file of names, one a line, in place of `classes`.
        templates: templates of prompts; {} is the name. A class is the mean of its prompts.
        pictures: datasets to classify, whose captions or folders name the class; None takes the held-out images.
        most: at most so many images are classified.
    """

    pairs: int = 256
    classes: tuple[str, ...] = ()
    classes_file: str | None = path_setting()
    templates: tuple[str, ...] = ("a photo of a {}",)
    pictures: tuple[str, ...] | None = source_setting(names=DRAWN_NAMES)
    most: int = 1024

    def __post_init__(self):
        for name in ("pairs", "most"):
            if getattr(self, name) < 1:
                raise UserError(f"evaluation.{name}: {getattr(self, name)} is too small; it must be at least 1")
        if self.classes and self.classes_file:
            raise UserError("evaluation.classes_file: the names are in evaluation.classes already; take one of both")
        if not self.templates:
            raise UserError("evaluation.templates: name one, such as 'a photo of a {}'")
        for template in self.templates:
            if template.count("{}") != 1:
                raise UserError(f"evaluation.templates: {template!r} must have one {{}}, for the class's name")
        check_most("evaluation", self, pairs=MOST_IMAGES, most=MOST_IMAGES)

    def names(self) -> list[str]:
        """The classes; empty without classification. Raises UserError where they cannot be read or told apart."""
        names, place = list(self.classes), "evaluation.classes"
        if self.classes_file is not None:
            place = self.classes_file
            try:
                lines = parsing.read_bytes(place, "words_bytes").decode().splitlines()
            except (UserError, UnicodeDecodeError) as error:
                raise UserError(f"evaluation.classes_file: {error}") from None
            names = [line.strip() for line in lines if line.strip()]
        told_apart = {name.strip().lower() for name in names} - {""}
        if (names or self.classes_file) and len(told_apart) < max(2, len(names)):
            raise UserError(f"{place}: two or more names are needed, all different")
        return names


@dataclass(frozen=True)
class ZeroShot:
    """Images uint8 [n, S, S, 3], their classes int [n], and the prompts, those of a class next to each other."""

    images: np.ndarray
    labels: np.ndarray
    prompts: list[str]
    classes: int

    @classmethod
    def find(cls, config: EvaluationConfig, source: Any) -> ZeroShot | None:
        """The first images of a map-style source whose captions name one class alone; None without classes.

        Raises:
            UserError: no caption names a class.
        """
        names = config.names()
        if not names:
            return None
        images, captions = source.batch(range(min(config.most, len(source))))
        labels = [class_of(caption, names) for caption in captions]
        known = np.array([label is not None for label in labels])
        if not known.any():
            raise UserError(
                f"evaluation: none of {len(captions)} images has a caption that names one of the {len(names)} classes"
            )
        prompts = [template.replace("{}", name) for name in names for template in config.templates]
        return cls(images[known], np.array([label for label in labels if label is not None]), prompts, len(names))

    def measure(self, images: np.ndarray, prompts: np.ndarray) -> dict[str, float]:
        """`retrieval.accuracies` of the unit vectors of both, and `zero_shot_pictures`, the number of images."""
        found = accuracies(images, class_vectors(prompts, self.classes), self.labels)
        return {**found, "zero_shot_pictures": float(len(self.labels))}

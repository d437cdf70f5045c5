"""The images that a run draws at a step, in its folder.

samples/00002000/01-a-red-apple.png   a prompt's images, best first, with their scores
                 thumbs/01.webp       its first one, small, for the run's page
                 results.json         prompts, scores, settings
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from dalle_mini.results.write import image_grid, slug
from dalle_mini.runtime.files import write_new, written_beside
from dalle_mini.training.records import RESULTS

THUMB = 192  # pixels, the longer side


@dataclass(frozen=True)
class Sample:
    """The images of one prompt, best first where CLIP ranked them, else in the order of their keys.

    Attributes:
        scores: CLIP's; None without it.
        candidates: the images' numbers among those drawn.
        settings: a dataclass that is written beside the images.
    """

    prompt: str
    images: list[Image.Image]
    scores: list[float] | None
    candidates: list[int]
    settings: Any


class Sampler(Protocol):
    """Draws the samples of a run: each task has one."""

    def draw(self, params: Any) -> list[Sample]:
        """The samples of parameters as they lie on the devices.

        All processes must call it: they gather the parameters together. The first one draws and returns the samples;
        the others return none.
        """
        ...


def mean_score(samples: Sequence[Sample]) -> float | None:
    """The mean over all images; None where they have no scores."""
    scores = [score for sample in samples for score in sample.scores or ()]
    return float(np.mean(scores)) if scores else None


def write_samples(folder: Path, step: int, samples: Sequence[Sample]) -> None:
    """Write a step's folder whole, in place of an old one. Raises OSError where that fails."""
    with written_beside(folder) as beside:
        (beside / "thumbs").mkdir()
        rows = []
        for number, sample in enumerate(samples, 1):
            name, thumb = f"{number:02d}-{slug(sample.prompt)}.png", f"thumbs/{number:02d}.webp"
            image_grid(sample.prompt, sample.images, sample.scores).save(beside / name)
            small = sample.images[0].convert("RGB")
            small.thumbnail((THUMB, THUMB))
            small.save(beside / thumb, quality=85)
            scores: Sequence[float | None] = sample.scores or [None] * len(sample.images)
            images = [
                {"candidate": candidate, "score": score}
                for candidate, score in zip(sample.candidates, scores, strict=True)
            ]
            settings = dataclasses.asdict(sample.settings)
            rows.append(
                {"prompt": sample.prompt, "grid": name, "thumb": thumb, "settings": settings, "pictures": images}
            )
        report = {"step": step, "prompts": rows}
        write_new(beside / RESULTS, json.dumps(report, indent=2, ensure_ascii=False) + "\n")

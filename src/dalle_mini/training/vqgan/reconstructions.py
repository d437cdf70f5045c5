"""Pictures of a VQGAN run: held-out ones, each above what the VQGAN makes of it, written as other samples are."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import nnx
from PIL import Image

from dalle_mini.errors import UserError
from dalle_mini.evaluation.reconstruction import psnr, reconstruct
from dalle_mini.models import VQGAN
from dalle_mini.models.config import VQGANConfig
from dalle_mini.training.config.sections import MOST_PICTURES, check_most
from dalle_mini.training.engine.sharding import gathered
from dalle_mini.training.tracking.samples import Sample
from dalle_mini.training.vqgan.discriminator import GROUP

logger = logging.getLogger("dalle_mini")


@dataclass(frozen=True)
class ReconstructionConfig:
    """How many held-out pictures are drawn while training, and kept in `samples/`; 0 is none."""

    pictures: int = 8

    def __post_init__(self):
        if self.pictures < 0:
            raise UserError(f"samples.pictures: {self.pictures} is not a number of 0 or more")
        check_most("samples", self, pictures=MOST_PICTURES)


@dataclass(frozen=True)
class Reconstruction:
    """What is told of a picture beside it: its number among those held out, and the reconstruction's PSNR in dB."""

    picture: int
    psnr: float


class Reconstructions:
    """Draws the first held-out pictures again and again, with the parameters as they are."""

    def __init__(self, config: ReconstructionConfig, model: VQGANConfig, held_out: Any):
        self.count, self.held_out = min(config.pictures, len(held_out)), held_out
        self.graphdef, _ = VQGAN.shapes(model)

    def draw(self, params: Any) -> list[Sample]:
        """One sample a picture. All processes call it; the first one draws, the others have none."""
        if not self.count:
            return []
        params = gathered({name: part for name, part in params.items() if name != GROUP})
        if jax.process_index() != 0:
            return []
        try:
            images, captions = self.held_out.batch(range(self.count))
            pictures, _ = reconstruct(nnx.merge(self.graphdef, params), images)
        except Exception as error:  # out of memory, say: pictures are not worth a run
            logger.warning("no pictures this time: %s", (str(error).splitlines() or [type(error).__name__])[0])
            return []
        drawn = np.rint(255 * pictures).astype(np.uint8)
        return [
            Sample(
                f"{number + 1}: {caption}" if caption else f"{number + 1}",
                [Image.fromarray(above(images[number], drawn[number]))],
                None,
                [number],
                Reconstruction(number, round(psnr(images[number : number + 1], pictures[number : number + 1]), 2)),
            )
            for number, caption in enumerate(captions)
        ]


def above(original: np.ndarray, reconstruction: np.ndarray) -> np.ndarray:
    """Two pictures uint8 [S, S, 3], one above the other with some white between them: [2 S + S / 32, S, 3]."""
    gap = np.full((max(1, len(original) // 32), *original.shape[1:]), 255, np.uint8)
    return np.concatenate([original, gap, reconstruction])

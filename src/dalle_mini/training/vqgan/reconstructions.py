"""Samples of a VQGAN run: held-out images, each above its reconstruction."""

import logging
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from PIL import Image

from dalle_mini.errors import UserError
from dalle_mini.evaluation.reconstruction import psnr, reconstruct
from dalle_mini.runtime.files import reason
from dalle_mini.training.config.sections import MOST_IMAGES, check_most
from dalle_mini.training.tracking.samples import Sample
from dalle_mini.training.vqgan.trainer import VQGANTrainer

logger = logging.getLogger("dalle_mini")


@dataclass(frozen=True)
class ReconstructionConfig:
    """How many held-out images are reconstructed while training and kept in `samples/`; 0 is none."""

    pictures: int = 8

    def __post_init__(self):
        if self.pictures < 0:
            raise UserError(f"samples.pictures: {self.pictures} is not a number of 0 or more")
        check_most("samples", self, pictures=MOST_IMAGES)


@dataclass(frozen=True)
class Reconstruction:
    """The settings of a sample: the image's number among those held out, and the reconstruction's PSNR in dB."""

    picture: int
    psnr: float


class Reconstructions:
    """Reconstructs the same held-out images each time, the first ones, with the parameters as they are."""

    def __init__(self, config: ReconstructionConfig, trainer: VQGANTrainer):
        self.count, self.trainer = min(config.pictures, len(trainer.held_out)), trainer

    def draw(self, params: Any) -> list[Sample]:
        """One sample an image. All processes call it; the first one draws, the others return none."""
        if not self.count:
            return []
        vqgan = self.trainer.network(params)
        if jax.process_index() != 0:
            return []
        try:
            images, captions = self.trainer.held_out.batch(range(self.count))
            made, _ = reconstruct(vqgan, images)
        except Exception as error:  # for example out of memory: samples are not worth a run
            logger.warning("no images this time: %s", reason(error))
            return []
        drawn = np.rint(255 * made).astype(np.uint8)
        return [
            Sample(
                f"{number + 1}: {caption}" if caption else f"{number + 1}",
                [Image.fromarray(above(images[number], drawn[number]))],
                None,
                [number],
                Reconstruction(number, round(psnr(images[number : number + 1], made[number : number + 1]), 2)),
            )
            for number, caption in enumerate(captions)
        ]


def above(original: np.ndarray, reconstruction: np.ndarray) -> np.ndarray:
    """Two images uint8 [S, S, 3], one above the other with some white between them: [2 S + S / 32, S, 3]."""
    gap = np.full((max(1, len(original) // 32), *original.shape[1:]), 255, np.uint8)
    return np.concatenate([original, gap, reconstruction])

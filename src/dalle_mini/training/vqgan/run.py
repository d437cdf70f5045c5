"""A run of a VQGAN: its settings from a YAML file, its images packed, its trainer."""

import logging
from dataclasses import dataclass, field
from pathlib import Path

from dalle_mini.data.images.dataset import ImageData
from dalle_mini.training.config.sections import LoopConfig, MeshConfig, TrackingConfig
from dalle_mini.training.engine.sharding import make_mesh
from dalle_mini.training.run import image_runs
from dalle_mini.training.vqgan.reconstructions import ReconstructionConfig
from dalle_mini.training.vqgan.trainer import VQGANTrainer, VQGANTraining

logger = logging.getLogger("dalle_mini")


@dataclass(frozen=True)
class VQGANRun:
    """All settings of a run, as its YAML file has them."""

    data: ImageData = field(default_factory=ImageData)
    training: VQGANTraining = field(default_factory=VQGANTraining)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    samples: ReconstructionConfig = field(default_factory=ReconstructionConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


def prepare(run: VQGANRun, out: Path) -> VQGANTrainer:
    """Pack a run's images into `out/pictures` unless they are there, and make its trainer.

    Raises:
        UserError: settings do not go together, or images or a network are missing or damaged.
    """
    run.training.check()  # what is wrong shows before the wait for the packing
    discriminator = run.training.discriminator
    if discriminator is not None and discriminator.start >= run.loop.steps:
        logger.warning(
            "training.discriminator.start %d is not before loop.steps %d: this run ends without a discriminator",
            *(discriminator.start, run.loop.steps),
        )
    make_mesh(run.mesh)
    size = run.training.model.resolution
    train, held_out = image_runs.open_data(run.data, size, out, captions=False, seed=run.loop.seed)
    return VQGANTrainer(
        run.training,
        train,
        held_out,
        batch_size=run.loop.batch_size,
        seed=run.loop.seed,
        data={"train": train.origin(), "held_out": held_out.origin()},
    )

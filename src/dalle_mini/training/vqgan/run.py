"""A VQGAN run as a whole: its settings from a YAML file, its pictures packed, and the trainer they make."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dalle_mini.data.images.dataset import ImageData
from dalle_mini.training.config.sections import LoopConfig, MeshConfig, TrackingConfig
from dalle_mini.training.engine.sharding import make_mesh
from dalle_mini.training.run import image_runs
from dalle_mini.training.vqgan.reconstructions import ReconstructionConfig, Reconstructions
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


def build_run(values: Mapping[str, Any], assignments: Sequence[str] = ()) -> VQGANRun:
    """A run's settings, as `image_runs.build_run` makes them."""
    return image_runs.build_run(VQGANRun, "vqgan", values, assignments)


def train(run: VQGANRun, out: Path, *, resume: str = "auto", allow_changes: bool = False) -> Path:
    """Train into the folder `out`, or continue what is there; the weights are then in the folder that is returned.

    Raises UserError where something in the settings or the data is wrong; otherwise as `loop.run`.
    """
    trainer = prepare(run, out)
    sampler = Reconstructions(run.samples, run.training.model, trainer.held_out)
    return image_runs.train(run, trainer, sampler, out, ("samples", "tracking"), resume, allow_changes)


def prepare(run: VQGANRun, out: Path) -> VQGANTrainer:
    """Pack a run's pictures into `out/pictures` if they are not, and make its trainer.

    Raises UserError where settings do not go together, or pictures or a network are missing or damaged.
    """
    run.training.check()  # what is wrong shows before the wait for the packing
    judge = run.training.discriminator
    if judge is not None and judge.start >= run.loop.steps:
        logger.warning(
            "training.discriminator.start %d is not before loop.steps %d: this run ends without a discriminator",
            *(judge.start, run.loop.steps),
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

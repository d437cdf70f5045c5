"""A VQGAN run as a whole: its settings from a YAML file, its pictures packed, and the trainer they make."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dalle_mini.data.pictures import PictureData, open_pictures, pack_piles
from dalle_mini.errors import UserError
from dalle_mini.models.config import VQGANConfig
from dalle_mini.training import config_file, loop
from dalle_mini.training.agreement import first_process_does
from dalle_mini.training.checkpoint import holds_checkpoints
from dalle_mini.training.config import LoopConfig, MeshConfig, TrackingConfig
from dalle_mini.training.reconstructions import ReconstructionConfig, Reconstructions
from dalle_mini.training.resume import started_with
from dalle_mini.training.sharding import make_mesh
from dalle_mini.training.vqgan import VQGANTrainer, VQGANTraining
from dalle_mini.weights.bundle import find_part
from dalle_mini.weights.folder import load_config

SOURCES = "sources"  # the section of a run's record that holds `PictureData`; its "data" tells the pictures themselves


@dataclass(frozen=True)
class VQGANRun:
    """All settings of a run, as its YAML file has them."""

    data: PictureData = field(default_factory=PictureData)
    training: VQGANTraining = field(default_factory=VQGANTraining)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    samples: ReconstructionConfig = field(default_factory=ReconstructionConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


def build_run(values: Mapping[str, Any], assignments: Sequence[str] = ()) -> VQGANRun:
    """A run's settings from a file's values and `key=value` overrides.

    What the file does not say of `training.model` is as in the VQGAN to start from, where one is named.

    Raises UserError where a key or value cannot be, or that VQGAN cannot be found.
    """
    run = config_file.build(VQGANRun, values, assignments)
    start = run.training.init_from
    if start is None:
        return run
    base = dataclasses.replace(run, training=dataclasses.replace(run.training, model=_config_of(start)))
    return config_file.build(VQGANRun, values, assignments, base)


def _config_of(start: str) -> VQGANConfig:
    """Of the VQGAN in a folder, a repository, a bundle or a run."""
    if not holds_checkpoints(start):
        return VQGANConfig.from_dict(load_config(find_part("vqgan", start, weights=False)))
    found = started_with(start)
    try:
        return VQGANConfig.from_dict(found["training"]["model"])
    except (TypeError, KeyError, UserError):
        raise UserError(f"training.init_from={start}: no run of a VQGAN, whose config.json tells its model") from None


def train(run: VQGANRun, out: Path, *, resume: str = "auto", allow_changes: bool = False) -> Path:
    """Train into the folder `out`, or continue what is there; the weights are then in the folder that is returned.

    Raises UserError where something in the settings or the data is wrong; otherwise as `loop.run`.
    """
    trainer = prepare(run, out)
    settings = {name: dataclasses.asdict(getattr(run, name)) for name in ("samples", "tracking")}
    loop.run(
        trainer,
        run.loop,
        out,
        run.mesh,
        resume=resume,
        allow_changes=allow_changes,
        tracking=run.tracking,
        sampler=Reconstructions(run.samples, run.training.model, trainer.held_out),
        settings={**settings, SOURCES: dataclasses.asdict(run.data)},
    )
    return out / "final"


def prepare(run: VQGANRun, out: Path) -> VQGANTrainer:
    """Pack a run's pictures into `out/pictures` if they are not, and make its trainer.

    Raises UserError where settings do not go together, or pictures or a network are missing or damaged.
    """
    run.training.check()  # what is wrong shows before the wait for the packing
    make_mesh(run.mesh)
    size, folder = run.training.model.resolution, out / "pictures"
    first_process_does(lambda: pack_piles(run.data, size, folder, captions=False))
    train, held_out = open_pictures(run.data, size, folder, captions=False, seed=run.loop.seed)
    return VQGANTrainer(
        run.training,
        train,
        held_out,
        batch_size=run.loop.batch_size,
        seed=run.loop.seed,
        data={"train": train.origin(), "held_out": held_out.origin()},
    )

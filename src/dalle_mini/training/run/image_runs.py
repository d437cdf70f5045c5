"""Runs of a VQGAN and of CLIP learn from images as they are: the config of the model to start from, and the data."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dalle_mini.data.images.dataset import ImageData, ImageSource, open_images, pack_datasets
from dalle_mini.errors import UserError
from dalle_mini.training.config import config_file
from dalle_mini.training.engine.multihost import first_process_does
from dalle_mini.training.run.checkpoint_folder import holds_checkpoints, recorded_config
from dalle_mini.weights.bundle import find_part
from dalle_mini.weights.folder import load_config


def build_run(kind: type[Any], part: str, values: Mapping[str, Any], assignments: Sequence[str]) -> Any:
    """A run's settings from a file's values and `key=value` overrides.

    Fields of `training.model` that the file leaves out come from the model to start from, where one is named.

    Args:
        kind: the dataclass of the settings.
        part: the bundle's name of the network that `training.model` describes.

    Raises:
        UserError: a key or value cannot be, or that model cannot be found.
    """
    run = config_file.build(kind, values, assignments)
    start = run.training.init_from
    if start is None:
        return run
    if holds_checkpoints(start):
        model = _model_of_run(start, part, type(run.training))
    else:
        model = type(run.training.model).from_dict(load_config(find_part(part, start, weights=False)))
    base = dataclasses.replace(run, training=dataclasses.replace(run.training, model=model))
    return config_file.build(kind, values, assignments, base)


def _model_of_run(start: str, part: str, training: type[Any]) -> Any:
    """The config of the network whose checkpoints a run's folder holds."""
    found, name = recorded_config(start) or {}, {"clip": "CLIP", "vqgan": "VQGAN"}[part]
    problem = UserError(f"training.init_from={start}: no run of a {name}, whose record tells its model")
    if found.get("trainer") != part:
        raise problem
    try:
        recorded = config_file.build(training, found["training"])
    except (TypeError, AttributeError, KeyError, UserError):
        raise problem from None
    return recorded.network


def open_data(data: ImageData, size: int, out: Path, *, captions: bool, seed: int) -> tuple[ImageSource, ImageSource]:
    """(images to train on, images held out) of so many pixels a side, packed into `out/pictures` unless they are there.

    Raises:
        UserError: images are missing or damaged.
    """
    folder = out / "pictures"
    first_process_does(lambda: pack_datasets(data, size, folder, captions=captions))
    return open_images(data, size, folder, captions=captions, seed=seed)

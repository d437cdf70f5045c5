"""One picture again, from the `results.json` that was written with it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
from PIL import Image

from dalle_mini.errors import UserError
from dalle_mini.generation.canvas import Canvas
from dalle_mini.settings import GenerationSettings


@dataclasses.dataclass(frozen=True)
class Entry:
    """A picture of a `results.json`, and all that it depends on.

    Attributes:
        file: the picture's own.
        prompt, candidate, settings, canvas: as `DalleMini.redraw` takes them.
        dtype: of the computation.
        models: what drew it: each part's SHA-256, and its repository if it came from the Hub.
    """

    file: Path
    prompt: str
    candidate: int
    settings: GenerationSettings
    canvas: Canvas | None
    dtype: str
    models: dict[str, dict]

    @property
    def sources(self) -> dict[str, str]:
        """Where to find the models that came from the Hub: {"model", "vqgan", "clip": "owner/name@commit"}."""
        return {
            "model" if part == "dalle" else part: f"{model['repository']}@{model['commit']}"
            for part, model in self.models.items()
            if "repository" in model
        }

    def check_models(self, provenance: dict) -> None:
        """Raises UserError where other weights were loaded than drew the picture."""
        for part, model in self.models.items():
            if provenance["models"].get(part, {}).get("sha256") != model.get("sha256"):
                option = "model" if part == "dalle" else part
                known = model.get("repository") or model.get("folder")
                raise UserError(
                    f"{self.file} was drawn by other weights ({part}: {known}, SHA-256 {model.get('sha256')}): "
                    f"name them with --{option}"
                )

    def compare(self, image: Image.Image) -> str:
        """Whether the picture came out as it is on disk, in words."""
        if not self.file.is_file():
            return f"({self.file} is no longer there to compare with)"
        try:
            with Image.open(self.file) as earlier:
                same = np.array_equal(np.asarray(earlier), np.asarray(image))
        except OSError:
            return f"({self.file} cannot be read to compare with)"
        return f"{'the same as' if same else 'NOT the same as'} {self.file}"


def read_entry(path: Path, index: int) -> Entry:
    """Picture `index` of a `results.json`, from 1, as the files are named. Raises UserError on what does not fit."""
    try:
        report = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    try:
        pictures, settings = report["pictures"], report["settings"]
        if not 1 <= index <= len(pictures):
            raise UserError(f"{path}: --index is {index}, but it has pictures 1 to {len(pictures)}")
        picture, canvas = pictures[index - 1], report.get("canvas")
        names = {field.name for field in dataclasses.fields(GenerationSettings)} - {"candidates", "keep", "seed"}
        return Entry(
            file=path.parent / picture["file"],
            prompt=report["prompt"],
            candidate=int(picture["candidate"]),
            settings=GenerationSettings(
                candidates=1, keep=1, seed=report["seed"], **{name: settings[name] for name in names & settings.keys()}
            ),
            canvas=canvas and Canvas([int(token) for token in canvas["tokens"].split()], canvas["vary"]),
            dtype=report["dtype"],
            models=dict(report["models"]),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path}: no results.json of a drawn prompt ({type(error).__name__}: {error})") from None

"""One image again, from the `results.json` that was written with it."""

import dataclasses
import os
from pathlib import Path
from types import UnionType

import numpy as np
from PIL import Image

from dalle_mini.errors import UserError
from dalle_mini.generation.canvas import Canvas
from dalle_mini.imaging.decoding import load_image
from dalle_mini.runtime.parsing import read_json
from dalle_mini.settings import DTYPES, PER_PROMPT, GenerationSettings, check_number, check_prompts
from dalle_mini.weights.bundle import PARTS
from dalle_mini.weights.editions import edition_of

DIFFERS = "NOT the same as"
NO_REPORT = "no results.json of a drawn prompt"
Kind = type | UnionType
WORDS: dict[Kind, str] = {list: "list", dict: "object", str: "text", int: "whole number", int | float: "number"}
MAX_TOKEN = 2**31 - 1  # tokens are held in 32 bits


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
        """Where to find the models that came from the Hub: {"model", "vqgan", "clip": "owner/name@commit"}.

        A part beside the model, in a bundle's repository, is found with it and has no entry of its own.
        """
        places = {
            "model" if part == "dalle" else part: f"{model['repository']}@{model['commit']}"
            for part, model in self.models.items()
            if "repository" in model
        }
        return {part: place for part, place in places.items() if part == "model" or place != places.get("model")}

    def check_models(self, provenance: dict) -> None:
        """Check that the loaded weights are those that drew the image.

        Raises:
            UserError: they are others. Where to get an earlier edition of the shipped model is told.
        """
        for part, model in self.models.items():
            digest = model.get("sha256")
            if provenance["models"].get(part, {}).get("sha256") == digest:
                continue
            if edition := edition_of({part: self.models[part]["sha256"] for part in PARTS}):
                raise UserError(
                    f"{self.file} was drawn by the {edition.name} edition of the shipped model: "
                    f"name its folder with --model {edition.name}; {edition.where}"
                )
            option = "model" if part == "dalle" else part
            known = model.get("repository") or model.get("folder")
            raise UserError(
                f"{self.file} was drawn by other weights ({part}: {known}, SHA-256 {digest}): name them with --{option}"
            )

    def compare(self, image: Image.Image) -> str:
        """Whether the image came out as it is on disk, in words."""
        if not os.path.isfile(self.file):  # a name that is too long is no error there
            return f"({self.file} is no longer there to compare with)"
        try:
            same = np.array_equal(np.asarray(load_image(self.file)), np.asarray(image))
        except UserError:
            return f"({self.file} cannot be read to compare with)"
        return f"{'the same as' if same else DIFFERS} {self.file}"


def read_entry(path: Path, index: int) -> Entry:
    """Image `index` of a `results.json`, from 1, as the files are named.

    Raises:
        UserError: the file or the index does not fit.
    """
    report = read_json(path)
    try:
        return _entry(report, path.parent, index)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _entry(report, folder: Path, index: int) -> Entry:
    pictures = _field(report, "pictures", list)
    if not 1 <= index <= len(pictures):
        has = f"it has images 1 to {len(pictures)}" if pictures else "it has no image"
        raise UserError(f"--index is {index}, but {has}")
    picture = pictures[index - 1]
    file, number = _field(picture, "file", str), _field(picture, "candidate", int)
    if file != Path(file).name or "\0" in file:
        raise UserError(f"{NO_REPORT}: file is {file!r:.60}, not the name of one")
    check_number(number)
    (prompt,) = check_prompts([_field(report, "prompt", str)])
    dtype = _field(report, "dtype", str)
    if dtype not in DTYPES:
        raise UserError(f"dtype is {dtype!r:.60}: it is one of {', '.join(DTYPES)}")
    return Entry(folder / file, prompt, number, _settings(report), _canvas(report), dtype, _models(report))


def _settings(report: dict) -> GenerationSettings:
    found = _field(report, "settings", dict)
    for name in ("guidance", "temperature", "top_k"):  # else the model's own would be taken, which may be another's
        _field(found, name, int | float)
    given = {name: found[name] for name in PER_PROMPT if name in found}
    # Reports of earlier versions tell neither: there was one rule, and sequential decoding alone.
    sampler = _field(report, "sampler", str) if "sampler" in report else "rank"
    drawn = _field(report, "decode", dict) if "decode" in report else {"mode": "sequential"}
    mode = _field(drawn, "mode", str)
    window = _field(drawn, "window", int) if mode == "parallel" else None
    return GenerationSettings(
        1, 1, **given | {"seed": _field(report, "seed", int)}, decode=mode, window=window, sampler=sampler
    )


def _canvas(report: dict) -> Canvas | None:
    if report.get("canvas") is None:
        return None
    canvas = _field(report, "canvas", dict)
    try:
        tokens = [int(token) for token in _field(canvas, "tokens", str).split()]
    except ValueError as error:
        raise UserError(f"{NO_REPORT}: the canvas's tokens are no numbers ({str(error)[:100]})") from None
    if not tokens or max(tokens) > MAX_TOKEN:
        raise UserError(f"{NO_REPORT}: the canvas has no tokens, or one above {MAX_TOKEN}")
    return Canvas(tokens, _field(canvas, "vary", int | float))


def _models(report: dict) -> dict[str, dict]:
    models = _field(report, "models", dict)
    for part in PARTS:
        model = _field(models, part, dict)
        names = ("sha256", "repository", "commit") if "repository" in model else ("sha256",)
        for name in names:
            _field(model, name, str)
    return models


def _field(mapping, name: str, kind: Kind):
    """A field of a report, of this type.

    Raises:
        UserError: it is missing or of another type.
    """
    value = mapping.get(name) if isinstance(mapping, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise UserError(f"{NO_REPORT}: {name} is missing, or no {WORDS[kind]}")
    return value

"""The files that a run writes about itself: the log, the samples, and the schemas by which they are read again.

A file may have fields that its schema lacks: newer versions may write more. This file imports no jax.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

from msgspec import Meta

from dalle_mini.runtime import files
from dalle_mini.runtime.parsing import json_lines, read_record

LOG, REPORT, SAMPLES, RESULTS = "log.jsonl", "report.html", "samples", "results.json"
HUGE = 1e18  # steps and metrics are smaller, and a page can draw any smaller number

Step = Annotated[int, Meta(ge=0, le=2**53)]


class Settings(TypedDict, total=False):
    """A section of a run's settings. The keys are those that name another model."""

    vqgan: str | None
    tokenizer: str | None


class TrainingSettings(TypedDict, total=False):
    model: dict[str, Any]
    init_from: str | None


class RunSettings(TypedDict, total=False):
    """`config.json` of a run, and `config` in the record of a checkpoint."""

    run: str | None
    trainer: str
    training: TrainingSettings
    samples: Settings
    sources: Settings
    data: Settings | None
    changes: list[dict[str, Any]]


class CheckpointRecord(TypedDict):
    """The record beside a checkpoint's arrays. `leaves` are type, shape and checksum of each, by name."""

    step: Step
    eval_loss: float | None
    leaves: dict[str, tuple[str, list[Step], str]]
    config: NotRequired[RunSettings | None]
    evaluated: NotRequired[bool]
    ended_by: NotRequired[str]


@dataclass(frozen=True)
class BadBatch:
    """A line of `bad_batches.jsonl`."""

    step: Step


class ImageReport(TypedDict):
    """An image of a prompt. `candidate` is its number among those drawn; only `dalle-mini generate` names a file."""

    score: float | None
    candidate: NotRequired[int]
    file: NotRequired[str]


class PromptReport(TypedDict):
    """A prompt's images, best first: `results.json` of `dalle-mini generate`, and a part of a run's."""

    prompt: str
    pictures: list[ImageReport]


class SampleReport(PromptReport):
    """A prompt's images at a step of a run. The files lie in the step's folder."""

    grid: Annotated[str, Meta(pattern=r"^[^/\\\0]{1,255}$")]
    thumb: Annotated[str, Meta(pattern=r"^thumbs/[0-9]{1,9}[.]webp$")]


class StepReport(TypedDict):
    """`results.json` of a step's samples."""

    step: Step
    prompts: list[SampleReport]


@dataclass(frozen=True)
class Saved:
    """`saved.json`: the last checkpoint that is known to be whole, and its folder."""

    step: Step
    checkpoints: str


@dataclass(frozen=True)
class WandbIdentity:
    """`wandb.json`: the run at wandb that goes on."""

    id: Annotated[str, Meta(min_length=1)]


def samples_folder(out: Path, step: int) -> Path:
    return out / SAMPLES / f"{step:08d}"


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of `log.jsonl`: steps and numbers. A line that a kill cut off is left out. No file: an empty list."""
    try:
        return [_numbers(record) for record, _ in json_lines(path, dict[str, Any]) if _is_step(record.get("step"))]
    except FileNotFoundError:
        return []


def _numbers(record: dict[str, Any]) -> dict[str, Any]:
    """The record without values that cannot be drawn as numbers."""
    odd = [name for name, value in record.items() if value is not None and not _is_number(value)]
    return {name: value for name, value in record.items() if name not in odd} if odd else record


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < HUGE


def _is_step(value: Any) -> bool:
    return type(value) is int and 0 <= value < HUGE


def append_record(out: Path, record: Mapping[str, Any]) -> None:
    """Write one line of the log of the run in `out`."""
    files.append(out / LOG, json.dumps(record) + "\n")


def drop_what_comes_after(out: Path, step: int) -> None:
    """Remove from the run in `out` the records and samples of later steps, which a resumed run makes again."""
    path = out / LOG
    if path.exists():
        with files.writing_whole(path, sync=False) as file:
            for record, line in json_lines(path, dict[str, Any]):
                if _is_step(record.get("step")) and record["step"] <= step:
                    file.write(line.rstrip() + b"\n")
    for folder in (out / SAMPLES).glob("*"):
        # Samples behind a link are not this run's.
        if folder.name.isdigit() and int(folder.name) > step and not (out / SAMPLES).is_symlink():
            shutil.rmtree(folder)


def read_samples(folder: Path) -> StepReport:
    """The `results.json` of a step's folder. Raises UserError where there is none that can be read."""
    return read_record(folder / RESULTS, StepReport)

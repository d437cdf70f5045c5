"""What a run writes of itself, as far as others look into it: the schemas that its files are checked against when read.

Fields that are not here are anybody's: newer versions may write more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, NotRequired, TypedDict

from msgspec import Meta

Step = Annotated[int, Meta(ge=0, le=2**53)]


class Settings(TypedDict, total=False):
    """A section of a run's settings; those that name another model may be asked for."""

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
    """What lies beside a checkpoint's arrays. `leaves` are type, shape and checksum of each, by name."""

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


class Picture(TypedDict):
    score: float | None


class PromptReport(TypedDict):
    """One prompt's samples, whose files lie in the step's folder."""

    prompt: str
    grid: Annotated[str, Meta(pattern=r"^[^/\\\0]{1,255}$")]
    thumb: Annotated[str, Meta(pattern=r"^thumbs/[0-9]{1,9}[.]webp$")]
    pictures: list[Picture]


class Report(TypedDict):
    """`results.json` of a step's samples."""

    step: Step
    prompts: list[PromptReport]


@dataclass(frozen=True)
class Saved:
    """`saved.json`: the last checkpoint that is known to be whole, and in which folder it lies."""

    step: Step
    checkpoints: str


@dataclass(frozen=True)
class WandbIdentity:
    """`wandb.json`: which run at wandb goes on."""

    id: Annotated[str, Meta(min_length=1)]

"""The objects that watch a run: the loop tells each of them about its events, in all processes alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jax
from etils import epath

from dalle_mini.errors import listed
from dalle_mini.training.run.folder import note_saved
from dalle_mini.training.tracking.tracker import Tracker

if TYPE_CHECKING:
    from dalle_mini.training.tracking.samples import Sample


class Callback:
    """One object that watches a run. The defaults do nothing; `done` is the number of updates so far."""

    def updated(self, done: int, metrics: dict[str, jax.Array], settle: bool) -> None:
        """An update was sent to the devices, and may still run.

        Args:
            settle: the state is about to be used, so the callback must wait for the metrics of all updates. Otherwise
                it should wait for those before this one only.
        """

    def logged(self, done: int, numbers: Mapping[str, float], pictures_per_second: float) -> None:
        """The metrics of an update are due for the log."""

    def evaluated(self, done: int, numbers: Mapping[str, float]) -> None:
        """The trainer has measured these numbers."""

    def drawn(self, done: int, samples: Sequence[Sample]) -> None:
        """The sampler has drawn these images, in the first process."""

    def saved(self, step: int, folder: epath.Path) -> None:
        """The checkpoint of a step is whole on disk."""

    def finished(self, steps: int, final: Path) -> str | None:
        """The weights are in `final`. Returns a warning for the user, or None."""


class TrackRun(Callback):
    """Writes everything to the log and the report, and sends checkpoints to wandb if it was asked for."""

    def __init__(self, tracker: Tracker):
        self.tracker = tracker

    def logged(self, done: int, numbers: Mapping[str, float], pictures_per_second: float) -> None:
        self.tracker.log(done, numbers, pictures_per_second)

    def evaluated(self, done: int, numbers: Mapping[str, float]) -> None:
        self.tracker.log(done, {f"eval_{name}": value for name, value in numbers.items()})

    def drawn(self, done: int, samples: Sequence[Sample]) -> None:
        self.tracker.samples(done, samples)

    def saved(self, step: int, folder: epath.Path) -> None:
        self.tracker.checkpoint(step, folder)

    def finished(self, steps: int, final: Path) -> None:
        self.tracker.checkpoint(steps, final, "model")


class NoteSaved(Callback):
    """Notes in the run's folder which checkpoint is the last whole one."""

    def __init__(self, out: Path):
        self.out = out

    def saved(self, step: int, folder: epath.Path) -> None:
        note_saved(self.out, step, folder.parent)


class CheckEvaluation(Callback):
    """Warns at the end where the last evaluation gave something that is no number."""

    def __init__(self):
        self.no_numbers: list[str] = []

    def evaluated(self, done: int, numbers: Mapping[str, float]) -> None:
        self.no_numbers = [f"eval_{name}" for name, value in numbers.items() if not math.isfinite(value)]

    def finished(self, steps: int, final: Path) -> str | None:
        if not self.no_numbers:
            return None
        return f"WARNING: {listed(self.no_numbers)} of the last evaluation is no number: look before you use it"

"""A run at Weights & Biases, https://docs.wandb.ai, from the start to the end and across restarts.

`WANDB_MODE=offline` needs no account; `wandb sync OUT/wandb/offline-run-*` sends such a run later.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dalle_mini.errors import UserError
from dalle_mini.runtime.files import reason, write_whole
from dalle_mini.runtime.installing import install_line
from dalle_mini.runtime.parsing import read_record
from dalle_mini.training.config.sections import TrackingConfig
from dalle_mini.training.records import WandbIdentity

if TYPE_CHECKING:
    from dalle_mini.training.tracking.samples import Sample

IDENTITY = "wandb.json"
COLUMNS: list[str | int] = ["step", "prompt", "rank", "candidate", "picture", "score"]


class WandbRun:
    """The wandb run that `Tracker` sends to. The first failure after the start is told, and nothing is sent afterwards.

    A run that goes back to a checkpoint sends the records past it again: curves are drawn over `step`.

    Args:
        out: the run's folder; `wandb.json` in it names the wandb run that is continued.
        tracking: the project, and whether checkpoints are sent.
        config, label: shown at wandb.
        resumed: training goes on from a checkpoint; then it does so although wandb is out of reach.
        say: tells the user a line.
    Raises:
        UserError: wandb is not installed, or a new run cannot be started.
    """

    def __init__(
        self,
        out: Path,
        tracking: TrackingConfig,
        config: Mapping[str, Any],
        label: str,
        *,
        resumed: bool,
        say: Callable[[str], None],
    ):
        try:
            import wandb
        except ImportError:
            raise UserError(
                f"tracking.wandb: wandb is not installed: {install_line('wandb')}, or leave the setting out"
            ) from None
        self._wandb, self._say, self._checkpoints = wandb, say, tracking.wandb_checkpoints
        self._run = None
        found = _read_identity(out / IDENTITY)
        try:
            self._run = wandb.init(
                project=tracking.wandb,
                id=found,  # None makes a new one
                resume="allow",
                name=out.resolve().name,
                job_type=label or None,
                dir=str(out),
                config=dict(config),
                settings=wandb.Settings(silent=True, console="off"),
            )
            self._run.define_metric("step")
            self._run.define_metric("*", step_metric="step")
        except Exception as error:
            if not resumed:
                raise UserError(
                    f"tracking.wandb: cannot start a run ({reason(error)}): log in with `wandb login`, "
                    "set WANDB_MODE=offline, or leave the setting out"
                ) from error
            self._give_up(error)
        else:
            identity = {"id": self._run.id, "project": tracking.wandb, "url": self._run.url}
            write_whole(out / IDENTITY, (json.dumps(identity, indent=2) + "\n").encode())

    def log(self, record: Mapping[str, Any]) -> None:
        """Send a record of `log.jsonl` without its nulls."""
        with self._unharmed() as run:
            if run is not None:
                run.log({name: value for name, value in record.items() if value is not None and name != "time"})

    def samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Send a table of all images, and a gallery of each prompt's first."""
        with self._unharmed() as run:
            if run is None:
                return
            table = self._wandb.Table(columns=COLUMNS)
            for sample in samples:
                scores: Sequence[float | None] = sample.scores or [None] * len(sample.images)
                for rank, (image, candidate, score) in enumerate(
                    zip(sample.images, sample.candidates, scores, strict=True), 1
                ):
                    table.add_data(step, sample.prompt, rank, candidate, self._wandb.Image(image), score)
            first = [self._wandb.Image(sample.images[0], caption=sample.prompt) for sample in samples]
            run.log({"step": step, "pictures": table, "best": first})

    def artifact(self, step: int, folder: str | Path, kind: str) -> None:
        """Send a folder, or a bucket's address, as a version of the artifact `<kind>-<run>`, if the settings say so."""
        if not self._checkpoints:
            return
        with self._unharmed() as run:
            if run is None:
                return
            artifact = self._wandb.Artifact(f"{kind}-{run.id}", type=kind, metadata={"step": step})
            if "://" in str(folder):
                artifact.add_reference(str(folder))
            else:
                artifact.add_dir(str(folder))  # copied at once: the folder may be deleted while it is sent
            run.log_artifact(artifact, aliases=["latest", f"step-{step}"])

    def close(self, failed: bool) -> None:
        with self._unharmed() as run:
            if run is not None:
                run.finish(exit_code=1 if failed else 0)

    @contextlib.contextmanager
    def _unharmed(self):
        """The run, or None after a failure. A failure within the block ends the sending."""
        try:
            yield self._run
        except Exception as error:  # whatever the client, the network or the service raise
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._run = None
        self._say(f"wandb failed, and this run continues without it: {reason(error)}")


def _read_identity(path: Path) -> str | None:
    try:
        return read_record(path, WandbIdentity).id
    except UserError:
        return None

"""Watches the losses of a run: a bad one ends the run, or is noted and left out (`loop.on_bad_loss`)."""

import json
import math
from collections import deque
from pathlib import Path

import jax

from dalle_mini.errors import UserError, listed
from dalle_mini.runtime import files
from dalle_mini.runtime.parsing import json_lines
from dalle_mini.training.config.sections import LoopConfig
from dalle_mini.training.engine.multihost import first_process_does
from dalle_mini.training.engine.trainer import Trainer
from dalle_mini.training.records import BadBatch
from dalle_mini.training.run.callbacks import Callback
from dalle_mini.training.tracking.tracker import Tracker

MOST_LEFT_OUT = 20  # updates in a row, under on_bad_loss=skip: it will not get better by itself
BAD_BATCHES = "bad_batches.jsonl"


class BadLoss(UserError):
    """The loss, or the parameters after the update, ended the run: in every process at the same step."""


class LossMonitor(Callback):
    """Looks at the loss of each update once it is known. The update itself has been left out by then.

    `updated` raises BadLoss where the run must end. While an update runs, it waits for the one before, so that the
    devices never wait for the host.
    """

    def __init__(self, trainer: Trainer, loop: LoopConfig, out: Path, tracker: Tracker):
        self.trainer, self.loop, self.out, self.tracker = trainer, loop, out, tracker
        self.in_a_row = 0
        self._unseen: deque[tuple[int, dict[str, jax.Array]]] = deque()

    def updated(self, done: int, metrics: dict[str, jax.Array], settle: bool) -> None:
        self._unseen.append((done, metrics))
        while len(self._unseen) > (0 if settle else 1):
            self._check(*self._unseen.popleft())

    def finished(self, steps: int, final: Path) -> str | None:
        if not self.in_a_row:
            return None
        return f"WARNING: the last {self.in_a_row} updates were left out; {self.out / BAD_BATCHES} has them"

    def _check(self, done: int, metrics: dict[str, jax.Array]) -> None:
        if not float(metrics["bad"]):  # waits for the device
            self.in_a_row = 0
            return
        self.in_a_row += 1
        rows = list(map(str, self.trainer.rows(done - 1)))
        first_process_does(lambda: self.tracker.write(lambda: self._note(done, metrics, rows)))
        complaint = f"{self._complaint(metrics)} at step {done}" + (f", on {listed(rows)}" if rows else "")
        where = f"{self.out / BAD_BATCHES} has the batch's keys" if rows else f"see {self.out / BAD_BATCHES}"
        if self.loop.on_bad_loss == "stop":
            raise BadLoss(
                f"{self.trainer.name}: {complaint} ({where}): start again in another folder, with a lower "
                "training.optimizer.learning_rate or more training.optimizer.warmup_steps, or continue with "
                "loop.on_bad_loss=skip, which leaves such updates out"
            )
        self.tracker.say(f"{complaint}: its update is left out ({where})")
        if self.in_a_row >= MOST_LEFT_OUT:
            raise BadLoss(
                f"{self.trainer.name}: {self.in_a_row} updates in a row had to be left out, the last: {complaint}"
            )

    def _complaint(self, metrics: dict[str, jax.Array]) -> str:
        loss, norm = float(metrics["loss"]), float(metrics["grad_norm"])
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(norm):
            return f"the gradient's norm is {norm}"
        if not math.isfinite(float(metrics["param_norm"])):
            return f"the update makes the parameters' norm {float(metrics['param_norm'])}"
        return f"the loss of {loss:.4g} is more than {self.loop.spike:g} times the mean of those before"

    def _note(self, done: int, metrics: dict[str, jax.Array], rows: list[str]) -> None:
        """Write one line a step, however often a resumed run comes by."""
        path = self.out / BAD_BATCHES
        lines = [line for found, line in json_lines(path, BadBatch) if found.step < done] if path.exists() else []
        loss, norm = (repr(float(metrics[name])) for name in ("loss", "grad_norm"))
        line = json.dumps({"step": done, "loss": loss, "grad_norm": norm, "rows": rows})
        files.write_whole(path, b"".join([*lines, line.encode(), b"\n"]))

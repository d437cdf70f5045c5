"""Tells whether the run was asked to stop, or must save: the same answer in all processes at the same step."""

import time

import jax

from dalle_mini.training.engine.multihost import RequestSync
from dalle_mini.training.run.preemption import Preemption


class StopRequested(Exception):
    """The run was asked to stop while it evaluated."""


class StopRequests:
    """Asks all processes between steps whether one of them was told to stop, or has reached the time to save.

    Attributes:
        code: the exit code that is due; 0 as long as nobody asked.
        notice: this process's own.
    """

    def __init__(self, notice: Preemption, checkpoint_minutes: float):
        self.code, self.notice = 0, notice
        self._sync, self._owed = RequestSync(), False
        self._seconds, self._saved_at = 60 * checkpoint_minutes, time.monotonic()

    def restart_clock(self) -> None:
        """The next save is due `checkpoint_minutes` from now."""
        self._saved_at = time.monotonic()

    def save_is_due(self) -> bool:
        """Whether a checkpoint is due. Call it once after each update."""
        # Only process 0 has a clock, and every process hears signals.
        now = time.monotonic()
        time_to_save = jax.process_index() == 0 and now - self._saved_at > self._seconds
        if time_to_save:
            self._saved_at = now
        due = self._ask(time_to_save) or self._owed
        self._owed = False
        return due

    def check(self) -> None:
        """Raises StopRequested where the run was asked to stop. A save that comes due meanwhile waits for the step."""
        self._owed = self._ask(False) or self._owed
        if self.code:
            raise StopRequested

    def _ask(self, time_to_save: bool) -> bool:
        self.code, due = self._sync(self.notice.code, int(time_to_save))
        return bool(due)

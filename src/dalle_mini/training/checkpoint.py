"""Checkpoints of a run, by Orbax: written beside and renamed, the last few kept."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from dalle_mini.errors import UserError

logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax reports every save as a warning


class Checkpoints:
    """The checkpoints of a run, `folder/<step>/`. Saves are asynchronous: the next step goes on meanwhile."""

    def __init__(self, folder: str | Path, keep: int = 2):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self.folder = Path(folder).absolute()
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def save(self, step: int, state: Any) -> None:
        if step not in self._manager.all_steps():
            self._manager.save(step, args=ocp.args.StandardSave(state))

    def restore(self, like: Any) -> Any | None:
        """The newest checkpoint with the structure and shapes of `like`, or None where there is none.

        A newer one that cannot be read although an older one can (a full disk, say) is reported and deleted.
        Raises UserError when none can: they are damaged, or were made with another configuration.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        failures: dict[int, Exception] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                state = self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
            except Exception as error:  # what Orbax raises on a damaged file is any of many types
                failures[step] = error
                continue
            for broken in failures:
                print(f"{self.folder / str(broken)}: damaged, going back to step {step}", file=sys.stderr)
                self._manager.delete(broken)  # Orbax would not save a step before it
            return state
        if not failures:
            return None
        step, error = next(iter(failures.items()))
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{self.folder / str(step)}: does not fit this run's configuration, or is damaged; "
            f"continue it with the one it was started with, or choose another output folder ({reason})"
        ) from error

    def close(self) -> None:
        """Wait for the last save to be on disk."""
        self._manager.wait_until_finished()
        self._manager.close()

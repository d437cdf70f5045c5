"""Checkpoints of a run, by Orbax: written beside and renamed, the last few kept."""

from __future__ import annotations

import logging
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
        """The newest checkpoint with the structure, shapes and types of `like`, or None where there is none.

        Raises UserError when the newest one was made with another configuration.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        try:
            return self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self.folder / str(step)}: does not fit this run's configuration; "
                f"continue it with the one it was started with, or choose another output folder "
                f"({str(error).splitlines()[0]})"
            ) from error

    def close(self) -> None:
        """Wait for the last save to be on disk."""
        self._manager.wait_until_finished()
        self._manager.close()

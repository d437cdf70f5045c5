"""Writes the weights that a run ends with, `final`, and tells whether an earlier checkpoint was better."""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from dalle_mini.errors import UserError
from dalle_mini.runtime import files
from dalle_mini.training.engine.multihost import first_process_does
from dalle_mini.training.engine.trainer import Trainer, TrainState


def write_final(trainer: Trainer, state: TrainState, folder: Path) -> None:
    """Have the trainer write its weights: whole or not at all, even where older ones are replaced.

    Raises:
        UserError: they cannot be written.
    """
    place = [folder]

    def begin() -> None:
        place.append(until_written.enter_context(files.written_beside(folder)))

    try:
        with contextlib.ExitStack() as until_written:
            first_process_does(begin)
            trainer.export(state, place[-1])  # the others only take part in gathering
            first_process_does(until_written.close)
    except (OSError, UserError) as error:
        raise UserError(
            f"{folder}: cannot be written ({files.reason(error)}): make room or mend the folder, and run the same "
            "command again"
        ) from error


def not_the_best(losses: Mapping[int, float], last: int, final: Path, checkpoints: str | os.PathLike) -> str | None:
    """A warning where an earlier checkpoint had a lower evaluation loss than the weights that the run ends with.

    Args:
        losses: the evaluation losses of the checkpoints there are, by step; the last step may have none.
        last: the step of `final`.
        final, checkpoints: the folders.
    """
    best = min(losses, key=losses.__getitem__, default=last)
    if last not in losses or losses[best] >= losses[last]:
        return None
    return (
        f"WARNING: {final} has a higher evaluation loss ({losses[last]:.6g}) than step {best} ({losses[best]:.6g}): "
        f"`dalle-mini convert {checkpoints}/{best} FOLDER` writes the weights of that step"
    )

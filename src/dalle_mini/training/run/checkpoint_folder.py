"""Where checkpoints lie, and their contents for others: a run's settings, and its parameters alone.

A folder is a run's own, its `checkpoints` (local or in a bucket), or one checkpoint.
"""

import os
from typing import Any

from etils import epath

from dalle_mini.errors import UserError
from dalle_mini.runtime.paths import is_address, local
from dalle_mini.training.run.checkpoint_reading import (
    RECORD,
    Damaged,
    Unreadable,
    flatten,
    newest_whole,
    read_record,
    short_reason,
    unflatten,
)


def restore_parameters(folder: str | epath.PathLike, like: Any) -> Any:
    """The parameters alone, for fine-tuning, from the newest whole checkpoint of a run.

    If the run keeps a running mean of its parameters, the mean: the run evaluates it, and ends with it.

    Args:
        folder: a run's folder, its `checkpoints`, or one checkpoint.
        like: arrays or `jax.ShapeDtypeStruct`s; the result has their shapes, types and shardings.

    Raises:
        UserError: there is no whole checkpoint, or its parameters are others.
    """
    folder, steps = _checkpoints_of(folder)
    leaves = (_newest_record(folder, steps) or {}).get("leaves", ())
    group = "ema/" if any(name.startswith("ema/") for name in leaves) else "params/"
    wanted = {group + name: leaf for name, leaf in flatten(like).items()}
    arrays, _, _ = newest_whole(folder, steps, wanted, among=None, advice="start from a run of the same model")
    if arrays is None:
        raise UserError(f"{folder}: no checkpoint there, so no parameters to start from")
    return unflatten(like, {name.removeprefix(group): array for name, array in arrays.items()})


def holds_checkpoints(folder: str | epath.PathLike) -> bool:
    """Whether `restore_parameters` would look for checkpoints in `folder`."""
    folder = absolute(folder)
    return bool(steps_in(folder) or steps_in(folder / "checkpoints") or (folder / RECORD).exists())


def recorded_config(folder: str | epath.PathLike) -> dict[str, Any] | None:
    """The `config` of the newest record that can be read, or None; `folder` as in `restore_parameters`."""
    return (_newest_record(*_checkpoints_of(folder)) or {}).get("config")


def _newest_record(folder: epath.Path, steps: list[int]) -> dict[str, Any] | None:
    for step in reversed(steps):
        try:
            return read_record(folder / str(step))
        except Damaged:
            continue
        except Unreadable as error:
            raise UserError(f"{folder / str(step)}: cannot be read ({error}); it may be whole") from error
    return None


def _checkpoints_of(folder: str | epath.PathLike) -> tuple[epath.Path, list[int]]:
    """The folder that holds the checkpoints, and their steps; `folder` as in `restore_parameters`."""
    folder = absolute(folder)
    if (folder / RECORD).exists():
        if not folder.name.isdigit() and not is_address(folder):
            folder = epath.Path(os.path.realpath(folder))  # it may be a link
        if not folder.name.isdigit():
            raise UserError(f"{folder}: a checkpoint's folder is called by its step: rename it back")
        return folder.parent, [int(folder.name)]
    folder = folder / "checkpoints" if (folder / "checkpoints").exists() else folder
    return folder, steps_in(folder)


def absolute(folder: str | epath.PathLike) -> epath.Path:
    """An absolute path, as Orbax wants it."""
    return epath.Path(local(os.fspath(folder)))


def steps_in(folder: epath.Path) -> list[int]:
    """The steps of the checkpoints in a folder, the first one first."""
    try:
        return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdigit()) if folder.exists() else []
    except Exception as error:  # a bucket's client has errors of its own
        raise UserError(f"{folder}: cannot be read ({short_reason(error)})") from error

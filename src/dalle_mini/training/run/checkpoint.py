"""Checkpoints of a run, by Orbax: written beside and renamed, kept by a policy, and checked to the bit when read.

    FOLDER/<step>/state/    the arrays of the train state, each under its name in the tree
                  record/   what the run was at that step, and a checksum of each array
           damaged-<step>/  one that could not be read, put aside for whoever wants to know why

Orbax and the disk below it give back a flipped bit as readily as a right one (it was tried: 11 times out of 12), and
cast arrays of another type. So nothing is used before its checksums, shapes and types are those of the record.
"""

from __future__ import annotations

import contextlib
import functools
import math
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as managers

from dalle_mini.errors import UserError
from dalle_mini.runtime import files
from dalle_mini.training.engine.multihost import all_agree, first_process_does
from dalle_mini.training.run.checkpoint_folder import absolute
from dalle_mini.training.run.checkpoint_reading import (
    RECORD,
    STATE,
    Damaged,
    Unreadable,
    digest,
    flatten,
    kind_of,
    newest_whole,
    read_record,
    short_reason,
    unflatten,
    warn,
)
from dalle_mini.training.run.checksums import checksums

if TYPE_CHECKING:
    from dalle_mini.training.run.ownership import Claim

HALF_WRITTEN = ".orbax-checkpoint-tmp"


class Checkpoints:
    """The checkpoints of a run in `folder`, local or `gs://`. Saves are asynchronous: the next step goes on meanwhile.

    It keeps the last `keep` checkpoints, one for every `keep_hours` hours (0: none besides), and the one with the
    lowest evaluation loss. In several processes all of them make every call, and `folder` must be one that all of them
    see. The `claim` tells which run owns the folder: another run's checkpoints are neither restored nor pruned.

    Raises:
        UserError: the folder cannot be written, another process sees another folder, or it is another run's.
    """

    def __init__(
        self, folder: str | epath.PathLike, keep: int = 2, keep_hours: float = 0.0, claim: Claim | None = None
    ):
        self._claim = claim
        self.folder = absolute(folder)
        first_process_does(self._prepare)
        if not all_agree(self.folder.exists()):
            raise UserError(f"{self.folder}: every process must see this folder; put it on a shared disk or a bucket")
        self.eval_losses: dict[int, float] = {}
        policies = [managers.LatestN(keep), _Lowest(self.eval_losses)]
        if keep_hours:
            policies.append(managers.EveryNSeconds(interval_secs=int(3600 * keep_hours)))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=managers.AnyPreservationPolicy(policies),
            single_host_load_and_broadcast=True,
            cleanup_tmp_directories=True,
            create=False,
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)
        runs = {step: self._remember(step) for step in self.steps}
        if claim is not None:
            claim.check_saved(runs)

    @property
    def steps(self) -> list[int]:
        """The steps of the checkpoints that are there, whole or not, in order."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, record: dict[str, Any], eval_loss: float | None = None) -> None:
        """Save `state` as it is now, in the background; `record` is JSON to keep beside it.

        Raises:
            UserError: this save or the one before it failed. Earlier checkpoints stay as they are.
        """
        if step in self.steps:
            return
        if self._claim is not None:
            self._claim.check()  # saving prunes, too
        arrays = flatten(state)
        sums = checksums(arrays)
        leaves = {name: [*kind_of(leaf), total] for (name, leaf), total in zip(arrays.items(), sums, strict=True)}
        body = {**record, "step": step, "eval_loss": eval_loss, "leaves": leaves}
        self.evaluated(step, eval_loss)
        args = ocp.args.Composite(
            **{STATE: ocp.args.PyTreeSave(arrays), RECORD: ocp.args.JsonSave({"body": body, "sha256": digest(body)})}
        )
        with self._in_one_line():
            self._manager.save(step, args=args)

    def evaluated(self, step: int, loss: float | None) -> None:
        """Note the evaluation loss of a checkpoint, which may have been saved before it was known."""
        if loss is not None and math.isfinite(loss):
            self.eval_losses[step] = loss

    def restore(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """The newest checkpoint that is whole, in the structure and shardings of `like`, and its record; or None.

        Newer ones that are damaged are named and put aside.

        Raises:
            UserError: all are damaged, or the newest whole one has other arrays, shapes or types than `like`.
        """
        wanted = flatten(like)
        arrays, record, damaged = newest_whole(self.folder, self.steps, wanted, set(wanted))
        if arrays is None:
            return None
        for step in damaged:  # Orbax would save no step before it
            first_process_does(functools.partial(self._put_aside, step))
            self.eval_losses.pop(step, None)
        if damaged:
            self._manager.reload()
        return unflatten(like, arrays), record

    def check(self) -> None:
        """Raise UserError if a save in the background has failed."""
        with self._in_one_line():
            self._manager.check_for_errors()

    def wait(self) -> None:
        """Wait until the last save is on disk. Raises UserError if it has failed."""
        with self._in_one_line():
            self._manager.wait_until_finished()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind, error, traceback) -> None:
        """Wait for the last save to be on disk, and raise UserError if it is not."""
        if error is None:
            with self._in_one_line():
                self._manager.close()
        elif jax.process_count() == 1:  # of several, the others may never come to where this one would wait for them
            with contextlib.suppress(Exception):
                self._manager.close()

    def _prepare(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if "://" in str(self.folder):
                (self.folder / ".probe").write_text("")  # it stays: in a bucket an empty folder is none
            else:
                with files.work_folder(Path(self.folder) / "probe"):
                    pass
            for entry in self.folder.iterdir():
                if entry.name.endswith(HALF_WRITTEN):
                    warn(f"{entry}: half-written, removed")
        except Exception as error:  # a bucket's client has errors of its own
            raise UserError(f"{self.folder}: cannot write there ({short_reason(error)})") from error

    def _remember(self, step: int) -> str | None:
        """Note the evaluation loss of a checkpoint that is there. Returns the id of the run that saved it, or None."""
        try:
            record = read_record(self.folder / str(step))
        except (Damaged, Unreadable):  # `restore` reports it
            return None
        self.evaluated(step, record["eval_loss"])
        return (record.get("config") or {}).get("run")

    def _put_aside(self, step: int) -> None:
        aside = self.folder / f"damaged-{step}"
        if aside.exists():
            aside.rmtree()
        (self.folder / str(step)).rename(aside)

    @contextlib.contextmanager
    def _in_one_line(self) -> Iterator[None]:
        """Turn what a failing save raises into a UserError."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            # Orbax leaves what it had not begun to write, of which Python would complain line by line.
            warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
            whole = sorted(int(entry.name) for entry in self.folder.iterdir() if entry.name.isdigit())
            kept = f"that of step {whole[-1]} is whole" if whole else "there is none yet"
            raise UserError(
                f"{self.folder}: a checkpoint could not be saved ({short_reason(error)}); {kept}: "
                "make room or mend the folder, and run the same command again"
            ) from error


class _Lowest:
    """Orbax's policy interface: preserve the checkpoint of the lowest evaluation loss."""

    def __init__(self, losses: dict[int, float]):
        self.losses = losses

    def should_preserve(self, checkpoints: Iterable[Any], *, context: Any) -> list[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        known = [step for step in steps if step in self.losses]
        best = min(known, key=self.losses.__getitem__) if known else None
        return [step == best for step in steps]

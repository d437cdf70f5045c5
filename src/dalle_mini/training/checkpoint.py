"""Checkpoints of a run, by Orbax: written beside and renamed, kept by a policy, and checked to the bit when read.

    FOLDER/<step>/state/    the arrays of the train state, each under its name in the tree
                  record/   what the run was at that step, and a checksum of each array
           damaged-<step>/  one that could not be read, put aside for whoever wants to know why

Orbax and the disk below it give back a flipped bit as readily as a right one (it was tried: 11 times out of 12), and
cast arrays of another type. So nothing is used before its checksums, shapes and types are those of the record.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import hashlib
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint import checkpoint_managers as managers

from dalle_mini.errors import UserError, listed
from dalle_mini.runtime import console, files
from dalle_mini.runtime.limits import limits
from dalle_mini.runtime.parsing import check, parse_json
from dalle_mini.runtime.paths import is_address, local
from dalle_mini.training.agreement import all_agree, first_process_does
from dalle_mini.training.checksums import checksums
from dalle_mini.training.orbax_noise import quiet_reading
from dalle_mini.training.records import CheckpointRecord

if TYPE_CHECKING:
    from dalle_mini.training.ownership import Claim

STATE, RECORD = "state", "record"
HALF_WRITTEN = ".orbax-checkpoint-tmp"
CONTINUE = "continue it with the one it was started with, or choose another output folder"

Arrays = dict[str, jax.Array]  # by name: "params/encoder/layers/fc1/kernel"


class Damaged(Exception):
    """A checkpoint that is not what was written."""


class Unreadable(Exception):
    """A checkpoint that may be whole, and cannot be read now: no permission, no memory, no network."""


# Of the system's errors and of TensorStore's, which have no types of their own.
HINDRANCES = (
    *("PERMISSION_DENIED", "UNAUTHENTICATED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"),
    *map(os.strerror, (errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE)),
)


def warn(text: str) -> None:
    if jax.process_index() == 0:
        console.say(text)


class Checkpoints:
    """The checkpoints of a run in `folder`, local or `gs://`. Saves are asynchronous: the next step goes on meanwhile.

    Kept are the last `keep`, one for every `keep_hours` hours (0: none besides), and the one of the lowest evaluation
    loss. In several processes all of them make every call, and `folder` must be one that all of them see. The `claim`
    tells whose the folder is: what belongs to another run is neither restored nor pruned.

    Raises UserError where the folder cannot be written, or is another one in another process, or another run's.
    """

    def __init__(
        self, folder: str | epath.PathLike, keep: int = 2, keep_hours: float = 0.0, claim: Claim | None = None
    ):
        self._claim = claim
        self.folder = _path(folder)
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
        """Of the checkpoints there are, whole or not, in order."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, record: dict[str, Any], eval_loss: float | None = None) -> None:
        """Save what `state` is now, in the background; `record` is JSON to keep beside it.

        Raises UserError where this save or the one before it fails; what was saved earlier stays as it is.
        """
        if step in self.steps:
            return
        if self._claim is not None:
            self._claim.check()  # saving prunes, too
        arrays = flatten(state)
        sums = checksums(arrays)
        leaves = {name: [*_kind(leaf), total] for (name, leaf), total in zip(arrays.items(), sums, strict=True)}
        body = {**record, "step": step, "eval_loss": eval_loss, "leaves": leaves}
        self.evaluated(step, eval_loss)
        args = ocp.args.Composite(
            **{STATE: ocp.args.PyTreeSave(arrays), RECORD: ocp.args.JsonSave({"body": body, "sha256": _digest(body)})}
        )
        with self._in_one_line():
            self._manager.save(step, args=args)

    def evaluated(self, step: int, loss: float | None) -> None:
        """The evaluation loss of a checkpoint, which may come to be known after it was saved."""
        if loss is not None and math.isfinite(loss):
            self.eval_losses[step] = loss

    def restore(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """The newest checkpoint that is whole, in the structure and shardings of `like`, and its record; or None.

        Newer ones that are damaged are named and put aside. Raises UserError where all are damaged, or where the newest
        whole one has other arrays, shapes or types than `like`.
        """
        wanted = flatten(like)
        arrays, record, damaged = newest_whole(self.folder, self.steps, wanted, set(wanted))
        if arrays is None:
            return None
        for step in damaged:  # Orbax would save no step before it
            first_process_does(lambda step=step: self._put_aside(step))
            self.eval_losses.pop(step, None)
        if damaged:
            self._manager.reload()
        return unflatten(like, arrays), record

    def check(self) -> None:
        """Raise UserError if a save in the background has failed."""
        with self._in_one_line():
            self._manager.check_for_errors()

    def wait(self) -> None:
        """Until the last save is on disk. Raises UserError if it has failed."""
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
            raise UserError(f"{self.folder}: cannot write there ({_reason(error)})") from error

    def _remember(self, step: int) -> str | None:
        """The evaluation loss of a checkpoint that is there; returns the id of the run that saved it, if it has one."""
        try:
            record = read_record(self.folder / str(step))
        except (Damaged, Unreadable):  # which `restore` tells
            return None
        self.evaluated(step, record["eval_loss"])
        return (record.get("config") or {}).get("run")

    def _put_aside(self, step: int) -> None:
        aside = self.folder / f"damaged-{step}"
        if aside.exists():
            aside.rmtree()
        (self.folder / str(step)).rename(aside)

    def _in_one_line(self) -> _SaveErrors:
        return _SaveErrors(self.folder)


class _SaveErrors:
    """Turns what a failing save raises into a UserError."""

    def __init__(self, folder: epath.Path):
        self.folder = folder

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if isinstance(error, Exception) and not isinstance(error, UserError):
            # Orbax leaves what it had not begun to write, of which Python would complain line by line.
            warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
            whole = sorted(int(entry.name) for entry in self.folder.iterdir() if entry.name.isdigit())
            kept = f"that of step {whole[-1]} is whole" if whole else "there is none yet"
            raise UserError(
                f"{self.folder}: a checkpoint could not be saved ({_reason(error)}); {kept}: "
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


def restore_parameters(folder: str | epath.PathLike, like: Any) -> Any:
    """Only the parameters, for fine-tuning: of the newest whole checkpoint of the run in `folder`, shaped as `like`.

    Where the run keeps a running mean of them, that: it is what was evaluated, and what the run ends with.

    `folder` is a run's, its `checkpoints`, or one checkpoint. `like` holds arrays or `jax.ShapeDtypeStruct`s; their
    shardings are those of the result. Raises UserError where there is no whole checkpoint, or its parameters are
    others.
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
    folder = _path(folder)
    return bool(_steps_in(folder) or _steps_in(folder / "checkpoints") or (folder / RECORD).exists())


def recorded_config(folder: str | epath.PathLike) -> dict[str, Any] | None:
    """The `config` of the newest record that can be read, or None; `folder` is as of `restore_parameters`."""
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
    """The folder that holds checkpoints and their steps, of a run, of its `checkpoints`, or of one checkpoint."""
    folder = _path(folder)
    if (folder / RECORD).exists():
        if not folder.name.isdigit() and not is_address(folder):
            folder = epath.Path(os.path.realpath(folder))  # it may be a link
        if not folder.name.isdigit():
            raise UserError(f"{folder}: a checkpoint's folder is called by its step: rename it back")
        return folder.parent, [int(folder.name)]
    folder = folder / "checkpoints" if (folder / "checkpoints").exists() else folder
    return folder, _steps_in(folder)


def _path(folder: str | epath.PathLike) -> epath.Path:
    """As Orbax wants it: absolute."""
    return epath.Path(local(os.fspath(folder)))


def _steps_in(folder: epath.Path) -> list[int]:
    try:
        return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdigit()) if folder.exists() else []
    except Exception as error:  # a bucket's client has errors of its own
        raise UserError(f"{folder}: cannot be read ({_reason(error)})") from error


@quiet_reading()
def newest_whole(
    folder: epath.Path, steps: list[int], wanted: Arrays, among: set[str] | None, advice: str = CONTINUE
) -> tuple[Arrays | None, dict[str, Any], list[int]]:
    """(the wanted arrays of the newest checkpoint that is whole in every process, its record, damaged newer ones).

    `among` are the names that it must have and no others; None asks for the wanted ones only, whatever else there is.
    None for the arrays where there are no checkpoints; UserError where there are, but none is whole.
    """
    damaged: dict[int, str] = {}
    for step in sorted(steps, reverse=True):
        path = folder / str(step)
        record, reason = _read_together(path, lambda path=path: read_record(path))
        if all_agree(not reason):
            _check_same(path, record, wanted, among, advice)
            arrays, reason = _read_together(path, lambda path=path: _read(path, wanted))
            if all_agree(not reason):  # the sums are made together
                sums = zip(arrays, checksums(arrays), strict=True)
                broken = [name for name, total in sums if total != record["leaves"][name][2]]
                if not broken:
                    if damaged:
                        warn(f"{folder}: going back to step {step}")
                    return arrays, record, list(damaged)
                reason = f"{listed(broken, 3)}: other bits than were saved"
        damaged[step] = reason or "another process cannot read it"
        warn(f"{path}: damaged ({damaged[step]})")
    if damaged and among is None:
        raise UserError(f"{folder}: {listed(map(str, damaged))}: damaged; put back a copy, or name another checkpoint")
    if damaged:
        raise UserError(
            f"{folder}: {listed(map(str, damaged))}: every checkpoint there is damaged; put back a copy, "
            "or begin anew in another folder"
        )
    return None, {}, []


def _read_together(path: epath.Path, read: Callable[[], Any]) -> tuple[Any, str]:
    """(what `read` gives, why the checkpoint is damaged, or ""), each process its own.

    Raises UserError in all processes where one of them cannot read it now.
    """
    found, damage, hindrance = None, "", ""
    try:
        found = read()
    except Damaged as error:
        damage = str(error)
    except Unreadable as error:
        hindrance = str(error)
    if not all_agree(not hindrance):
        raise UserError(
            f"{path}: cannot be read ({hindrance or 'by another process'}); it may be whole: see to that, and run the "
            "same command again"
        )
    return found, damage


def _hindrance(error: BaseException) -> str | None:
    """Why what raised it cannot be read now, where the checkpoint may be whole."""
    for one in (error, error.__cause__, error.__context__):
        is_one = isinstance(one, (MemoryError, ConnectionError, TimeoutError))
        if is_one or any(text in str(one) for text in HINDRANCES):
            no_memory = "there is not enough memory" if isinstance(one, MemoryError) else None
            return no_memory or getattr(one, "strerror", None) or _reason(one)
    return None


def read_record(path: epath.Path) -> dict[str, Any]:
    """What is kept beside the arrays of the checkpoint at `path`. Raises Damaged, or Unreadable."""
    try:
        found = check(parse_json(_bytes(path / RECORD / "metadata")), dict[str, Any])
        if found["sha256"] != _digest(found["body"]):
            raise Damaged("its record has other bits than were saved")
        body = check(found["body"], CheckpointRecord)
    except FileNotFoundError:
        raise Damaged("its record with the checksums is missing") from None
    except Damaged:
        raise
    except Exception as error:  # a bucket's client has errors of its own
        if hindrance := _hindrance(error):
            raise Unreadable(hindrance) from error
        raise Damaged(f"its record cannot be read: {_reason(error)}") from error
    if str(body["step"]) != path.name:
        raise Damaged(f"it is the checkpoint of step {body['step']}")
    return body


def _bytes(path: epath.Path) -> bytes:
    most = limits().json_bytes
    if "://" not in str(path):
        return files.read_bytes(path, most)
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"it is larger than {files.in_units(most)}")
    return data


def _read(path: epath.Path, wanted: Arrays) -> Arrays:
    # Through the handler alone: a Checkpointer makes the processes wait for each other, and one may have failed.
    here = SingleDeviceSharding(jax.local_devices()[0])
    like = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or here)
        for name, leaf in wanted.items()
    }
    restore_args = ocp.checkpoint_utils.construct_restore_args(like)
    args = ocp.args.PyTreeRestore(item=like, restore_args=restore_args, partial_restore=True)
    try:
        arrays = ocp.PyTreeCheckpointHandler().restore(path / STATE, args=args)
        absent = [name for name in wanted if not isinstance(arrays.get(name), jax.Array)]  # Orbax passes over these
        if not absent:
            return {name: arrays[name] for name in wanted}
        reason = f"{listed(absent, 3)}: not in it"
    except Exception as error:  # what Orbax and TensorStore raise on a damaged file is any of many types
        reason, hindrance = _reason(error.__cause__ or error), _hindrance(error)
    else:
        hindrance = None
    gc.collect()
    time.sleep(0.3)  # for the other arrays' reads to end
    gc.collect()
    raise Unreadable(hindrance) if hindrance else Damaged(reason)


def _check_same(path: epath.Path, record: dict[str, Any], wanted: Arrays, among: set[str] | None, advice: str) -> None:
    leaves = record["leaves"]
    missing = sorted({*wanted} - {*leaves})
    further = sorted({*leaves} - among) if among is not None else []
    other = [
        f"{name} ({' '.join(map(str, leaves[name][:2]))} there, {' '.join(map(str, _kind(leaf)))} here)"
        for name, leaf in wanted.items()
        if name in leaves and leaves[name][:2] != _kind(leaf)
    ]
    differences = [*other, *(f"{name} (not there)" for name in missing), *(f"{name} (only there)" for name in further)]
    if differences:
        raise UserError(f"{path}: does not fit this run's configuration: {listed(differences, 3)}; {advice}")


def flatten(tree: Any) -> Arrays:
    """The leaves by name, `params/encoder/...`; empty subtrees leave nothing."""
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def unflatten(like: Any, arrays: Arrays) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: arrays[_name(path)], like)


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _kind(leaf: Any) -> list:
    return [str(leaf.dtype), list(leaf.shape)]


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _reason(error: BaseException) -> str:
    for known in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO):
        if os.strerror(known) in str(error):
            return os.strerror(known)
    return ((str(error).splitlines() or [""])[0] or type(error).__name__)[:160]

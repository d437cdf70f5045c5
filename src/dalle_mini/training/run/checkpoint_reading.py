"""Reads one checkpoint: the result is its arrays to the bit, or that it is damaged, or that it cannot be read now.

Nothing is used before its checksums, shapes and types are those of the record. A damaged checkpoint is named and passed
over. One that may be whole (no permission, no memory, no network) ends the run instead, in all processes alike.
"""

import errno
import functools
import gc
import hashlib
import json
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import SingleDeviceSharding

from dalle_mini.errors import UserError, listed
from dalle_mini.runtime import console, files
from dalle_mini.runtime.limits import limits
from dalle_mini.runtime.parsing import check, parse_json
from dalle_mini.training.engine.multihost import all_agree
from dalle_mini.training.records import CheckpointRecord
from dalle_mini.training.run.checksums import checksums
from dalle_mini.training.run.orbax_noise import quiet_reading

STATE, RECORD = "state", "record"
CONTINUE = "continue it with the one it was started with, or choose another output folder"

Arrays = dict[str, jax.Array]  # by name: "params/encoder/layers/fc1/kernel"


class Damaged(Exception):
    """The checkpoint has other content than was written."""


class Unreadable(Exception):
    """The checkpoint may be whole, and cannot be read now: no permission, no memory, no network."""


# Words in the system's errors and in TensorStore's, which have no types of their own.
HINDRANCES = (
    *("PERMISSION_DENIED", "UNAUTHENTICATED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"),
    *map(os.strerror, (errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE)),
)


def warn(text: str) -> None:
    if jax.process_index() == 0:
        console.say(text)


@quiet_reading()
def newest_whole(
    folder: epath.Path, steps: list[int], wanted: Arrays, among: set[str] | None, advice: str = CONTINUE
) -> tuple[Arrays | None, dict[str, Any], list[int]]:
    """(the wanted arrays of the newest checkpoint that is whole in every process, its record, damaged newer ones).

    The arrays are None where there are no checkpoints.

    Args:
        among: the names that the checkpoint must have, and no others; None allows any besides the wanted ones.
        advice: for the user, where it does not fit.

    Raises:
        UserError: there are checkpoints but none is whole, one cannot be read now, or it does not fit.
    """
    damaged: dict[int, str] = {}
    for step in sorted(steps, reverse=True):
        path = folder / str(step)
        record, reason = _read_together(path, functools.partial(read_record, path))
        if all_agree(not reason):
            _check_same(path, record, wanted, among, advice)
            arrays, reason = _read_together(path, functools.partial(_read, path, wanted))
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
            "or start again in another folder"
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
    """Why the checkpoint cannot be read now, in words, if `error` means that it may be whole; else None."""
    for one in (error, error.__cause__, error.__context__):
        if one is None:
            continue
        is_one = isinstance(one, (MemoryError, ConnectionError, TimeoutError))
        if is_one or any(text in str(one) for text in HINDRANCES):
            no_memory = "there is not enough memory" if isinstance(one, MemoryError) else None
            return no_memory or getattr(one, "strerror", None) or short_reason(one)
    return None


def read_record(path: epath.Path) -> dict[str, Any]:
    """The record beside the arrays of the checkpoint at `path`. Raises Damaged, or Unreadable."""
    try:
        found = check(parse_json(_bytes(path / RECORD / "metadata")), dict[str, Any])
        if found["sha256"] != digest(found["body"]):
            raise Damaged("its record has other bits than were saved")
        body = check(found["body"], CheckpointRecord)
    except FileNotFoundError:
        raise Damaged("its record with the checksums is missing") from None
    except Damaged:
        raise
    except Exception as error:  # a bucket's client has errors of its own
        if hindrance := _hindrance(error):
            raise Unreadable(hindrance) from error
        raise Damaged(f"its record cannot be read: {short_reason(error)}") from error
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
    except Exception as error:  # on a damaged file Orbax and TensorStore raise any of many types
        reason, hindrance = short_reason(error.__cause__ or error), _hindrance(error)
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
        f"{name} ({' '.join(map(str, leaves[name][:2]))} there, {' '.join(map(str, kind_of(leaf)))} here)"
        for name, leaf in wanted.items()
        if name in leaves and leaves[name][:2] != kind_of(leaf)
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


def kind_of(leaf: Any) -> list:
    return [str(leaf.dtype), list(leaf.shape)]


def digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def short_reason(error: BaseException) -> str:
    for known in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO):
        if os.strerror(known) in str(error):
            return os.strerror(known)
    return files.reason(error)[:160]

"""A run's folder: who holds it, and whether the run there may be continued.

`config.json` holds all settings that the run was started with.
"""

import contextlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from dalle_mini.addresses import hidden, without_secrets
from dalle_mini.errors import UserError
from dalle_mini.runtime import files
from dalle_mini.runtime.hashing import short_hash
from dalle_mini.runtime.limits import limits
from dalle_mini.runtime.locks import Busy, lock
from dalle_mini.runtime.parsing import check, parse_json, read_record
from dalle_mini.runtime.paths import source
from dalle_mini.training.config.sections import check_choice
from dalle_mini.training.engine.multihost import first_process_does
from dalle_mini.training.records import SAMPLES, RunSettings, Saved
from dalle_mini.training.run.checkpoint_folder import recorded_config

CONFIG = "config.json"
RUN = "run"  # in it: the run's id, of `ownership.py`
SAVED = "saved.json"  # the last checkpoint that is known to be whole: its step, and in which folder
RESUME = ("auto", "never")
CHECKSUM = "checksum"  # in it, of all else in it: a bit that flips must not become another learning rate
SHOWN = 60  # characters of a value in a complaint
PATIENCE = 5.0  # seconds that another process in the folder has for its end

logger = logging.getLogger("dalle_mini")

# Settings that change when things are done, or where, but not what is learned. Whole sections, or single settings.
MAY_CHANGE = {
    RUN,
    "mesh",
    "tracking",
    "samples",
    "evaluation",  # what is measured
    "sources",  # where the data lie; "data" tells whether they are the same
    "loop.log_every",
    "loop.eval_every",
    "loop.sample_every",
    "loop.checkpoint_minutes",
    "loop.keep",
    "loop.keep_hours",
    "loop.grace_seconds",
    "loop.checkpoints",
    "loop.on_bad_loss",  # a bad update is left out either way
    "training.remat",
    "training.new_tokens",  # checked at the start
}


def check_here(out: str | Path) -> None:
    """Raises UserError where a run's folder has no name, or is not on this machine."""
    if not str(out).strip():
        raise UserError("--output is blank: name a folder")
    if re.match(r"\w[\w+.-]*:/", str(out)):  # a Path has one slash only
        raise UserError(
            f"--output {out}: a run's folder is one on this machine; its checkpoints may be elsewhere: "
            "loop.checkpoints=gs://BUCKET/RUN/checkpoints"
        )


def started_with(out: str | Path, checkpoints: str | Path | None = None) -> dict[str, Any] | None:
    """The settings that the run in `out` was started with, or last changed to; None where there is no run.

    If `config.json` is gone or damaged but there are checkpoints (a new machine, and they are in a bucket; a power
    cut), their record has them.

    Raises:
        UserError: that record cannot be read either.
    """
    path = Path(out) / CONFIG
    damage = None
    try:
        if (found := read_settings(path)) is not None:
            return found
    except (OSError, ValueError) as error:
        damage = error
    recorded = recorded_config(checkpoints or Path(out) / "checkpoints")
    if damage is not None and recorded is None:
        raise UserError(f"{path}: damaged ({damage}), and no checkpoint tells what it said: use another folder")
    if damage is not None:
        logger.warning("%s: damaged (%s); the checkpoints' record of it is taken instead", path, damage)
    return recorded


@contextlib.contextmanager
def alone_in(out: Path, checkpoints: str | Path | None = None) -> Iterator[None]:
    """Hold a run's folder, and that of its checkpoints where it is on a disk, while the block runs, in process 0.

    Two runs in them would spoil each other's files. The lock is on the folder itself, and goes with the process. A
    block within a block holds it already. Folders that were made for the block and stay empty are removed.

    Raises:
        UserError: another process holds one of the folders.
    """
    is_there = out.exists()
    with _alone(out), contextlib.ExitStack() as stack:
        if checkpoints is not None and "://" not in str(checkpoints):
            stack.enter_context(_alone(Path(checkpoints), stays=is_there))
        yield


@contextlib.contextmanager
def _alone(out: Path, *, stays: bool = False) -> Iterator[None]:
    here = os.path.realpath(out)  # the checkpoints may lie in the run's folder itself, under another name
    if here in _HELD:
        yield
        return
    held: list[int] = []
    is_new = not (stays or out.exists())

    def take() -> None:
        try:
            out.mkdir(parents=True, exist_ok=True)
            held.append(os.open(out, os.O_RDONLY))
        except OSError:
            return  # `open_run` reports it
        last = time.monotonic() + PATIENCE  # one that was killed may still be giving back its memory
        while True:
            try:
                lock(held[0])
                for folder in (out, out / SAMPLES):
                    files.remove_leftovers(folder)
                return
            except OSError:
                return  # this file system knows no locks
            except Busy:
                if time.monotonic() > last:
                    raise UserError(
                        f"{out}: another process trains in this folder: wait for its end, or choose another folder"
                    ) from None
                time.sleep(0.2)

    try:
        first_process_does(take)
        _HELD.add(here)
        yield
    finally:
        _HELD.discard(here)
        for descriptor in held:
            os.close(descriptor)
        if held and is_new:
            with contextlib.suppress(OSError):  # it is not empty
                out.rmdir()


_HELD: set[str] = set()  # the folders that this process has, without links


@contextlib.contextmanager
def alone_in_run(out: Path, checkpoints: str | Path, resume: str) -> Iterator[None]:
    """`alone_in`, once it is known that the run may be continued or begun there: before data are fetched or made.

    Raises:
        UserError: it may not, or another process holds the folder.
    """
    check_here(out)
    with alone_in(out, checkpoints):
        first_process_does(lambda: refuse_if_there(out, started_with(out, checkpoints), resume))
        yield


def open_run(
    out: str | Path,
    config: dict[str, Any],
    checkpoints: str | Path | None = None,
    *,
    resume: str = "auto",
    allow_changes: bool = False,
) -> Callable[[], None]:
    """Begin a run with `config` in `out`, or check that the run there may be continued with it.

    A difference that would alter what is learned is refused by name; with `allow_changes` it is written down instead,
    under `changes` of `config.json`. In several processes, the first one looks and writes.

    Returns a function that writes it down. All processes call it together, once the checkpoint turned out to fit. A
    new run's settings are written at once.

    Args:
        config: plain JSON, in sections.
        checkpoints: where they are, if not in `out`.
        resume: "auto" continues what is there, "never" refuses a folder that holds a run.

    Raises:
        UserError: the run must not be continued, or the folder cannot be written.
    """
    config, path = as_json(config), Path(out) / CONFIG
    pending: list[dict[str, Any] | None] = []

    def look() -> None:
        found = started_with(out, checkpoints)
        refuse_if_there(out, found, resume)
        if found is None:
            write_settings(path, config)
        else:
            where = path if path.exists() or checkpoints is None else checkpoints
            pending.append(_continued(path, where, config, found, allow_changes))

    first_process_does(look)

    def write_down() -> None:
        for settings in pending:
            if settings is not None:
                write_settings(path, settings)

    return lambda: first_process_does(write_down)


def refuse_if_there(out: str | Path, found: dict[str, Any] | None, resume: str) -> None:
    """Raises UserError where `started_with` has found a run, and `resume` is "never"."""
    check_choice("resume", resume, RESUME)
    if found is not None and resume == "never":
        raise UserError(f"{out}: there is a run in it already; continue it with resume=auto, or choose another folder")


def note_saved(out: Path, step: int, checkpoints: str | os.PathLike) -> None:
    """Write down that the checkpoint of `step` is whole, in the first process."""
    if jax.process_index() == 0:
        with contextlib.suppress(UserError):  # a full disk; only the checkpoint itself matters
            files.write_whole(
                out / SAVED, json.dumps({"step": step, "checkpoints": without_secrets(str(checkpoints))}) + "\n"
            )


def check_not_lost(out: Path, checkpoints: str | os.PathLike, *, allow_changes: bool) -> None:
    """Raises UserError where there is no checkpoint in `checkpoints`, but the run in `out` is known to have saved some.

    To begin again, as `allow_changes` allows, replaces its log and the weights it ended with.
    """

    def look() -> None:
        try:
            saved = read_record(out / SAVED, Saved)
        except UserError:  # there is none, or a power cut left half of it
            return
        step, where = saved.step, saved.checkpoints
        if allow_changes:
            (out / SAVED).unlink(missing_ok=True)
            return
        elsewhere = without_secrets(where) != without_secrets(str(checkpoints))
        raise UserError(
            f"{checkpoints}: there is no checkpoint, but the run in {out} has saved step {step} in {where}: "
            f"{f'continue with loop.checkpoints={where}' if elsewhere else 'put it back'}, choose another folder, "
            "or begin this run again with --allow-changes"
        )

    first_process_does(look)


def as_json(config: dict[str, Any]) -> dict[str, Any]:
    """`config` as it comes back from a file: tuples are lists, and addresses have no passwords or keys."""
    return hidden(json.loads(json.dumps(config, default=str)))


def _continued(
    path: Path, where: str | Path, config: dict[str, Any], found: dict[str, Any], allow_changes: bool
) -> dict[str, Any] | None:
    """The settings to write down for a run that was `found` in `where` and goes on; None where they stand there."""
    history, as_it_stands = found.pop("changes", []), found
    found = hidden(found)  # as it was written before
    if found.get("data") is None:  # an earlier version did not record the data
        config.pop("data", None)
    changed = dict(differences(found, config))
    if not changed:  # settings that may change are written down too, for those who continue without naming them
        more = {"changes": history} if history else {}
        return None if as_it_stands == config and _is_whole(path) else config | more
    if not allow_changes:
        before = ", ".join(f"{name}={_short(old)}" for name, (old, _) in changed.items())
        raise UserError(
            f"{where}: the run there was started with other values of {', '.join(changed)}: "
            f"continue it with those ({before}), or with --allow-changes, or choose another folder"
        )
    if "loop.batch_size" in changed:
        logger.warning("loop.batch_size: step n takes other rows than before; some are passed over or come again")
    entry: dict[str, Any] = {"time": round(time.time(), 1), "from": {}, "to": {}}
    for name, (old, new) in changed.items():
        entry["from"][name], entry["to"][name] = old, new
    return {**config, "changes": [*history, entry]}


def differences(old: Any, new: Any, prefix: str = "") -> Iterator[tuple[str, tuple[Any, Any]]]:
    """(name, (old value, new value)) for each setting that differs and may not change on the way."""
    for name in sorted({*old, *new}):
        a, b, path = old.get(name), new.get(name), f"{prefix}{name}"
        if path in MAY_CHANGE or a == b or _is_same_place(a, b) or (path == "data" and _unnamed(a) == _unnamed(b)):
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            yield from differences(a, b, path + ".")
        else:
            yield path, (a, b)


def _is_same_place(old: Any, new: Any) -> bool:
    """Whether two names mean one file or folder: written otherwise by an earlier version, or moved since."""
    if not (isinstance(old, str) and isinstance(new, str)):
        return False
    old = source(old)
    is_moved = os.path.isabs(old) and os.path.isabs(new) and not os.path.exists(old)
    return old == new or (is_moved and os.path.basename(old) == os.path.basename(new))


def _unnamed(data: Any) -> Any:
    """A record of data without the names of its sources: `sources` has their places, and digests tell their content."""
    if isinstance(data, dict):
        return {k: _unnamed(v) for k, v in data.items() if not (k == "source" and isinstance(v, str))}
    return [_unnamed(one) for one in data] if isinstance(data, list) else data


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def read_settings(path: Path) -> dict[str, Any] | None:
    """The content of a `config.json`; None where there is none. Raises OSError or ValueError if it cannot be read."""
    try:
        found = check(parse_json(files.read_bytes(path, limits().json_bytes)), RunSettings)
    except (FileNotFoundError, NotADirectoryError):
        return None
    checksum = found.pop(CHECKSUM, None)  # runs of earlier versions have none
    if checksum is not None and checksum != _checksum(found):
        raise ValueError(f"its {CHECKSUM} is of another content")
    return found


def _checksum(config: dict[str, Any]) -> str:
    return short_hash(json.dumps(config, sort_keys=True))


def _is_whole(path: Path) -> bool:
    try:
        return read_settings(path) is not None
    except (OSError, ValueError):
        return False


def write_settings(path: Path, config: dict[str, Any]) -> None:
    try:
        config = config | {CHECKSUM: _checksum(config)}
        with files.writing_whole(path) as file:
            file.write((json.dumps(config, indent=2, sort_keys=True) + "\n").encode())
    except OSError as error:
        raise UserError(f"{path.parent}: cannot write there ({error.strerror})") from error

"""A run's folder, and what may be done with it: `config.json` holds everything that the run was started with."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dalle_mini.errors import UserError
from dalle_mini.locks import Busy, lock
from dalle_mini.training.agreement import first_process_does
from dalle_mini.training.checkpoint import recorded_config
from dalle_mini.training.config import check_choice

CONFIG = "config.json"
RESUME = ("auto", "never")
CHECKSUM = "checksum"  # in it, of all else in it: a bit that flips must not become another learning rate
SHOWN = 60  # characters of a value in a complaint
PATIENCE = 5.0  # seconds that another process in the folder has for its end

logger = logging.getLogger("dalle_mini")

# What changes when things are done, or where, but not what is learned. Whole sections, or single settings.
MAY_CHANGE = {
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
    """Raises UserError where a run's folder is not on this machine."""
    if re.match(r"\w[\w+.-]*:/", str(out)):  # a Path has one slash only
        raise UserError(
            f"--output {out}: a run's folder is one on this machine; its checkpoints may be elsewhere: "
            "loop.checkpoints=gs://BUCKET/RUN/checkpoints"
        )


def started_with(out: str | Path, checkpoints: str | Path | None = None) -> dict[str, Any] | None:
    """The settings that the run in `out` was started with, or last changed to; None where there is no run.

    Where `config.json` is gone or damaged but there are checkpoints (a new machine, and they are in a bucket; a power
    cut), their record says. Raises UserError where that cannot be read either.
    """
    path = Path(out) / CONFIG
    damage = None
    try:
        if (found := _settings(path)) is not None:
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
def alone_in(out: Path) -> Iterator[None]:
    """Hold a run's folder while the block runs, in the first process: two runs in it would spoil each other's files.

    The lock is on the folder itself, and goes with the process. Raises UserError where another process has it.
    """
    held: list[int] = []

    def take() -> None:
        try:
            out.mkdir(parents=True, exist_ok=True)
            held.append(os.open(out, os.O_RDONLY))
        except OSError:
            return  # which `open_run` tells about
        last = time.monotonic() + PATIENCE  # one that was killed may still be giving back its memory
        while True:
            try:
                return lock(held[0])
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
        yield
    finally:
        for descriptor in held:
            os.close(descriptor)


def open_run(
    out: str | Path,
    config: dict[str, Any],
    checkpoints: str | Path | None = None,
    *,
    resume: str = "auto",
    allow_changes: bool = False,
) -> None:
    """Begin a run with `config` in `out`, or check that the run there may be continued with it.

    A difference that would alter what is learned is refused by name; with `allow_changes` it is written down instead,
    under `changes` of `config.json`. In several processes, the first one looks and writes.

    Args:
        config: plain JSON, in sections.
        checkpoints: where they are, if not in `out`.
        resume: "auto" continues what is there, "never" refuses a folder that holds a run.
    Raises UserError where the run must not be continued, or the folder cannot be written.
    """
    check_choice("resume", resume, RESUME)
    config = as_json(config)
    first_process_does(lambda: _open(Path(out), config, started_with(out, checkpoints), resume, allow_changes))


def as_json(config: dict[str, Any]) -> dict[str, Any]:
    """As it comes back from a file: tuples are lists."""
    return json.loads(json.dumps(config, default=str))


def _open(out: Path, config: dict[str, Any], found: dict[str, Any] | None, resume: str, allow_changes: bool) -> None:
    path = out / CONFIG
    if found is None:
        return _write(path, config)
    if resume == "never":
        raise UserError(f"{out}: there is a run in it already; continue it with resume=auto, or choose another folder")
    history = found.pop("changes", [])
    if found.get("data") is None:  # a run from before the data was recorded
        config.pop("data", None)
    changed = dict(differences(found, config))
    if not changed:  # what may change is written down too, for those who continue the run without naming it
        more = {"changes": history} if history else {}
        return None if found == config and _is_whole(path) else _write(path, config | more)
    if not allow_changes:
        before = ", ".join(f"{name}={_short(old)}" for name, (old, _) in changed.items())
        raise UserError(
            f"{path}: the run there was started with other values of {', '.join(changed)}: "
            f"continue it with those ({before}), or with --allow-changes, or choose another folder"
        )
    if "loop.batch_size" in changed:
        logger.warning("loop.batch_size: step n takes other rows than before; some are passed over or come again")
    entry = {"time": round(time.time(), 1), "from": {}, "to": {}}
    for name, (old, new) in changed.items():
        entry["from"][name], entry["to"][name] = old, new
    return _write(path, {**config, "changes": [*history, entry]})


def differences(old: Any, new: Any, prefix: str = "") -> Iterator[tuple[str, tuple[Any, Any]]]:
    """(name, (old value, new value)) of each setting that is another one and may not change on the way."""
    for name in sorted({*old, *new}):
        a, b, path = old.get(name), new.get(name), f"{prefix}{name}"
        if path in MAY_CHANGE or a == b:
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            yield from differences(a, b, path + ".")
        else:
            yield path, (a, b)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _settings(path: Path) -> dict[str, Any] | None:
    """What a `config.json` holds; None where there is none. Raises OSError or ValueError where it cannot be read."""
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not isinstance(found, dict):
        raise ValueError("it is no object")
    checksum = found.pop(CHECKSUM, None)  # runs of earlier versions have none
    if checksum is not None and checksum != _checksum(found):
        raise ValueError(f"its {CHECKSUM} is of another content")
    return found


def _checksum(config: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]


def _is_whole(path: Path) -> bool:
    try:
        return _settings(path) is not None
    except (OSError, ValueError):
        return False


def _write(path: Path, config: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".tmp")
        config = config | {CHECKSUM: _checksum(config)}
        beside.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        os.replace(beside, path)
    except OSError as error:
        raise UserError(f"{path.parent}: cannot write there ({error.strerror})") from error

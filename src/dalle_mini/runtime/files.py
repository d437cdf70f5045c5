"""Files on disk: written whole or not at all, claimed by one run alone, and read only where they are files.

Everything is written beside its place under a random name that did not exist (`O_EXCL`, and links are not followed) and
renamed when it is whole. Whoever may write to the folder can neither guess the name nor put a link there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from dalle_mini.errors import UserError
from dalle_mini.locks import Busy, lock

_LEFTOVER = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{16}\.(?P<what>partial|replaced)")
_NOT_FOLLOWED = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)


def beside(target: Path, what: str = "partial") -> Path:
    """A hidden name in the target's folder that nobody can foresee, for what will be renamed to `target`."""
    return target.with_name(f".{target.name}.{secrets.token_hex(8)}.{what}")


def create(path: str | os.PathLike) -> BinaryIO:
    """Open a new file for writing. Raises FileExistsError where anything, a link too, has that name."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NOT_FOLLOWED, 0o666), "wb")


def write_whole(path: str | os.PathLike, data: bytes | str, *, work: Path | None = None, sync: bool = True) -> None:
    """Write a file beside its place and rename it; the folder is made where it is missing.

    Args:
        data: text is written as UTF-8; halves of surrogate pairs, as in names that are not UTF-8, are escaped.
        work: the folder, of the same file system, to write it in until it is whole (default: the file's own).
        sync: wait until it is on disk.
    Raises:
        UserError: it cannot be written; then nothing of it is left.
    """
    path = Path(path)
    with blamed(path), writing_whole(path, work=work, sync=sync) as file:
        file.write(data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data)


@contextlib.contextmanager
def writing_whole(path: Path, *, work: Path | None = None, sync: bool = True) -> Iterator[BinaryIO]:
    """A new binary file that takes the place of `path` when the block ends well.

    Raises OSError; then, as after an exception in the block, the file that was there is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = beside((work or path.parent) / path.name)
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        with create(partial) as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())  # or the name may survive a power cut, and the bytes not
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def written_beside(target: Path, *, replace: bool = True) -> Iterator[Path]:
    """A new folder that takes `target`'s place when the block ends well, and is removed when it does not.

    With `replace` false a folder that is there, or has come meanwhile, is kept and FileExistsError is raised: of
    several runs that want a name, one gets it. Raises OSError where it cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial, replaced = beside(target), beside(target, "replaced")
    holding = None
    try:
        partial.mkdir()
        with contextlib.suppress(OSError):  # a file system without locks
            holding = _hold(partial)
        yield partial
        if replace and target.exists():
            target.rename(replaced)
        _move(partial, target)
    finally:
        if holding is not None:
            os.close(holding)
        if replaced.exists() and not target.exists():
            replaced.rename(target)
        for leftover in (partial, replaced):
            shutil.rmtree(leftover, ignore_errors=True)


def _move(folder: Path, target: Path) -> None:
    try:
        os.rename(folder, target)  # it fails where the target is a file, or a folder that is not empty
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
        raise


def _hold(folder: Path) -> int:
    """A descriptor that holds the lock of a folder, so that `remove_leftovers` of another run lets it be.

    Raises Busy where another process has it, OSError where there are no locks.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | _NOT_FOLLOWED)
    try:
        lock(descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def remove_leftovers(folder: Path) -> None:
    """Remove what killed runs were writing beside its place; what a run is still writing stays.

    A folder that was moved aside is put back where its successor did not come.
    """
    for leftover in _entries(folder):
        found = _LEFTOVER.fullmatch(leftover.name)
        if found is None or leftover.is_symlink() or _is_held(leftover):
            continue
        target = leftover.with_name(found["name"])
        if found["what"] == "replaced" and not target.exists():
            leftover.rename(target)
        elif leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _is_held(leftover: Path) -> bool:
    try:
        os.close(_hold(leftover))
    except Busy:
        return True
    except OSError:  # a file, or a file system without locks
        return False
    return False


def open_lock_file(path: str | os.PathLike) -> BinaryIO:
    """Open a file to be locked, made where it is missing and never emptied. Raises OSError where the name is a link."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | _NOT_FOLLOWED, 0o666)
    return _regular(descriptor, path, "r+b")


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """Open a file for reading. Raises OSError for a pipe or a device too, which might never end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0))  # a pipe's open would wait
    return _regular(descriptor, path, "rb")


def _regular(descriptor: int, path: str | os.PathLike, mode: str) -> BinaryIO:
    kind = os.fstat(descriptor).st_mode
    if stat.S_ISREG(kind):
        return os.fdopen(descriptor, mode)
    os.close(descriptor)
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    raise OSError(errno.EINVAL, "it is a pipe or a device, not a file", os.fspath(path))


def read_bytes(path: str | os.PathLike, limit: int) -> bytes:
    """A file's bytes. Raises OSError where it cannot be read, is no regular file, or has more than `limit` bytes."""
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size <= limit:
            data = file.read(limit + 1)
            if len(data) <= limit:
                return data
    raise OSError(errno.EFBIG, f"it is larger than {in_units(limit)}", os.fspath(path))


def in_units(count: int) -> str:
    """Bytes for people: 64 MiB."""
    for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if count >= 1 << power:
            return f"{count / (1 << power):.4g} {unit}"
    return f"{count} bytes"


def reason(error: Exception) -> str:
    """Why, in one line and without the path that the message names already."""
    return getattr(error, "strerror", None) or next(iter(str(error).splitlines()), "") or type(error).__name__


@contextlib.contextmanager
def blamed(path: object, what: str = "written") -> Iterator[None]:
    """An OSError of the block as a `UserError` that names the file: "PATH cannot be written (No space left ...)"."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be {what} ({reason(error)})") from None

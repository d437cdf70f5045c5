"""Files on disk: written whole or not at all, claimed by one run alone, and read only where they are files.

Each file is written beside its place under a random name that did not exist (`O_EXCL`, and links are not followed) and
renamed when it is whole. Others who may write to the folder can neither guess the name nor put a link there.
"""

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal

from dalle_mini.errors import UserError
from dalle_mini.runtime.locks import Busy, lock

# Names that this version and earlier ones give, and the picture that `results.write.Previews` shows meanwhile.
_LEFTOVER = re.compile(
    r"\.(?P<name>.+)\.([0-9a-f]{16}|[0-9a-f]{8}|\d+)\.(?P<what>partial|replaced)|\.progress-[0-9a-f]{32}\.png"
)
_NOT_FOLLOWED = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
_DAY = 24 * 3600  # seconds without a change, after which nobody writes where there are no locks to tell it
_TRIES = 100


def beside(target: Path, what: str = "partial") -> Path:
    """A hidden name in the target's folder that nobody can foresee, for a file that will be renamed to `target`."""
    return target.with_name(f".{target.name}.{secrets.token_hex(8)}.{what}")


def create(path: str | os.PathLike) -> BinaryIO:
    """Open a new file for writing. Raises FileExistsError if anything, even a link, has that name."""
    return os.fdopen(_new_file(path), "wb")


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
        file.write(as_utf8(data))


def write_new(path: Path, data: bytes | str) -> None:
    """Write a file into a `work_folder`. Raises OSError; a half-written file goes with the folder."""
    with create(path) as file:
        file.write(as_utf8(data))


def as_utf8(text: bytes | str) -> bytes:
    r"""Text as UTF-8. Halves of characters, as in names that are not UTF-8, become \udce9, which JSON reads back."""
    return text.encode("utf-8", "backslashreplace") if isinstance(text, str) else text


@contextlib.contextmanager
def writing_whole(path: Path, *, work: Path | None = None, sync: bool = True) -> Iterator[BinaryIO]:
    """A new binary file that takes the place of `path` when the block ends well.

    Raises OSError; then, as after an exception in the block, the file that was there is as it was.
    """
    for folder in (path.parent, work or path.parent):
        _make_folder(folder)
    partial, descriptor = _new((work or path.parent) / path.name, _new_file)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            if sync:
                os.fsync(descriptor)  # or the name may survive a power cut, and the bytes not
            os.replace(partial, path)  # while it is locked: to others it would look like a leftover
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def written_beside(target: Path, *, replace: bool = True) -> Iterator[Path]:
    """A new folder that takes `target`'s place when the block ends well, and is removed when it does not.

    With `replace` false what is there, or has come meanwhile, is kept and FileExistsError is raised: of several runs
    that want a name, one gets it. Raises OSError where it cannot be written.
    """
    with work_folder(target) as partial:
        yield partial
        _put(partial, target, replace)


@contextlib.contextmanager
def work_folder(target: Path) -> Iterator[Path]:
    """A new folder beside `target`, removed at the end of the block. Raises OSError where it cannot be made."""
    _make_folder(target.parent)
    partial, descriptor = _new(target, _new_folder)
    try:
        yield partial
    finally:
        os.close(descriptor)
        _remove(partial)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, f"{folder} is a file, not a folder", str(folder)) from None


def _put(folder: Path, target: Path, replace: bool) -> None:
    replaced = beside(target, "replaced")
    try:
        for left in reversed(range(_TRIES)):
            if replace:
                with contextlib.suppress(FileNotFoundError):
                    target.rename(replaced)
            try:
                return _move(folder, target)
            except FileExistsError:
                if not (replace and left):
                    raise
                _remove(replaced)  # another run has come in between: the last one stays
    finally:
        if os.path.lexists(replaced) and not os.path.lexists(target):
            replaced.rename(target)
        _remove(replaced)


def _move(folder: Path, target: Path) -> None:
    try:
        os.rename(folder, target)  # it fails where the target is a file, or a folder that is not empty
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
        raise


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _new(target: Path, make: Callable[[Path], int]) -> tuple[Path, int]:
    """Something new beside the target, and the descriptor that locks it: `remove_leftovers` of others lets it be."""
    while True:
        partial = beside(target)
        descriptor = make(partial)
        try:
            with contextlib.suppress(OSError):  # a file system without locks
                lock(descriptor)
            if os.path.lexists(partial):
                return partial, descriptor
        except Busy:  # another run took it for a leftover before it was locked, and removes it
            pass
        except BaseException:  # Ctrl-C, at any moment
            os.close(descriptor)
            _remove(partial)
            raise
        os.close(descriptor)


def _new_file(path: str | os.PathLike) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NOT_FOLLOWED, 0o666)


def _new_folder(path: Path) -> int:
    path.mkdir()
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | _NOT_FOLLOWED)
    except BaseException:
        _remove(path)
        raise


def hold(path: Path) -> int | None:
    """A descriptor that holds the lock of a file or folder, until it is closed or the process ends.

    None where the file system has no locks. Raises Busy where another has it, OSError where it cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | _NOT_FOLLOWED)
    try:
        lock(descriptor)
    except BaseException as error:
        os.close(descriptor)
        if not isinstance(error, OSError):
            raise
        return None
    return descriptor


def remove_leftovers(folder: Path) -> None:
    """Remove the files that killed runs were writing in a folder; those that a run is still writing stay.

    A folder that was moved aside is put back if its successor did not come.
    """
    for leftover in _entries(folder):
        found = _LEFTOVER.fullmatch(leftover.name)
        if found is not None:
            with contextlib.suppress(OSError, Busy):
                _remove_leftover(leftover, found)


def _remove_leftover(leftover: Path, found: re.Match) -> None:
    held = hold(leftover)
    try:
        if held is None and time.time() - leftover.stat().st_mtime < _DAY:
            return
        if found["what"] == "replaced" and not os.path.lexists(leftover.with_name(found["name"])):
            leftover.rename(leftover.with_name(found["name"]))
        else:
            _remove(leftover)
    finally:
        if held is not None:
            os.close(held)


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def append(path: Path, text: str) -> None:
    """Add text to a file, as `open_to_append`: all of it or, on a full disk, nothing."""
    data = as_utf8(text)
    with open_to_append(path) as file:
        whole = os.fstat(file.fileno()).st_size
        if os.write(file.fileno(), data) < len(data):
            os.ftruncate(file.fileno(), whole)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def open_to_append(path: Path) -> BinaryIO:
    """Open a file to be added to, made where it is missing. Raises OSError; where the name is a link, too."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | _NOT_FOLLOWED, 0o666)
    return _regular(descriptor, path, "ab")


def open_lock_file(path: str | os.PathLike) -> BinaryIO:
    """Open a file to be locked, made where it is missing and never emptied. Raises OSError where the name is a link."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | _NOT_FOLLOWED, 0o666)
    return _regular(descriptor, path, "r+b")


@contextlib.contextmanager
def locked(path: str | os.PathLike, *, shared: bool = False) -> Iterator[OSError | None]:
    """Hold the lock of a file, made where it is missing; it goes with the process, however that ends.

    It yields the reason where the file system has no locks. Raises Busy where another process has it (shared: has it
    for itself alone), OSError where the file cannot be made, or is a link.
    """
    while True:
        with open_lock_file(path) as file:
            missing = None
            try:
                lock(file, shared=shared)
            except OSError as error:
                missing = error
            if missing is None and not os.fstat(file.fileno()).st_nlink:
                continue  # its holder has removed it, and the next process would make another
            yield missing
            return


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """Open a file for reading. Raises OSError for a pipe or a device too, which might never end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0))  # a pipe's open would wait
    return _regular(descriptor, path, "rb")


def _regular(descriptor: int, path: str | os.PathLike, mode: Literal["rb", "ab", "r+b"]) -> BinaryIO:
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


def reason(error: BaseException) -> str:
    """The reason of an error in one line, without the path, which the message names already."""
    return getattr(error, "strerror", None) or next(iter(str(error).strip().splitlines()), "") or type(error).__name__


@contextlib.contextmanager
def blamed(path: object) -> Iterator[None]:
    """An OSError of the block as a `UserError` that names the file: "PATH cannot be written (No space left ...)"."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written ({reason(error)})") from None

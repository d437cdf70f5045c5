"""Files of any file system (local, `gs://`, `s3://`, any fsspec url): listing and reading them, with limits.

A path is one of its file system, without the protocol. A file that cannot be read raises `Unreadable` with a reason.
"""

from __future__ import annotations

import errno
import logging
import os
import posixpath
import re
import unicodedata
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

from dalle_mini.data.sources import reasons
from dalle_mini.errors import UserError
from dalle_mini.runtime.files import open_regular, reason
from dalle_mini.runtime.installing import install_line
from dalle_mini.runtime.limits import exceeded, limits
from dalle_mini.runtime.paths import local

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

logger = logging.getLogger("dalle_mini")

IMAGE_SUFFIXES = frozenset(  # more than are read: a picture that is not is counted
    [
        *("jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm", "pbm", "pnm"),
        *("svg", "avif", "heic", "heif", "jp2", "jxl"),
    ]
)
THREADS = 8  # files that are asked for at once where each takes a request
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")
MOST_VISITS = 16  # of a folder, by as many links

Item = TypeVar("Item")
Result = TypeVar("Result")


CHECKSUMS = ("md5Hash", "ETag", "content_md5", "blob_id")  # as the listings of stores call them


class File(NamedTuple):
    """A file in a folder: its size in bytes, and what changes when it is written anew, where those are known."""

    name: str
    size: int | None = None
    stamp: int | str | None = None

    @classmethod
    def of_stat(cls, name: str, found: os.stat_result) -> Self:
        return cls(name, found.st_size, found.st_mtime_ns)

    @classmethod
    def of_store(cls, entry: dict[str, Any]) -> Self:
        stamp = next((str(entry[name]) for name in CHECKSUMS if entry.get(name)), None)
        return cls(posixpath.basename(entry["name"].rstrip("/")), entry.get("size"), stamp)


class Unreadable(Exception):
    """A file that is not read: `reason` is one of `reasons.py`."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


def locate(spec: str) -> tuple[AbstractFileSystem, str]:
    """The file system and the path of a local path or url. Raises UserError where there is no way to reach it."""
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise UserError(f"reading a data set needs fsspec: {install_line('data')}") from None
    try:
        fs, path = url_to_fs(local(spec or "."))
    except ImportError as error:  # fsspec names the package
        raise UserError(f"{spec}: {reason(error)}") from None
    except Exception as error:
        raise UserError(f"{spec}: cannot be reached ({reason(error)})") from None
    return fs, path.rstrip("/") or "/"


def is_url(text: str) -> bool:
    return bool(_URL.match(text))


def is_local(fs: AbstractFileSystem) -> bool:
    from fsspec.implementations.local import LocalFileSystem

    return isinstance(fs, LocalFileSystem)


def kind(fs: AbstractFileSystem, path: str) -> str | None:
    """ "file", "directory" or None. Raises UserError where that cannot be found out."""
    try:
        if path.endswith((".tar", ".gz", ".tgz", ".parquet")) and fs.isfile(path):
            return "file"  # a web server would be asked for its content, to see whether it is a folder's
        return "directory" if fs.isdir(path) else "file" if fs.exists(path) else None
    except Exception as error:  # every store has exceptions of its own: no permission, no such bucket, no network
        raise UserError(f"{path}: cannot be reached ({reason(error)})") from None


def walk(fs: AbstractFileSystem, root: str, *, sized: bool = False) -> Iterator[tuple[str, list[File]]]:
    """(folder relative to `root`, its files by name), folder by folder in an order that depends on names alone.

    Hidden files and folders are passed over. Local links to folders are followed, except in a circle, and where a
    folder was listed under `MOST_VISITS` names already: links from folder to folder make a million paths of twenty.
    With `sized` the sizes of local files are looked up too; a store lists them anyway.

    Raises:
        UserError: a folder cannot be listed: what is in it would be missing without a word.
    """
    pending: list[tuple[str, frozenset[str]]] = [("", frozenset())]
    visits: Counter[str] = Counter()
    while pending:
        folder, ancestors = pending.pop()
        path = posixpath.join(root, folder) if folder else root
        if is_local(fs):
            real = os.path.realpath(path)
            if real in ancestors:
                continue
            ancestors = ancestors | {real}
            visits[real] += 1
            if visits[real] > MOST_VISITS:
                if visits[real] == MOST_VISITS + 1:
                    logger.warning("%s: links lead there in more than %d ways; no more are followed", path, MOST_VISITS)
                continue
        try:
            entries = sorted(_entries(fs, path, sized), key=lambda entry: (entry[0].name, entry[1]))
        except Exception as error:
            if getattr(error, "errno", None) == errno.ENAMETOOLONG:  # no path can name what lies so deep
                logger.warning("%s: folders lie too deep there to be listed; they are passed over", root)
                continue
            raise UserError(f"{path}: cannot be listed ({reason(error)})") from None
        yield folder, [file for file, is_folder in entries if not is_folder]
        folders = [file.name for file, is_folder in entries if is_folder]
        pending += [(posixpath.join(folder, name), ancestors) for name in reversed(folders)]


def _entries(fs: AbstractFileSystem, path: str, sized: bool) -> Iterator[tuple[File, bool]]:
    if is_local(fs):  # several times as fast as asking fsspec
        with os.scandir(path) as found:
            for entry in found:
                if not entry.name.startswith("."):
                    is_folder = _is_folder(entry)
                    yield _local(entry) if sized and not is_folder else File(entry.name), is_folder
        return
    for entry in fs.ls(path, detail=True):
        file = File.of_store(entry)
        is_itself = entry["name"].rstrip("/") == path.rstrip("/")  # as stores list an empty file in a folder's place
        if file.name and not file.name.startswith(".") and not is_itself:
            yield file, entry["type"] == "directory"


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or into a folder that may not be looked into: reading will find it
        return False


def _local(entry: os.DirEntry) -> File:
    try:
        return File.of_stat(entry.name, entry.stat())
    except OSError:  # a link to nowhere, which reading will find
        return File(entry.name)


def opened(fs: AbstractFileSystem, path: str) -> IO[bytes]:
    """A file to read from. Raises Unreadable for a local pipe, device or folder; else what the file system raises."""
    if not is_local(fs):
        return fs.open(path, "rb")
    try:
        return open_regular(path)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EISDIR, errno.ENXIO):
            raise Unreadable(reasons.NO_FILE) from None
        raise


def read(fs: AbstractFileSystem, path: str, limit: int | None = None) -> bytes:
    """A file's bytes. Raises Unreadable where it is larger than `limit` (a picture's), no regular file, or not read."""
    limit = limits().picture_bytes if limit is None else limit
    try:
        with opened(fs, path) as file:
            size = os.fstat(file.fileno()).st_size if is_local(fs) else limit
            if size > limit:
                raise Unreadable(reasons.FILE_TOO_LARGE)
            data = file.read(size + 1)  # to make room for `limit` would take longer than to read
    except (Unreadable, MemoryError):
        raise
    except Exception:  # every store has exceptions of its own
        raise Unreadable(reasons.CANNOT_READ) from None
    if len(data) > limit:
        raise Unreadable(reasons.FILE_TOO_LARGE)
    return data


def inside(fs: AbstractFileSystem, root: str, folder: str, path: str) -> str:
    """Where a path that a stranger wrote into a file of `folder` leads to. Raises Unreadable where it leaves `root`."""
    if "\0" in path:
        raise Unreadable(reasons.CANNOT_READ)
    if is_url(path):
        if type(fs)._strip_protocol(path) == path or not path.startswith(protocols(fs)):
            raise Unreadable(reasons.LEAVES_FOLDER)
        path, folder = fs._strip_protocol(path), ""
    target = posixpath.normpath(posixpath.join(folder, path))
    if not target.startswith(root.rstrip("/") + "/"):
        raise Unreadable(reasons.LEAVES_FOLDER)
    return existing(root, target) if is_local(fs) else target


def existing(root: str, path: str) -> str:
    """A local path within `root`, or the one there that differs from it only in how accents are composed.

    A Mac writes "\u00e9" as an "e" and an accent into names of files, and as one character into a table of them.
    """
    if path.isascii() or os.path.lexists(path):
        return path
    found = root
    for name in relative(root, path).split("/"):
        forms = (name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name))
        there = next((step for form in forms if os.path.lexists(step := posixpath.join(found, form))), None)
        if there is None:
            return path
        found = there
    return found


def protocols(fs: AbstractFileSystem) -> tuple[str, ...]:
    """The beginnings of a file system's addresses: `gs://`, `gcs://`."""
    names = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    return tuple(f"{name}://" for name in names)


def relative(root: str, path: str) -> str:
    """A path within `root` as it is called there; another one's last name."""
    root = root.rstrip("/") + "/"
    return path.removeprefix(root) if path.startswith(root) else posixpath.basename(path)


def without_suffix(name: str) -> str:
    return posixpath.splitext(name)[0]


def suffix(name: str) -> str:
    return posixpath.splitext(name)[1].lstrip(".").lower()


def text_key(key: str) -> str:
    """A key that can be written as UTF-8: file names may hold bytes that are no text."""
    return key.encode("utf-8", "backslashreplace").decode()


def expand(pattern: str) -> list[str]:
    """The names that the braces of a pattern stand for, in order: `{00000..00012}` and `{train,test}`."""
    found, pending = [], [pattern]
    while pending:
        name = pending.pop()
        match = _BRACES.search(name)
        if match is None:
            found.append(name)
            continue
        first, last, listed = match.groups()
        if listed is None:
            numbers = _numbers(pattern, first, last)
            _check_names(pattern, len(numbers))
            choices = [f"{number:0{len(first)}d}" for number in numbers]
        else:
            choices = listed.split(",")
        pending += [name[: match.start()] + choice + name[match.end() :] for choice in reversed(choices)]
        _check_names(pattern, len(pending) + len(found))
    return found


def _numbers(pattern: str, first: str, last: str) -> range:
    if max(len(first), len(last)) > 18:
        raise UserError(f"{pattern:.200}: numbers of a pattern have at most 18 digits")
    return range(int(first), int(last) + 1)


def _check_names(pattern: str, count: int) -> None:
    if count > limits().pattern_names:
        raise UserError(f"{pattern}: stands for more than {limits().pattern_names} names ({exceeded('pattern_names')})")


def in_order(function: Callable[[Item], Result], items: Iterable[Item], fs: AbstractFileSystem) -> Iterator[Result]:
    """`map`, a few ahead in threads where files come by network."""
    if is_local(fs):
        yield from map(function, items)
        return
    with ThreadPoolExecutor(THREADS) as pool:
        ahead: deque[Future[Result]] = deque()
        for item in items:
            ahead.append(pool.submit(function, item))
            if len(ahead) >= THREADS:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()

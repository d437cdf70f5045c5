"""A fingerprint of a dataset's content, without opening its files: their names, sizes and stamps.

A stamp is the time at which a local file was written, or the checksum that a store lists with an object. An edit that
keeps a file's size and its stamp is not seen.
"""

from __future__ import annotations

import hashlib
import logging
import os
import posixpath
from array import array
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from dalle_mini.data.sources import files

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

logger = logging.getLogger("dalle_mini")

# The keys of `Source.origin` that tell a dataset's content. Only STAMPS may differ between two copies of one dataset.
STAMPS = "stamps"
CONTENT = frozenset(["files", "bytes", "listing", STAMPS, "tables", "footers", "saved", "rows", "parts"])


class Fingerprint:
    """The fingerprint of files that are added in an order which depends on the dataset alone."""

    def __init__(self) -> None:
        self._files = self._bytes = self._stamped = 0
        self._listing, self._stamps = hashlib.sha256(), hashlib.sha256()

    def add(self, name: str, file: files.File | None) -> None:
        """`name` is within the dataset; None is a file that is not there, or of which nothing can be found out."""
        named = name.encode("utf-8", "backslashreplace")
        size, stamp = (file.size, file.stamp) if file else (None, None)
        self._files += 1
        self._bytes += size or 0
        self._stamped += stamp is not None
        self._listing.update(b"%s\0%s\0" % (named, str(size).encode()))
        self._stamps.update(b"%s\0%s\0" % (named, str(stamp).encode()))

    def told(self) -> dict[str, Any]:
        """The fingerprint as keys of `Source.origin`."""
        told = {"files": self._files, "bytes": self._bytes, "listing": self._listing.hexdigest()[:16]}
        return told | ({STAMPS: self._stamps.hexdigest()[:16]} if self._stamped else {})


class Finder:
    """Files by their paths: local ones are asked, those of a store are looked up in its lists of whole folders.

    With `ask` one that is in no list is asked for too, which is a request for each.
    """

    def __init__(self, fs: AbstractFileSystem, *, ask: bool = False) -> None:
        self._fs, self._ask, self._is_local = fs, ask, files.is_local(fs)
        self._is_web = not {"http://", "https://"}.isdisjoint(files.protocols(fs))
        self._listed = lru_cache(64)(self._list)

    def __call__(self, path: str) -> files.File | None:
        try:
            if self._is_local:
                return files.File.of_stat(posixpath.basename(path), os.stat(path))
            listed = {} if self._is_web else self._listed(posixpath.dirname(path))
            if listed or not self._ask:
                return listed.get(posixpath.basename(path))
            return files.File.of_store(self._fs.info(path))
        except Exception:  # reading it will say what is wrong
            return None

    def _list(self, folder: str) -> dict[str, files.File]:
        try:
            found = [files.File.of_store(entry) for entry in self._fs.ls(folder, detail=True)]
        except Exception:  # as above
            return {}
        return {file.name: file for file in found}


def of_archives(fs: AbstractFileSystem, root: str, paths: Sequence[str]) -> Fingerprint:
    """The fingerprint of tars or tables. One that is in no list of its store is asked for."""
    fingerprint = Fingerprint()
    for path, file in zip(paths, files.in_order(Finder(fs, ask=True), paths, fs), strict=True):
        fingerprint.add(files.relative(root, path), file)
    return fingerprint


class ListedImages:
    """The images that tables name by their paths, each counted once."""

    def __init__(self, fs: AbstractFileSystem, root: str, fingerprint: Fingerprint) -> None:
        self._root, self._fingerprint, self._find = root, fingerprint, Finder(fs)
        self._last: str | None = None
        self._names = array("q")  # 8 bytes a picture: there may be many millions

    def add(self, path: str) -> None:
        if path == self._last:  # rows of one picture mostly follow each other
            return
        self._last, file = path, self._find(path)
        self._fingerprint.add(files.relative(self._root, path), file)
        if file and files.suffix(path) in files.IMAGE_SUFFIXES:
            self._names.append(hash(path))

    def tell_of_others(self, where: str, images: int) -> None:
        """Log a notice where there are more `images` than are listed."""
        others = images - len(np.unique(np.frombuffer(self._names, np.int64)))
        if others > 0:
            logger.warning("%s: %d of its %d images are in no table there, and are not used", where, others, images)

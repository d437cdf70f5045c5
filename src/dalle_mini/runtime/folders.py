"""The folder that an encoding run writes: a local one, or one in a bucket (`gs://`, `s3://`, ... through fsspec).

In both, a file appears whole or not at all: a local file is written beside its place and renamed, and an object is
there once its upload is complete.

A local folder is locked while a run is in it. Object storage has no locks, so two runs may be in one folder at a time.
They do the same work twice and write the same bytes, since the files depend on source, options and VQGAN alone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from dalle_mini.addresses import without_secrets
from dalle_mini.errors import UserError
from dalle_mini.runtime import files
from dalle_mini.runtime.installing import install_line

WORK = ".work"

logger = logging.getLogger("dalle_mini")


def open_output(out: str | os.PathLike[str]) -> LocalFolder | RemoteFolder:
    """The folder `out`, which need not exist yet.

    Raises:
        UserError: the name is blank, or the folder cannot be made.
    """
    out = os.fspath(out)
    if not out.strip():
        raise UserError("the output folder's name is blank: name a folder")
    if "://" in out:
        return RemoteFolder(out)
    path = Path(out).expanduser()
    try:
        ancestor = next(place for place in (path, *path.absolute().parents) if place.exists())
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror})") from None
    if not ancestor.is_dir():
        raise UserError(f"{ancestor} is a file: name a folder")
    if ancestor != path and not os.access(ancestor, os.W_OK):
        raise UserError(f"{path} cannot be written (no permission in {ancestor})")
    return LocalFolder(path)


class LocalFolder:
    """Names are relative paths with slashes, such as ".work/parts/00000.parquet"."""

    def __init__(self, root: Path):
        self.root = root

    def __str__(self) -> str:
        return str(self.root)

    def read(self, name: str) -> bytes | None:
        """A file's bytes, or None where there is no such file."""
        try:
            return (self.root / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise UserError(f"{self.root / name} cannot be read ({error.strerror})") from None

    def write(self, name: str, data: bytes) -> None:
        """Write a file. Raises UserError where it cannot be written whole; then nothing of it is left."""
        # It is written in .work, which is removed in the end: a kill must leave nothing beside the shards.
        files.write_whole(self.root / name, data, work=self._work())

    def names(self, folder: str = "") -> set[str]:
        """Files and folders right in `folder`; none where it is missing."""
        try:
            return set(os.listdir(self.root / folder))
        except FileNotFoundError:
            return set()
        except OSError as error:
            raise UserError(f"{self.root / folder} cannot be read ({error.strerror})") from None

    def remove_work(self) -> None:
        shutil.rmtree(self.root / WORK, ignore_errors=True)

    def _work(self) -> Path:
        """The folder for work. Raises UserError where it is a link, which may lead to a stranger's folder."""
        work = self.root / WORK
        if work.is_symlink():
            raise UserError(f"{work} is a link: remove it, or name another folder")
        return work

    @contextlib.contextmanager
    def lock(self, name: str, *, shared: bool = False) -> Iterator[None]:
        """Hold a lock of this folder, which goes with the process however it ends.

        Raises Busy where another process has it (shared: has it for itself alone).
        """
        work = self._work()
        with contextlib.ExitStack() as held:
            with files.blamed(work):
                work.mkdir(parents=True, exist_ok=True)
                files.remove_leftovers(work)
                missing = held.enter_context(files.locked(work / f"{name}.lock", shared=shared))
            if missing is not None:
                logger.warning("%s cannot be locked (%s): see to it that one run at a time is in it", self, missing)
            yield


class RemoteFolder:
    """As `LocalFolder`, but in a bucket, and without locks."""

    def __init__(self, address: str):
        try:
            from fsspec.core import url_to_fs
        except ImportError:
            raise UserError(f"{address}: writing there needs fsspec: {install_line('data')}") from None
        self.address = address.rstrip("/")
        try:
            self._files, self._root = url_to_fs(self.address)
        except (ImportError, ValueError) as error:  # gcsfs or s3fs is not installed, or there is no such protocol
            raise UserError(f"{address}: {files.reason(error)}") from None

    def __str__(self) -> str:
        return without_secrets(self.address)

    def read(self, name: str) -> bytes | None:
        with self._blamed(name, "read"):
            try:
                return self._files.cat_file(f"{self._root}/{name}")
            except FileNotFoundError:
                return None

    def size(self, name: str) -> int:
        """A file's, in bytes."""
        with self._blamed(name, "read"):
            return int(self._files.size(f"{self._root}/{name}"))

    def fetch(self, name: str, path: Path) -> None:
        """Copy a file here, however large it is."""
        with self._blamed(name, f"copied to {path.parent}"):
            self._files.get_file(f"{self._root}/{name}", str(path))

    def write(self, name: str, data: bytes) -> None:
        with self._blamed(name, "written"):
            self._files.makedirs(f"{self._root}/{name}".rpartition("/")[0], exist_ok=True)
            self._files.pipe_file(f"{self._root}/{name}", data)

    def names(self, folder: str = "") -> set[str]:
        with self._blamed(folder, "read"):
            self._files.invalidate_cache()  # others write too
            try:
                found = self._files.ls(f"{self._root}/{folder}".rstrip("/"), detail=False)
            except FileNotFoundError:
                return set()
            return {name.rstrip("/").rpartition("/")[2] for name in found}

    def remove_work(self) -> None:
        with contextlib.suppress(Exception):  # the run is finished: what is left does no harm
            self._files.rm(f"{self._root}/{WORK}", recursive=True)

    @contextlib.contextmanager
    def lock(self, name: str, *, shared: bool = False) -> Iterator[None]:
        yield

    @contextlib.contextmanager
    def _blamed(self, name: str, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # each storage has exceptions of its own
            raise UserError(f"{self.address}/{name} cannot be {what} ({files.reason(error)})") from error

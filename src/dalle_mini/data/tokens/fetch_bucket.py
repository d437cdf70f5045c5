"""Encoded pictures in a bucket -> the folder in this machine's cache that holds them.

    CACHE/tokens/<name>-<digest>/     whole, or not there; what is there is never fetched again
                 <...>.partial/       on its way: files that are whole in it are kept
                 <...>.lock

The digest is of what tells the shards: their manifest, or names and sizes of the original's. So data that was encoded
anew has another folder, and all runs of a machine share the one.
"""

import contextlib
import hashlib
import json
import logging
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from dalle_mini.data.tokens.shards import MANIFEST, SPLITS, Manifest
from dalle_mini.errors import UserError
from dalle_mini.runtime.files import beside, locked, remove_leftovers, write_whole
from dalle_mini.runtime.folders import RemoteFolder
from dalle_mini.runtime.hashing import short_hash
from dalle_mini.runtime.locks import Busy
from dalle_mini.runtime.parsing import ParseError

logger = logging.getLogger("dalle_mini")


def fetch_tokens(address: str, cache: Path | None = None) -> Path | None:
    """The local copy of the token dataset at `address` (`gs://`, `s3://`, ...), made if need be.

    None where there is no folder with a manifest or Parquet files: a dataset of images, perhaps. Several processes may
    ask at the same time: one of them fetches.

    Args:
        cache: where copies are kept; `tokens` in the user's cache folder by default (`XDG_CACHE_HOME`).

    Raises:
        UserError: the dataset cannot be read or is damaged, or the copy cannot be written.
    """
    if address.endswith(".parquet"):
        return None
    remote = RemoteFolder(address)
    described = remote.read(MANIFEST)
    files = _of_manifest(remote, described) if described is not None else _of_notebook(remote)
    if not files:
        return None
    if cache is None:
        import platformdirs

        cache = Path(platformdirs.user_cache_dir("dalle-mini")) / "tokens"
    digest = short_hash(described or json.dumps(files))
    name = re.sub(r"[^\w.-]+", "_", address.partition("?")[0].rstrip("/").rpartition("/")[2], flags=re.ASCII)
    place = cache / f"{name}-{digest}"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _alone(place):
            if not place.is_dir():
                logger.warning("%s: fetching %d files, once, into %s", remote, len(files), place)
                _fetch(remote, files, described, place)
    except OSError as error:
        raise UserError(
            f"{place}: {address} cannot be copied there ({error.strerror or error}): make room, or name another place "
            "with XDG_CACHE_HOME, and run again"
        ) from error
    return place


def _of_manifest(remote: RemoteFolder, described: bytes) -> dict[str, str | int]:
    """The SHA-256 of each shard that `encode` wrote."""
    try:
        splits = Manifest.from_json(described).splits.values()
    except ParseError as error:
        raise UserError(f"{remote}/{MANIFEST}: damaged, or of another version ({error}): encode again") from None
    return {shard.file: shard.sha256 for split in splits for shard in split.shards}


def _of_notebook(remote: RemoteFolder) -> dict[str, str | int]:
    """The size of each Parquet file, in the folder or in those of the splits."""
    names = remote.names()
    files = [*names, *(f"{split}/{name}" for split in SPLITS if split in names for name in remote.names(split))]
    return {name: remote.size(name) for name in sorted(files) if name.endswith(".parquet")}


def _fetch(remote: RemoteFolder, files: dict[str, str | int], described: bytes | None, place: Path) -> None:
    partial = place.with_name(f"{place.name}.partial")
    if partial.is_symlink():
        partial.unlink()
    for folder in {(partial / name).parent for name in files}:
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
    for name, wanted in files.items():
        path = partial / name
        if path.is_file():
            continue
        incoming = beside(path)
        try:
            remote.fetch(name, incoming)
            if _told(incoming, wanted) != wanted:
                why = f"it is not what {MANIFEST} says"
                raise UserError(f"{remote}/{name}: damaged ({why}): encode again, or copy it again")
            incoming.rename(path)
        finally:
            incoming.unlink(missing_ok=True)
    if described is not None:
        write_whole(partial / MANIFEST, described)
    shutil.rmtree(place, ignore_errors=True)
    partial.rename(place)


def _told(path: Path, wanted: str | int) -> str | int:
    """A file's SHA-256 or its size, whichever is known of the right one."""
    if isinstance(wanted, int):
        return path.stat().st_size
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _alone(place: Path) -> Iterator[None]:
    told = False
    with contextlib.ExitStack() as held:
        while True:
            try:
                missing = held.enter_context(locked(place.with_name(f"{place.name}.lock")))
                break
            except Busy:
                if not told:
                    logger.warning("%s: another process fetches it; waiting", place)
                told = True
                time.sleep(0.5)
        if missing is not None:
            logger.warning("%s cannot be locked (%s): see to it that one run at a time fetches it", place, missing)
        yield

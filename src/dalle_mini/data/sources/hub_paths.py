"""Names in a Hugging Face data set that become paths: in its rows, in its README, and in what was saved to disk.

`datasets` and fsspec follow whatever they are told: a `file://` to this machine, or a chain of file systems of which
some run templates. So each name is looked at before they see it, and nothing but the data set's own files is allowed.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dalle_mini.data.sources import files, reasons
from dalle_mini.data.sources.tars import Header
from dalle_mini.errors import UserError
from dalle_mini.runtime import parsing
from dalle_mini.runtime.limits import limits
from dalle_mini.weights.hub.errors import client

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

CARDS = ("README.md", ".huggingface.yaml")
_OWN = re.compile(r"hf://datasets/(?P<name>[\w.-]+/[\w.-]+)(@[^/:*?]+)?/(?P<path>[^:]+)")
_CHAIN = re.compile(r"(?:(?P<archive>zip|tar|gzip)://(?P<member>[^:]*)::)?(?P<url>hf://[^:]+)")


def split_url(url: str, name: str) -> tuple[str | None, str, str] | None:
    """(archive's kind, member, `hf://` address) of an address that leads to a file of the data set `name`, else None.

    Allowed are `hf://datasets/NAME@REVISION/PATH`, and `zip://`, `tar://` or `gzip://MEMBER::` before it.
    """
    chain = _CHAIN.fullmatch(url)
    own = _OWN.fullmatch(chain["url"]) if chain else None
    if chain is None or own is None or own["name"].lower() != name.lower() or not _stays(own["path"]):
        return None
    return chain["archive"], chain["member"] or "", chain["url"]


def read_url(url: str, name: str) -> bytes:
    """A picture of the data set `name` on the Hub, by what a row says. Raises Unreadable; another's leaves it."""
    found = split_url(url, name)
    if found is None:
        raise files.Unreadable(reasons.LEAVES_FOLDER)
    try:
        return files.read(*_opened(*found))
    except files.Unreadable:
        raise
    except Exception:  # every store and archive has exceptions of its own
        raise files.Unreadable(reasons.CANNOT_READ) from None


def _opened(archive: str | None, member: str, url: str) -> tuple[AbstractFileSystem, str]:
    from fsspec.core import url_to_fs

    if archive is None:
        return url_to_fs(url)
    if archive == "tar":
        return _tar(url), member
    return url_to_fs(f"{archive}://{member}::{url}")


@lru_cache(4)
def _tar(url: str) -> AbstractFileSystem:
    from fsspec.core import url_to_fs
    from fsspec.implementations.tar import TarFileSystem

    class Tar(TarFileSystem):
        def _index(self) -> None:
            self.tar.tarinfo = Header
            super()._index()

    fs, path = url_to_fs(url)
    return Tar(fs.open(path, "rb"))


def check_card(name: str, revision: str | None) -> None:
    """Raises UserError where a data set's README names files that are not its own."""
    for card in CARDS:
        path = _card(name, card, revision)
        if path is None:
            continue
        try:
            text = files.read(files.locate(".")[0], str(path), limits().text_bytes).decode("utf-8", "replace")
        except files.Unreadable as error:
            raise UserError(f"{name}: {card}: {error.reason}") from None
        try:
            told = parsing.parse_yaml(_front(text) if card.endswith(".md") else text)
        except parsing.ParseError as error:
            raise UserError(f"{name}: {card}: {error}") from None
        configs = told.get("configs") if isinstance(told, dict) else None
        for config in configs if isinstance(configs, list) else [configs]:
            for field in ("data_files", "data_dir"):
                for pattern in _texts(config.get(field) if isinstance(config, dict) else None):
                    if not (_is_relative(pattern) and _stays(pattern)) and split_url(pattern, name) is None:
                        raise UserError(f"{name}: {card}: {field} leads out of the data set: {pattern!r:.100}")


def check_saved(folder: str) -> None:
    """Raises UserError where a folder that `save_to_disk` wrote names files that are not in it."""
    root = Path(folder)
    for split in ["", *_told(root / "dataset_dict.json", "splits")]:
        for name in [split, *(_told(root / split / "state.json", "_data_files") if _is_plain(split) else [])]:
            if not _is_plain(name):
                raise UserError(f"{folder}: what save_to_disk wrote names {name!r:.100}, which is not in it")


def _card(name: str, card: str, revision: str | None) -> str | None:
    if os.path.isdir(name):
        path = os.path.join(name, card)
        return path if os.path.lexists(path) else None
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return client().hf_hub_download(name, card, repo_type="dataset", revision=revision)
    except EntryNotFoundError:  # or there is no network, and it is not cached: nor do `datasets` read it then
        return None


def _front(text: str) -> str:
    """The YAML before a README's text, as `huggingface_hub` finds it."""
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    found = REGEX_YAML_BLOCK.search(text)
    return found[2] if found else ""


def _texts(value: Any) -> Iterator[str]:
    """All texts in lists and objects."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _texts([*value.values()])
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _is_relative(path: str) -> bool:
    return ":" not in path and "\\" not in path and not path.startswith(("/", "~"))


def _stays(path: str) -> bool:
    return ".." not in path.split("/")


def _is_plain(name: str) -> bool:
    return name == posixpath.basename(name) and name not in (".", "..") and "\0" not in name


def _told(path: Path, field: str) -> list[str]:
    return [*_texts(parsing.read_object(path).get(field))] if os.path.lexists(path) else []

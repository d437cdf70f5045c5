"""Paths as people write them, in configs and on the command line: relative, with `~`, as a link, as an address.

This is the one place where paths are read. A setting of a config that names a file or a folder is absolute from then
on, so that a run may be continued from another working directory. A setting that may also name a repository of the Hub
is a path only if something of that name is here.
"""

import argparse
import contextlib
import dataclasses
import difflib
import itertools
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dalle_mini.errors import UserError

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")  # of any file system of fsspec, and hf://
_PATTERN = re.compile(r"[*?\[{]")
_KIND = "path"
MOST_LOOKED_AT = 1000  # names in a folder, for the nearest to a wrong one
LONGEST_NAME = 255  # bytes, of every usual file system


def is_address(name: str | os.PathLike) -> bool:
    """Whether the name is of a bucket or of another place on the network."""
    return bool(_ADDRESS.match(os.fspath(name)))


def expanded(name: str) -> str:
    """The name with the home folder in place of `~`; a type of argparse, for options of the command line."""
    if is_address(name):
        return name
    try:
        return _not_too_long(os.path.expanduser(name))
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _not_too_long(path: str) -> str:
    """The path. Raises UserError for one that no file system can hold; pathlib would raise an OSError of its own."""
    names = path.partition("{")[0].split(os.sep)  # a pattern's braces stand for names that are shorter
    if any(len(os.fsencode(name)) > LONGEST_NAME for name in names):
        raise UserError(
            f"{path!r:.60}...: a name in it has more than {LONGEST_NAME} bytes, and no file has such a name"
        )
    return path


def local(name: str | os.PathLike) -> str:
    """The absolute path; an address is left as it is.

    Raises:
        UserError: the name cannot be a path, or the working directory is gone.
    """
    name = os.fspath(name)
    if not name or is_address(name):
        return name
    path = Path(_not_too_long(os.path.expanduser(name)))
    try:
        # After a link, `..` leads to the parent of the link's target.
        return os.path.realpath(path) if ".." in path.parts else str(path.absolute())
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"{name!r:.200}: no path that can be looked for ({why})") from None


def no_folder(name: str | os.PathLike, words: Sequence[str] = ()) -> str:
    """`no such folder: NAME`, for a message, with the path that may be meant, or the one of `words`."""
    return f"no such folder: {os.fspath(name)}{nearest(name, words)}"


def nearest(name: str | os.PathLike, words: Sequence[str] = ()) -> str:
    """` (did you mean PATH?)` behind a path that is not here, where something is nearly so called; "" elsewhere.

    `words` can be meant instead of a path.
    """
    for near in difflib.get_close_matches(os.fspath(name)[:LONGEST_NAME], words, n=1):
        return f" (did you mean {near}?)"
    missing = Path(os.path.expanduser(name))
    with contextlib.suppress(OSError, ValueError, StopIteration):
        here = next(folder for folder in missing.parents if folder.is_dir())
        wrong, *rest = missing.relative_to(here).parts
        names = [entry.name for entry in itertools.islice(os.scandir(here), MOST_LOOKED_AT)]
        for near in difflib.get_close_matches(wrong, names, n=1):
            meant = here.joinpath(near, *rest)
            return f" (did you mean {meant if meant.exists() else here / near}?)"
    return ""


def source(name: str) -> str:
    """The absolute path of a name, or of a pattern of names, that is here or can be nothing else; other names as is."""
    fixed = _PATTERN.split(name, maxsplit=1)[0]
    folder = fixed if fixed == name else os.path.dirname(fixed) or "."
    is_path = name.startswith((".", "~", os.sep)) or os.path.exists(folder)
    return local(name) if is_path else name


def path_setting() -> Any:
    """A field of a config that names a file or a folder. A blank value raises UserError."""
    return dataclasses.field(default=None, metadata={_KIND: lambda name: local(_named(name, "a file or a folder"))})


def source_setting(default: Any = None, *, names: Sequence[str] = ()) -> Any:
    """A field of a config that names one source or several: a path, an address, or a repository of the Hub.

    A blank value raises UserError.

    Args:
        names: words that never mean a path.
    """

    def resolved(name: str) -> str:
        return name if name in names else source(_named(name, "a file, a folder or a repository"))

    return dataclasses.field(default=default, metadata={_KIND: resolved})


def _named(name: str, kinds: str) -> str:
    if not name.strip():  # a variable of the shell that is not set
        raise UserError(f"it is blank: name {kinds}, or leave it out")
    return name


def resolve_setting(field: dataclasses.Field, value: Any) -> Any:
    """The value of a config's field, with its paths resolved if the field names paths."""
    resolve = field.metadata.get(_KIND)
    if resolve is None or value is None:
        return value
    return resolve(value) if isinstance(value, str) else tuple(map(resolve, value))

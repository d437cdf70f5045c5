"""A folder that is the user's alone, for files that are trusted unread, such as programs to run."""

import os
import shutil
import stat
from pathlib import Path

MAX_LINKS = 40  # as Linux


class Unsafe(Exception):
    """Somebody else may change the files in a folder. The message is one line, with the place and the way out."""


def make_private(folder: Path) -> None:
    """Make a folder that is the user's alone (mode 0700), or check one that is there.

    The contents of a folder that others could write to are removed.

    Raises:
        Unsafe: the folder, or one on the way to it, belongs to others or may be written by them.
        OSError: the folder cannot be made.
    """
    folder = folder.absolute()
    for parent in reversed(folder.parents):
        if not parent.is_dir():
            parent.mkdir(0o700, exist_ok=True)
    _check_way(folder.parent)
    if os.path.lexists(folder):
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise Unsafe(f"{folder} is a link, or belongs to another user: remove it")
        if _others_write(found):
            shutil.rmtree(folder)
    folder.mkdir(0o700, exist_ok=True)
    folder.chmod(0o700)


def _check_way(folder: Path) -> None:
    """Raises Unsafe if somebody else may replace a folder on the way to this one by another folder or a link."""
    at, links, left = Path(folder.root), 0, list(reversed(folder.parts[1:]))
    _check(at)
    while left:
        name = left.pop()
        if name == os.pardir:
            at = at.parent
            continue
        at = at / name
        _check(at)
        if at.is_symlink():
            links += 1
            target = Path(os.readlink(at))
            at = Path(target.root) if target.root else at.parent
            left += reversed(target.parts[1:] if target.root else target.parts)
            if links > MAX_LINKS:
                raise OSError(f"{folder}: too many symbolic links")


def _check(path: Path) -> None:
    found = path.lstat()
    if found.st_uid not in (0, os.geteuid()):
        raise Unsafe(f"{path} belongs to another user")
    # In a folder with the sticky bit, such as /tmp, others cannot touch what is not theirs.
    if not stat.S_ISLNK(found.st_mode) and _others_write(found) and not found.st_mode & stat.S_ISVTX:
        raise Unsafe(f"{path} may be written by other users (mode {stat.S_IMODE(found.st_mode):o}): chmod go-w it")


def _others_write(found: os.stat_result) -> bool:
    if found.st_mode & stat.S_IWOTH:
        return True
    return bool(found.st_mode & stat.S_IWGRP) and not _is_own_group(found.st_gid)


def _is_own_group(number: int) -> bool:
    """Whether a group is the one that many systems make for each user, with nobody else in it."""
    import grp
    import pwd

    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(number)
    except KeyError:
        return False
    return user.pw_gid == number and group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}

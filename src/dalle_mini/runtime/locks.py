"""Locks between processes of a machine, on open files. A lock goes with its process, however that ends."""

import fcntl
from typing import IO


class Busy(Exception):
    """Another process holds the lock."""


def lock(file: IO | int, *, shared: bool = False) -> None:
    """Lock an open file or folder (or its descriptor) until it is closed, here and in the processes that inherit it.

    Raises:
        Busy: another process has the lock (with `shared`, for itself alone).
        OSError: the file system has no locks.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Busy from None

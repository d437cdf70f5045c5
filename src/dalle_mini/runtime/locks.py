"""Locks between processes of a machine, on open files: they go with the process, however it ends."""

import fcntl
from typing import IO


class Busy(Exception):
    """Another process holds the lock."""


def lock(file: IO | int, *, shared: bool = False) -> None:
    """Lock an open file or folder (or its descriptor) until it is closed, here and in the processes that inherit it.

    Raises Busy where another process has it (shared: has it for itself alone), OSError where there are no locks.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Busy from None

"""Writes to people. A message that cannot be written never ends the work.

A stream may be missing (`cmd >&-`), closed, on a full disk, at a terminal that went away, or in an encoding that lacks
a character. `say` and `answer` write as much as they can and drop the rest. Text from outside cannot steer the terminal
or forge a line: control characters and line breaks are escaped, and very long text is cut.

`guarded` gives both of the process's streams the same patience, for what other libraries print while a command runs.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterable, Iterator
from typing import TextIO

from dalle_mini.addresses import without_secrets

MAX_CHARACTERS = 4000  # of one line

# C0 and C1 controls, line separators, and the marks that reorder what a terminal shows.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def one_line(text: object, limit: int | None = MAX_CHARACTERS) -> str:
    """`text` as it may be shown in one line: unsafe characters escaped, the middle of a very long text left out.

    Addresses are shown without what lets others in.
    """
    text = without_secrets(str(text))
    if limit is not None and len(text) > limit:  # before the escaping, which would make it longer still
        text = f"{text[: limit * 3 // 4]} ... {text[-limit // 5 :]}"
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def say(text: object, *, end: str = "\n", start: str = "") -> None:
    """Tell one line on stderr: progress, notices, errors. `start` and `end` are written as they are."""
    _write(sys.stderr, start + one_line(text) + end)


def answer(*lines: object, limit: int | None = MAX_CHARACTERS) -> None:
    """Give each line on stdout: what the command was asked for. `limit`: None for what a program reads."""
    _write(sys.stdout, "".join(one_line(line, limit) + "\n" for line in lines))


def duration(seconds: float) -> str:
    """12 s, 3 min, 2 h 05 min, 3 d 04 h."""
    minutes = round(seconds / 60)
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24:02d} h"


def is_terminal() -> bool:
    """Whether stderr is shown on a terminal."""
    return sys.stderr is not None and Guarded(sys.stderr).isatty()


def _write(stream: TextIO | Guarded | None, text: str) -> None:
    if stream is not None:
        stream = stream if isinstance(stream, Guarded) else Guarded(stream)
        stream.write(text)
        stream.flush()  # a line that waits in a buffer is lost when the process is killed


class Guarded:
    """A text stream that never raises and drops the text that it cannot write.

    Attributes:
        broken: the first reason why something could not be written, or None.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream
        self.broken: OSError | ValueError | None = None

    def write(self, text: str) -> int:
        with self._patiently():
            self._stream.write(self._encodable(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        with self._patiently():
            self._stream.flush()

    def isatty(self) -> bool:
        with self._patiently():
            return self._stream.isatty()
        return False

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def _encodable(self, text: str) -> str:
        encoding = getattr(self._stream, "encoding", None)
        return text.encode(encoding, "backslashreplace").decode(encoding) if encoding else text

    @contextlib.contextmanager
    def _patiently(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: the stream is closed
            self.broken = self.broken or error


@contextlib.contextmanager
def guarded() -> Iterator[tuple[Guarded, Guarded]]:
    """While the block runs, stdout and stderr are `Guarded`, and the descriptors 0 to 2 are open.

    Without the latter the next file that is opened would get the number of a closed stream, and a C library that prints
    to descriptor 2 would write into it.
    """
    _open_standard_descriptors()
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w") as null:
        guards = Guarded(before[0] or null), Guarded(before[1] or null)
        sys.stdout, sys.stderr = guards
        try:
            yield guards
        finally:
            sys.stdout, sys.stderr = before


def _open_standard_descriptors() -> None:
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number: this one


def drop_unwritten(stream: Guarded) -> None:
    """Keep Python's last flush, at the end of the process, from complaining about a stream that cannot be written."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)

"""Recognises exceptions that mean too little memory; each library raises its own."""

import errno
import re

ADVICE = "use a smaller model or a smaller batch, close other programs, or take a machine with more"

# XLA on a device or the host, C++ libraries, the system, and Python when a thread's stack finds no place.
_SAID = re.compile(
    "RESOURCE_EXHAUSTED|std::bad_alloc|cannot allocate memory|can't start new thread|failed to map segment from shared",
    re.IGNORECASE,
)


def told(reason: str) -> str:
    """The line for people about a `shortage`."""
    return f"the machine has too little memory ({reason}): {ADVICE}"


def shortage(error: BaseException) -> str | None:
    """The reason, in a few words, if an exception means that memory ran out; else None."""
    before = error.__cause__ or error.__context__
    if isinstance(error, ImportError) and before is not None and (reason := shortage(before)):
        return reason  # a library could not be loaded
    is_ours = isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM
    text = str(error)[:10_000]
    found = _SAID.search(text)
    if not (is_ours or found):
        return None
    line = text[found.start() if found else 0 :].removeprefix("RESOURCE_EXHAUSTED").lstrip(": ").split("\n")[0]
    return line[:120].strip() or "no more is to be had"

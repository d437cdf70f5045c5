"""What Orbax, asyncio below it and a bucket's client print by themselves: passed over where it is raised as well."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import Any

# Orbax reports every save as a warning, and with the bucket's client every failure by its traceback; they are raised
# here as well.
for _talker in ("absl", "gcsfs"):
    logging.getLogger(_talker).setLevel(logging.CRITICAL)

# Where a write fails, the others that are under way end later, in other threads, and find nobody who waits for them.
logging.getLogger("asyncio").addFilter(lambda record: "orbax" not in record.getMessage())
_unraisable = sys.unraisablehook


def _unraisable_but_of_writes(told: Any) -> None:
    if str(told.exc_value) != "Event loop is closed":
        _unraisable(told)


sys.unraisablehook = _unraisable_but_of_writes


@contextlib.contextmanager
def quiet_reading() -> Iterator[None]:
    """Where one array cannot be read, the others' reads end nowhere, and asyncio would print a page about each."""
    logger, hook = logging.getLogger("asyncio"), sys.unraisablehook
    before, logger.disabled, sys.unraisablehook = logger.disabled, True, lambda _: None
    try:
        yield
    finally:
        logger.disabled, sys.unraisablehook = before, hook

"""Silences messages of Orbax, of asyncio below it and of a bucket's client about errors that are raised as well."""

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
    """Silence asyncio: where one array cannot be read, it would print a page about each other read under way."""
    logger, hook = logging.getLogger("asyncio"), sys.unraisablehook
    before, logger.disabled, sys.unraisablehook = logger.disabled, True, lambda _: None
    try:
        yield
    finally:
        logger.disabled, sys.unraisablehook = before, hook

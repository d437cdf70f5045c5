"""A job's events, which any number of clients read at their own speed and from where they left off."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import secrets
from collections.abc import AsyncIterator
from typing import Any

RUN = secrets.token_hex(4)  # of the server: events of an earlier one are numbered from 1, too


@dataclasses.dataclass(frozen=True)
class Told:
    """An event: `kind` is its name; a later one with the same `subject` takes its place."""

    number: int
    kind: str
    subject: tuple
    data: Any

    @property
    def id(self) -> str:
        return f"{RUN}.{self.number}"


class EventLog:
    """The events of a job that still count. It belongs to the event loop's thread.

    A client that reads slowly misses what has been replaced meanwhile, and costs no memory.
    """

    def __init__(self) -> None:
        self._events: dict[tuple, Told] = {}
        self._numbers = itertools.count(1)
        self._news = asyncio.Event()
        self.is_over = False

    def tell(self, kind: str, data: Any, *about: Any) -> None:
        subject = (kind, *about)
        self._events.pop(subject, None)
        self._events[subject] = Told(next(self._numbers), kind, subject, data)
        self._wake()

    def forget(self, *subject: Any) -> None:
        """Drop all events of a kind, or of a kind and what follows, that nobody needs any more."""
        for one in [one for one in self._events if one[: len(subject)] == subject]:
            del self._events[one]

    def end(self) -> None:
        self.is_over = True
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def follow(self, after: str | None = None, every: float = 15.0) -> AsyncIterator[Told | None]:
        """The events after one, as they come, and None where none came for `every` seconds."""
        run, _, number = (after or "").partition(".")
        seen = int(number) if run == RUN and number.isdecimal() and len(number) < 18 else 0
        while True:
            news = self._news
            fresh = next((event for event in self._events.values() if event.number > seen), None)
            if fresh is not None:
                seen = fresh.number
                yield fresh
                continue
            if self.is_over:
                return
            came = False
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(news.wait(), every)
                came = True
            if not came:
                yield None

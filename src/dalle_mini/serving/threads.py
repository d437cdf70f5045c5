"""The thread of a drawer: it asks the owner of the queue for parts, and hands it the events."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

from dalle_mini.errors import UserError
from dalle_mini.runtime import memory
from dalle_mini.serving.drawing import About, Drawer, Drawn, Event, Part

T = TypeVar("T")
logger = logging.getLogger("dalle_mini.serving")


class Owner(Protocol):
    """The part that a thread needs of the queue's owner; all of it is called in the event loop."""

    def opened(self, drawer: int, about: About) -> None:
        """A drawer's model is loaded and warm."""

    def broke(self, message: str) -> None:
        """A drawer cannot load the model."""

    async def next_parts(self, drawer: int) -> list[Part] | None:
        """The parts of the drawer's next call, as soon as there are any; None when the server stops."""

    def noticed(self, event: Event, parts: Sequence[Part]) -> None:
        """An event of a call of these parts."""

    async def keep(self, drawn: Drawn) -> None:
        """Put a part's images on disk."""

    async def call_ended(self, drawer: int, parts: Sequence[Part], seconds: float, problem: str | None) -> None:
        """A call took so many seconds, or was broken off by a problem."""


class DrawingThread(threading.Thread):
    """Draws with one drawer until the server stops."""

    def __init__(self, number: int, drawer: Drawer, owner: Owner, loop: asyncio.AbstractEventLoop):
        super().__init__(name=f"drawer {number}", daemon=True)
        self._number, self._drawer, self._owner, self._loop = number, drawer, owner, loop

    def run(self) -> None:
        try:
            about = self._drawer.open()
        except Exception as error:
            self._loop.call_soon_threadsafe(self._owner.broke, _told(error))
            return
        self._asked(self._opened(about)).result()
        kept: list[Future[None]] = []  # images of the last call, on their way to the disk
        while (parts := self._asked(self._owner.next_parts(self._number)).result()) is not None:
            before, kept = kept, []
            clock, problem = time.monotonic(), None
            try:
                for event in self._drawer.draw(parts):
                    if isinstance(event, Drawn):
                        kept.append(self._asked(self._owner.keep(event)))
                    else:
                        self._loop.call_soon_threadsafe(self._owner.noticed, event, parts)
            except Exception as error:
                problem = _told(error)
            for one in before:
                one.result()  # so that no more than two calls' images are in memory
            seconds = time.monotonic() - clock
            self._asked(self._owner.call_ended(self._number, parts, seconds, problem)).result()
        for one in kept:
            one.result()

    async def _opened(self, about: About) -> None:
        self._owner.opened(self._number, about)

    def _asked(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)


def _told(error: Exception) -> str:
    """An exception, for clients: nothing of the machine but what a `UserError` says."""
    if isinstance(error, UserError):
        return str(error)
    if memory.shortage(error) is not None:
        return "the server has too little memory for this request: ask for fewer candidates"
    logger.error("drawing failed", exc_info=error)
    return "drawing failed: the server's log has the reason"

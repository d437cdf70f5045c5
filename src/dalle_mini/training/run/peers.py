"""Ends this process with one line and exit code 75 when another process of `jax.distributed` went away.

A killed process tells nobody. The others learn it from the coordination service when it has heard nothing for
`heartbeat` seconds, or at once where it was process 0, which runs that service. XLA then calls abort() in a thread of
its own (exit code 134); its callback for Python cannot be used, as it ends in a `std::bad_cast`. So the signal of that
abort is handled here. An abort while all processes are heard is another fault, and stays one.
"""

from __future__ import annotations

import contextlib
import ctypes
import platform
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

from dalle_mini.errors import UserError, listed
from dalle_mini.training.run.preemption import PREEMPTED, end

BEATS = "dalle_mini/alive/"  # below it each process counts on, for the others to know which one stopped
LAST_LOOK = 3.0  # seconds that an abort waits to know whether the service answers
FURTHER = 10.0  # seconds beyond the heartbeat until a failed call is not taken for a lost process any more

_peers: Peers | None = None  # of this process; the handler must not be collected


def watch(heartbeat: float) -> None:
    """Look after the other processes, once `jax.distributed` is initialised with that heartbeat."""
    global _peers
    import jax
    from jax._src.distributed import global_state  # the only way to its key-value store

    _peers = Peers(global_state.client, jax.process_index(), jax.process_count(), heartbeat)
    _peers.start()


@contextlib.contextmanager
def ended_with_the_others() -> Iterator[None]:
    """Where a call failed in the block because a process went away, wait until that is known and ends this process.

    A collective fails as soon as a connection breaks, before anybody can tell why.
    """
    try:
        yield
    except Exception as error:
        if _peers is not None and not _is_of_the_user(error):
            time.sleep(_peers.heartbeat + FURTHER)
        raise


def _is_of_the_user(error: BaseException | None) -> bool:
    while error is not None:
        if not isinstance(error, UserError | OSError):
            return False
        error = error.__cause__
    return True


class Peers:
    """The processes of a run, as this one hears of them.

    Args:
        client: the coordination service's.
        process, count: this one's number, and how many there are.
        heartbeat: seconds of silence after which the service gives up a process.
    """

    def __init__(self, client: Any, process: int, count: int, heartbeat: float):
        self.heartbeat = heartbeat
        self._client, self._process = client, process
        self._heard = dict.fromkeys(set(range(count)) - {process}, ("", time.monotonic()))  # what, and when
        self._beats, self._answered = 0, False
        self._beat_now, self._has_beaten = threading.Event(), threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._beat_on, daemon=True).start()
        self._handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._aborted)
        ctypes.CDLL(None).signal(signal.SIGABRT, self._handler)  # Python's own would run in the main thread, too late

    def beat(self) -> None:
        """Tell the others that this process is there, and hear the same of them. Raises where the service is gone."""
        self._beats += 1
        self._client.key_value_set(f"{BEATS}{self._process}", f"{self._beats} {platform.node()}", allow_overwrite=True)
        for key, told in self._client.key_value_dir_get(BEATS):
            number = int(key.rpartition("/")[2])
            if number in self._heard and self._heard[number][0] != told:
                self._heard[number] = told, time.monotonic()

    def gone(self) -> list[str]:
        """The processes that are not heard any more, in words."""
        long_ago = time.monotonic() - self.heartbeat / 2
        silent = [number for number, (_, when) in self._heard.items() if when < long_ago]
        if not silent and self._process and not self._service_answers():
            silent = [0]
        return [self._named(number) for number in silent]

    def _named(self, number: int) -> str:
        host = self._heard[number][0].partition(" ")[2]
        return f"process {number}" + (f" on {host}" if host else "")

    def _service_answers(self) -> bool:
        self._has_beaten.clear()
        self._beat_now.set()
        return self._has_beaten.wait(LAST_LOOK) and self._answered

    def _beat_on(self) -> None:
        while True:
            try:
                self.beat()
                self._answered = True
            except Exception:  # XLA's, of any type
                self._answered = False
            self._has_beaten.set()
            self._beat_now.wait(self.heartbeat / 5)
            self._beat_now.clear()

    def _aborted(self, number: int) -> None:
        if gone := self.gone():
            end(PREEMPTED, f"{listed(gone)} went away: run the same command in all processes again")
        ctypes.CDLL(None).signal(number, ctypes.c_void_p(0))  # as it was: abort() goes on

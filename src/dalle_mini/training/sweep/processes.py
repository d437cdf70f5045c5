"""The runs of a sweep as processes: one at a time in a folder, told of the signals that the sweep gets."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from dalle_mini.errors import UserError
from dalle_mini.runtime.locks import Busy, lock
from dalle_mini.runtime.stopping import ASKED

# Exit codes of a run that was asked to stop and can go on.
STOPPED = (75, 130, -signal.SIGINT, -signal.SIGTERM, -signal.SIGHUP)
LOOK = 1.0  # seconds between two looks at a run that goes


class Stopped(Exception):
    """A run or the sweep itself was asked to stop. `exit_code` is the sweep's; the same command continues."""

    def __init__(self, exit_code: int):
        super().__init__(exit_code)
        self.exit_code = 130 if exit_code in (130, -signal.SIGINT) else 75


class Processes:
    """The processes that train now.

    Attributes:
        stopped: the exit code of the first one that was asked to stop; 0 while none was.
    """

    def __init__(self):
        self.stopped = 0
        self._running: set[subprocess.Popen] = set()
        self._lock = threading.Lock()

    def run(self, command: Sequence[str], log: BinaryIO, is_hopeless: Callable[[], bool]) -> tuple[int, bool]:
        """Run a command until it ends, and ask it to end where it is hopeless; its output goes to `log`.

        Returns:
            its exit code, and whether it was asked to end because it is hopeless.
        """
        # In a group of its own: the terminal's Ctrl-C would come to it twice, and the second time kills.
        with self._lock:
            try:
                process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
            except OSError as error:
                raise UserError(f"--command {command[0]}: cannot be run ({error.strerror})") from None
            self._running.add(process)
        if self.stopped:
            process.terminate()
        try:
            is_pruned = False
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return process.wait(LOOK), is_pruned
                if not (is_pruned or self.stopped) and is_hopeless():
                    is_pruned = True
                    process.terminate()
        finally:
            with self._lock:
                self._running.discard(process)

    def lock(self, log: BinaryIO, wait: Callable[[], None]) -> bool:
        """Lock a log to which no other run writes. False: it is time to stop.

        A run holds the lock through its standard output, so that it outlives a sweep that was killed.
        """
        told = False
        while not self.stopped:
            try:
                lock(log)
                return True
            except Busy:
                if not told:
                    wait()
                told = True
                time.sleep(0.5)
        return False

    def stop(self, exit_code: int) -> None:
        """Begin no other run."""
        self.stopped = self.stopped or exit_code

    @contextlib.contextmanager
    def told_of_signals(self) -> Iterator[None]:
        """While the block runs, signals that ask to stop are passed on to the processes."""

        def tell(number, _frame) -> None:
            self.stop(130 if number == signal.SIGINT else 75)
            for process in list(self._running):
                process.send_signal(number)

        heard = [number for number in (signal.SIGINT, *ASKED) if signal.getsignal(number) is not signal.SIG_IGN]
        earlier = {number: signal.signal(number, tell) for number in heard}
        try:
            yield
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)


def last_words(log: Path) -> str:
    """The last line of a log that begins with `error:`, else the last one that is not blank."""
    with log.open("rb") as file:
        file.seek(max(0, os.path.getsize(log) - 65536))
        lines = [line.strip() for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or ["it said nothing"])[-1][:300]

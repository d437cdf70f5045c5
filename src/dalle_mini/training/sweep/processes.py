"""The runs of a sweep as processes, each with a log that it locks."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from dalle_mini.errors import UserError
from dalle_mini.runtime.files import open_to_append
from dalle_mini.runtime.locks import Busy, lock
from dalle_mini.runtime.stopping import ASKED

# Exit codes of a run that was asked to stop and can go on: of training, of a command that has not yet begun to train,
# and of a process that the signal ended.
STOPPED = (75, *(code for number in (signal.SIGINT, *ASKED) for code in (128 + number, -number)))
LOOK = 0.5  # seconds between two looks at a run that goes


@contextlib.contextmanager
def noted_signals() -> Iterator[list[int]]:
    """While the block runs, signals that ask to stop are noted in the list, and do nothing else."""
    asked: list[int] = []
    heard = [number for number in (signal.SIGINT, *ASKED) if signal.getsignal(number) is not signal.SIG_IGN]
    earlier = {number: signal.signal(number, lambda number, _: asked.append(number)) for number in heard}
    try:
        yield asked
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def run(
    command: Sequence[str], log: Path, asked: Sequence[int], is_hopeless: Callable[[], bool], say: Callable[[str], None]
) -> tuple[int | None, bool]:
    """Run a command until it ends. It is told of the signals in `asked`, and asked to end where it is hopeless.

    It holds the lock of its log through its standard output, so that the lock outlives a sweep that was killed.

    Returns:
        its exit code, None where it was asked to stop before it began, and whether it was asked to end as hopeless.
    """
    with open_to_append(log) as file:
        waits = False
        while asked or not _is_free(file):
            if asked:
                return None, False
            if not waits:
                say("still runs from before; waiting")
            waits = True
            time.sleep(LOOK)
        try:
            # In a group of its own: the terminal's Ctrl-C would come to it twice, and the second time kills.
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        except OSError as error:
            raise UserError(f"--command {command[0]}: cannot be run ({error.strerror})") from None
        told, is_pruned = 0, False
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return process.wait(LOOK), is_pruned
                for number in asked[told:]:
                    process.send_signal(number)
                    told += 1
                if not (told or is_pruned) and is_hopeless():
                    is_pruned = True
                    process.terminate()
        finally:
            process.terminate()  # after an error; one that has ended is not told
            process.wait()


def _is_free(log: BinaryIO) -> bool:
    """Whether no other run writes to the log, which is locked then."""
    try:
        lock(log)
    except Busy:
        return False
    return True


def last_words(log: Path) -> str:
    """The last line of a log that begins with `error:`, else the last one that is not blank."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 65536))
        lines = [line.strip() for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or ["it said nothing"])[-1][:300]

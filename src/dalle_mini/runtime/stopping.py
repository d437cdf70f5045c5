"""SIGTERM and SIGHUP unwind a command as Ctrl-C does, so that nothing half-written stays behind."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

ASKED = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
AGAIN = 0.05  # seconds


class Stopped(KeyboardInterrupt):
    """The process was asked to stop, by a signal.

    Attributes:
        number: of the signal.
        exit_code: 128 plus the number, as a shell reports it for a program that the signal ended.
    """

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number, self.exit_code = number, 128 + number


@contextlib.contextmanager
def unwinding() -> Iterator[None]:
    """While the block runs, in the main thread, SIGTERM and SIGHUP raise `Stopped` there.

    A signal that comes while such an exception unwinds is ignored, since it would interrupt the tidying up. A signal
    that is ignored from the start, as under `nohup`, stays ignored. Python swallows an exception in a callback of the
    garbage collector, such as JAX's; it is raised again a moment later.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    process, told = os.getpid(), sys.unraisablehook

    def stop(number: int, _) -> None:
        if os.getpid() != process:  # a forked child, whose parent tidies up
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif not _unwinds():
            raise Stopped(number)

    def swallowed(unraisable) -> None:
        if not isinstance(unraisable.exc_value, KeyboardInterrupt):
            return told(unraisable)
        number = getattr(unraisable.exc_value, "number", signal.SIGINT)
        again = threading.Timer(AGAIN, signal.pthread_kill, (threading.main_thread().ident, number))
        again.daemon = True
        again.start()

    heard = [number for number in ASKED if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in heard}
    sys.unraisablehook = swallowed
    try:
        yield
    finally:  # whoever has taken these over meanwhile keeps them, as training does to the process's end
        if sys.unraisablehook is swallowed:
            sys.unraisablehook = told
        for number, handler in before.items():
            if signal.getsignal(number) is stop:
                signal.signal(number, handler or signal.SIG_DFL)  # None is one that is not Python's


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Restore our handlers after foreign code that installs its own, as `jax.distributed` does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (*ASKED, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)


def _unwinds() -> bool:
    error = sys.exc_info()[1]
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None

"""Being asked to stop: SIGTERM, Ctrl-C, or a cloud's notice that the machine will be taken away.

The request is only noted; the loop asks for it between steps, saves and leaves. A second Ctrl-C kills at once. A
process that has not left after `grace` seconds, because a disk or another process hangs, is ended, and the run goes on
from the checkpoint before. One that has made no step yet, and has nothing to save, is not waited for that long.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

PREEMPTED = 75  # the exit code: EX_TEMPFAIL of sysexits.h, "try again"
INTERRUPTED = 130  # Ctrl-C, as everywhere in the shell

NOTICE_VARIABLE = "DALLE_MINI_PREEMPTION_URL"  # asked instead of the metadata server: other clouds, and tests
GOOGLE_NOTICE = "http://metadata.google.internal/computeMetadata/v1/instance/preempted"
PRODUCT_NAME = Path("/sys/class/dmi/id/product_name")  # says "Google" on Google's machines, TPU VMs among them


class Preempted(SystemExit):
    """The run was asked to stop, has saved, and can be continued. Where nobody catches it, the exit code is 75."""

    def __init__(self, reason: str, step: int):
        super().__init__(PREEMPTED)
        self.reason, self.step = reason, step

    def __str__(self) -> str:
        return f"stopped by {self.reason} after step {self.step}"


@contextlib.contextmanager
def leaving_when_asked() -> Iterator[None]:
    """SIGTERM ends the block at once with exit code 75: while a run is prepared there is nothing to save.

    `Preemption` takes over within, while it trains.
    """

    def leave(*_) -> None:
        print("\nstopped by SIGTERM before training began: run the same command again", file=sys.stderr, flush=True)
        raise Preempted("SIGTERM", 0)

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is signal.SIG_IGN:
        yield
        return
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


class Preemption:
    """Listens while its `with` block runs, in the main thread only; elsewhere only the cloud's notice is heard.

    Attributes:
        code: 0 as long as nobody asked, then PREEMPTED or INTERRUPTED: the exit code that is due.
        reason: who asked, in words.
        has_work: whether there is something to save; to be set after the first step.
    """

    def __init__(self, grace: float = 120.0, poll_every: float = 2.0, grace_without_work: float = 10.0):
        self.code, self.reason, self.has_work = 0, "", False
        self._grace, self._poll_every = grace, poll_every
        self._grace_without_work = min(grace, grace_without_work)
        self._over = threading.Event()

    def __enter__(self) -> Preemption:
        if threading.current_thread() is threading.main_thread():
            self._listen()
        url = _notice_url()
        if url is not None:
            threading.Thread(target=self._poll, args=(url,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._over.set()
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(self._wakeup_before)
            self._send.close()

    def ask(self, code: int, reason: str) -> None:
        """Note that the run shall stop; from now on `grace` seconds are left."""
        if not self.code:
            self.reason, self.code = reason, code
            threading.Thread(target=self._end_late, daemon=True).start()

    def _listen(self) -> None:
        # Python calls its handlers between two lines of the main thread, which may be minutes inside a compilation.
        # The byte that the interpreter's own handler writes to a socket is there at once, for a thread to read.
        receive, self._send = socket.socketpair()
        self._send.setblocking(False)
        self._before = {
            # None is a handler that is not Python's: jax.distributed's, which this one replaces for good.
            number: signal.signal(number, lambda *_: None) or signal.SIG_DFL
            for number in (signal.SIGTERM, signal.SIGINT)
            if signal.getsignal(number) is not signal.SIG_IGN  # as nohup wants it
        }
        self._wakeup_before = signal.set_wakeup_fd(self._send.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._hear, args=(receive,), daemon=True).start()

    def _hear(self, receive: socket.socket) -> None:
        with receive:
            while received := receive.recv(1):
                if received[0] == signal.SIGTERM:
                    self.ask(PREEMPTED, "SIGTERM")
                elif received[0] == signal.SIGINT:
                    if self.code == INTERRUPTED:
                        _end(INTERRUPTED, "interrupted again: ended at once, without a checkpoint of the last steps")
                    print("\ninterrupted: saving; Ctrl-C again ends it at once", file=sys.stderr, flush=True)
                    self.ask(INTERRUPTED, "Ctrl-C")

    def _poll(self, url: str) -> None:
        request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while not self._over.wait(self._poll_every):
            # A server that does not answer is asked again: it may be there tomorrow, when it matters.
            with contextlib.suppress(OSError, ValueError), opener.open(request, timeout=2) as answer:
                if answer.read(16).strip().upper() == b"TRUE":
                    return self.ask(PREEMPTED, "the cloud's notice")

    def _end_late(self) -> None:
        if self._over.wait(self._grace_without_work):
            return
        if not self.has_work:
            _end(self.code, f"ended by {self.reason} before its first step: nothing is lost")
        if not self._over.wait(self._grace - self._grace_without_work):
            _end(self.code, f"not saved within {self._grace:g} s of {self.reason}: ended, at the checkpoint before")


def _end(code: int, why: str) -> None:
    print(f"\n{why}", file=sys.stderr, flush=True)
    os._exit(code)


def _notice_url() -> str | None:
    if NOTICE_VARIABLE in os.environ:
        return os.environ[NOTICE_VARIABLE] or None
    with contextlib.suppress(OSError):
        if "Google" in PRODUCT_NAME.read_text():
            return GOOGLE_NOTICE
    return None

"""Being asked to stop: SIGTERM, SIGHUP, Ctrl-C, or a cloud's notice that the machine will be taken away.

The request is only noted; the loop asks for it between steps, saves and leaves. No handler raises anything: its error
would come out amid an import or in a callback of the garbage collector, where it is swallowed or becomes a traceback. A
second Ctrl-C kills at once. A process that has not left after `grace` seconds, because a disk or another process hangs,
is ended, and the run goes on from the checkpoint before. One that has made no step yet, and has nothing to save, is not
waited for that long; the command does not wait for it at all.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import socket

PREEMPTED = 75  # the exit code: EX_TEMPFAIL of sysexits.h, "try again"
INTERRUPTED = 130  # Ctrl-C, as everywhere in the shell

HEARD = {signal.SIGTERM: "SIGTERM", signal.SIGHUP: "SIGHUP", signal.SIGINT: "Ctrl-C"}
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
def held_back() -> Iterator[None]:
    """Signals that come in this block are delivered at its end: none is lost before somebody listens.

    They wait through an `exec` too: the program that takes this one's place must enter such a block, and end it.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, HEARD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HEARD)


class Preemption:
    """Listens while its `with` block runs, in the main thread only; elsewhere only the cloud's notice is heard.

    Attributes:
        code: the exit code that is due: 0 as long as nobody asked, then PREEMPTED or INTERRUPTED.
        reason: who asked, in words.
        has_work: whether there is something to save; to be set after the first step.
        is_told: whether the user knows how it ended; to be set when all is saved and said.
    """

    def __init__(self, grace: float = 120.0, poll_every: float = 2.0, grace_without_work: float = 10.0):
        self.code, self.reason, self.has_work, self.is_told = 0, "", False, False
        self.grace, self.grace_without_work, self._poll_every = grace, grace_without_work, poll_every
        self._asked, self._over = threading.Event(), threading.Event()
        self._before: dict[int, Any] = {}  # the handlers that were there
        self._send: socket.socket | None = None

    def __enter__(self) -> Preemption:
        global _listening
        _listening, self._outer = self, _listening
        with held_back():  # for the threads: a signal that one of them takes would not wake the main thread's sleep
            threading.Thread(target=self._end_late, daemon=True).start()
            url = _notice_url()
            if url is not None:
                threading.Thread(target=self._poll, args=(url,), daemon=True).start()
            self._listen()
        return self

    def __exit__(self, *_) -> None:
        global _listening
        _listening = self._outer
        self._over.set()
        self._asked.set()
        if self._send is not None:
            self._give_back()
            self._send.close()

    def ask(self, code: int, reason: str) -> None:
        """Note that the run must stop; from now on `grace` seconds are left."""
        if not self.code:
            self.reason, self.code = reason, code
            self._asked.set()

    def take_signals(self) -> None:
        """Handle the signals from now on. Call it again after a library has installed handlers of its own."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in HEARD:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup wants it
                before = signal.signal(number, _noted)
                if before is not _noted:
                    self._before.setdefault(number, before or signal.SIG_DFL)  # None is one that is not Python's

    def _listen(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        import socket

        # Python calls its handlers between two lines of the main thread, which may be minutes inside a compilation.
        # The byte that the interpreter's own handler writes to a socket is there at once, for a thread to read.
        receive, self._send = socket.socketpair()
        self._send.setblocking(False)
        threading.Thread(target=self._hear, args=(receive,), daemon=True).start()
        self._wakeup_before = signal.set_wakeup_fd(self._send.fileno(), warn_on_full_buffer=False)
        self.take_signals()

    def _give_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)

    def _hear(self, receive) -> None:
        with receive:
            while received := receive.recv(1):
                reason = HEARD.get(received[0])
                if received[0] != signal.SIGINT:
                    if reason is not None:  # others have handlers of their own
                        self.ask(PREEMPTED, reason)
                    continue
                if self.code == INTERRUPTED:
                    lost = "interrupted again: ended at once, without a checkpoint of the last steps"
                    end(INTERRUPTED, "" if self.is_told else lost)
                if self.has_work or self.grace_without_work:
                    _tell(f"interrupted: {'saving' if self.has_work else 'ending'}; Ctrl-C again ends it at once")
                self.ask(INTERRUPTED, HEARD[signal.SIGINT])

    def _poll(self, url: str) -> None:
        import urllib.request

        request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while not self._over.wait(self._poll_every):
            # A server that does not answer is asked again: it may be there tomorrow, when it matters.
            with contextlib.suppress(OSError, ValueError), opener.open(request, timeout=2) as answer:
                if answer.read(16).strip().upper() == b"TRUE":
                    return self.ask(PREEMPTED, "the cloud's notice")

    def _end_late(self) -> None:
        self._asked.wait()
        asked = time.monotonic()
        while not self._over.is_set() and time.monotonic() - asked < self._patience():
            self._over.wait(0.05)
        if self._over.is_set():
            return
        if self.is_told:
            end(self.code, "")
        if self.has_work:
            end(self.code, f"not saved within {self.grace:g} s of {self.reason}: ended, at the checkpoint before")
        if self.code == INTERRUPTED:
            end(self.code, "interrupted")
        end(self.code, f"stopped by {self.reason} before its first step: nothing is lost, run the same command again")

    def _patience(self) -> float:
        return self.grace if self.has_work else min(self.grace, self.grace_without_work)


_listening: Preemption | None = None  # of this process, the innermost


@contextlib.contextmanager
def listening(grace: float) -> Iterator[Preemption]:
    """Listen for a run that has yet to begin: in a block of `Preemption`, that one, with `grace` from now on."""
    if _listening is None:
        with Preemption(grace) as notice:
            yield notice
        return
    _listening.grace, _listening.has_work = grace, False
    _listening.take_signals()
    yield _listening


def _noted(*_) -> None:
    """A handler that does nothing: `Preemption._hear` has the signal from the socket."""


def _mask(how: int) -> None:
    if _listening is not None:
        signal.pthread_sigmask(how, HEARD)


def _forget() -> None:
    """Stop listening in a forked child: it would report its own signals to its parent."""
    global _listening
    if _listening is not None and _listening._send is not None:
        _listening._give_back()
        _mask(signal.SIG_UNBLOCK)
    _listening = None


os.register_at_fork(
    before=lambda: _mask(signal.SIG_BLOCK),
    after_in_parent=lambda: _mask(signal.SIG_UNBLOCK),
    after_in_child=_forget,
)


def end(code: int, why: str) -> None:
    """End the process on the spot, from any thread; `why` is told on stderr."""
    if why:
        _tell(why)
    os._exit(code)


def _tell(text: str) -> None:
    """A line on stderr, past Python's: another thread may hold that, waiting for a reader that never comes."""
    with contextlib.suppress(OSError, ValueError):
        if select.select([], [2], [], 1.0)[1]:
            start = "\n\x1b[?25h" if os.isatty(2) else ""  # a line is open there, or a bar has hidden the cursor
            os.write(2, f"{start}{text}\n".encode())


def _notice_url() -> str | None:
    if NOTICE_VARIABLE in os.environ:
        return os.environ[NOTICE_VARIABLE] or None
    with contextlib.suppress(OSError):
        if "Google" in PRODUCT_NAME.read_text():
            return GOOGLE_NOTICE
    return None

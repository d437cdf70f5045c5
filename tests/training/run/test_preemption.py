"""Requests to stop, as a process hears them."""

import http.server
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dalle_mini.training.run import preemption
from dalle_mini.training.run.preemption import (
    INTERRUPTED,
    NOTICE_VARIABLE,
    PREEMPTED,
    Preempted,
    Preemption,
    held_back,
    listening,
)


def heard(notice, seconds=300.0):
    until = time.monotonic() + seconds
    while not notice.code and time.monotonic() < until:
        time.sleep(0.01)
    return notice.code, notice.reason


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (signal.SIGTERM, (PREEMPTED, "SIGTERM")),
        (signal.SIGHUP, (PREEMPTED, "SIGHUP")),
        (signal.SIGINT, (INTERRUPTED, "Ctrl-C")),
    ],
)
def test_signals_are_noted_and_handlers_put_back(number, expected, capfd, hang_up):
    before = {each: signal.getsignal(each) for each in preemption.HEARD}
    with Preemption() as notice:
        assert notice.code == 0
        os.kill(os.getpid(), number)
        assert heard(notice) == expected
        os.kill(os.getpid(), signal.SIGTERM)  # what comes after changes nothing
        time.sleep(0.05)
        assert (notice.code, notice.reason) == expected
    assert {each: signal.getsignal(each) for each in before} == before
    assert signal.set_wakeup_fd(-1) == -1
    assert ("Ctrl-C again ends it at once" in capfd.readouterr().err) == (number == signal.SIGINT)


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Preemption() as notice:
            os.kill(os.getpid(), signal.SIGINT)
            assert heard(notice, 0.1) == (0, "")
    finally:
        signal.signal(signal.SIGINT, before)


def test_exit_codes():
    assert (PREEMPTED, INTERRUPTED) == (75, 130)
    stop = Preempted("SIGTERM", 7)
    assert (stop.code, str(stop)) == (75, "stopped by SIGTERM after step 7")
    assert isinstance(stop, SystemExit)


class Metadata(http.server.BaseHTTPRequestHandler):
    """A metadata server: `answers` are given one after the other, the last one again and again."""

    def do_GET(self):
        answers, asked = self.server.answers, self.server.asked
        asked.append((self.path, self.headers["Metadata-Flavor"]))
        code, body = answers[min(len(asked), len(answers)) - 1]
        self.send_response(code)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    serving = http.server.ThreadingHTTPServer(("localhost", 0), Metadata)
    serving.asked = []
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    monkeypatch.setenv(NOTICE_VARIABLE, f"http://localhost:{serving.server_port}/instance/preempted")
    yield serving
    serving.shutdown()
    serving.server_close()


def test_the_clouds_notice(server):
    server.answers = [(200, b"FALSE"), (503, b"TRUE"), (200, b"nonsense"), (200, b"TRUE\n")]
    with Preemption(poll_every=0.01) as notice:
        assert heard(notice) == (PREEMPTED, "the cloud's notice")
    assert server.asked == [("/instance/preempted", "Google")] * 4


def test_a_server_that_is_not_there_is_no_notice_and_no_delay(monkeypatch):
    monkeypatch.setenv(NOTICE_VARIABLE, "http://localhost:9/")
    asked_by, poll = [], Preemption._poll
    monkeypatch.setattr(Preemption, "_poll", lambda *given: (asked_by.append(threading.current_thread()), poll(*given)))
    with Preemption(poll_every=0.01) as notice:
        assert heard(notice, 0.1) == (0, "")
    assert asked_by and threading.main_thread() not in asked_by


@pytest.mark.parametrize(
    ("product", "url"), [("Google Compute Engine\n", preemption.GOOGLE_NOTICE), ("Laptop", None), (None, None)]
)
def test_only_googles_machines_are_asked(product, url, tmp_path, monkeypatch):
    monkeypatch.delenv(NOTICE_VARIABLE, raising=False)
    monkeypatch.setattr(preemption, "PRODUCT_NAME", tmp_path / "product_name")
    if product is not None:
        (tmp_path / "product_name").write_text(product)
    assert preemption._notice_url() == url
    monkeypatch.setenv(NOTICE_VARIABLE, "")  # says: ask nobody
    assert preemption._notice_url() is None


# A main thread that hears nothing, as in a long compilation: it never gets to run a Python signal handler.
DEAF = """
import ctypes, sys
from dalle_mini.training.run.preemption import Preemption
with Preemption(grace=float(sys.argv[1]), grace_without_work=0.3) as notice:
    notice.has_work = sys.argv[2] == "True"
    print("ready", flush=True)
    for _ in range(100):  # a signal ends a sleep, and only that
        ctypes.CDLL(None).sleep(30)
"""


def deaf(grace, has_work=True):
    environment = {**os.environ, "PYTHONPATH": str(Path(preemption.__file__).parents[3]), NOTICE_VARIABLE: ""}
    process = subprocess.Popen(
        [sys.executable, "-c", DEAF, str(grace), str(has_work)], env=environment, stdout=-1, stderr=-1, text=True
    )
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_second_interruption_kills_at_once_whatever_the_main_thread_does():
    process = deaf(60)
    process.send_signal(signal.SIGINT)
    assert "Ctrl-C again ends it at once" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait() == INTERRUPTED
    assert "not saved within" not in process.stderr.read()  # which it says when its 60 s are over


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, PREEMPTED), (signal.SIGINT, INTERRUPTED)])
def test_time_is_bounded(number, code):
    process = deaf(0.3)
    began = time.monotonic()
    process.send_signal(number)
    assert process.wait() == code
    assert time.monotonic() - began >= 0.3
    assert "not saved within 0.3 s of" in process.stderr.read()


def test_before_the_first_step_nobody_waits_for_a_save():
    """A compilation hears nothing for minutes, and there is nothing to lose."""
    process = deaf(60, has_work=False)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == PREEMPTED
    assert process.stderr.read() == (
        "stopped by SIGTERM before its first step: nothing is lost, run the same command again\n"
    )


def test_with_something_to_save_it_has_its_time():
    process = deaf(1.0)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait() == PREEMPTED
    assert time.monotonic() - began >= 1.0


def test_a_run_within_the_command_is_told_what_the_command_heard():
    with Preemption(grace_without_work=60.0) as notice:
        with held_back():
            signal.raise_signal(signal.SIGTERM)
            assert heard(notice, 0.1) == (0, "")
        assert heard(notice) == (PREEMPTED, "SIGTERM")
        with listening(30.0) as same:
            assert (same.code, same.grace, same.has_work) == (PREEMPTED, 30.0, False)
    with listening(30.0) as new:
        assert (new.code, new.grace) == (0, 30.0)


@pytest.mark.filterwarnings("ignore:.*os.fork")
def test_a_forked_child_is_not_its_parents_ear():
    with Preemption() as notice:
        child = os.fork()
        if not child:
            time.sleep(60)
            os._exit(0)
        os.kill(child, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
        assert heard(notice, 0.1) == (0, "")


# `dalle-mini` with a mark on stdout once it is within `main`; with huge pages it begins once more, and marks it again.
MARKED = """if True:
    import os, signal, sys
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it would be ignored
    from dalle_mini import cli
    made = cli.build_parser
    cli.build_parser = lambda: (os.write(1, b"."), made())[1]
    sys.exit(cli.main())
"""


def signalled(delay: float, config: Path, out: Path, number: int) -> tuple[int, str]:
    """(exit code, stderr) of a run that is begun or continued, and gets a signal so long after the first line."""
    environment = {**os.environ, "PYTHONPATH": str(Path(preemption.__file__).parents[3]), NOTICE_VARIABLE: ""}
    command = [sys.executable, "-c", MARKED, "train", str(config), "--output", str(out)]
    process = subprocess.Popen(command, env=environment, stdout=-1, stderr=-1)
    assert process.stdout.read(1) == b"."
    time.sleep(delay)
    process.send_signal(number)
    shown, errors = process.communicate(timeout=300)
    assert not shown.strip(b".")
    return process.returncode, errors.decode()


def stop_after(delay: float, config: Path, out: Path, number: int) -> None:
    code, said = signalled(delay, config, out, number)
    assert code == PREEMPTED, said
    assert said.count("stopped by") == 1, said
    assert "stopped by" in said.splitlines()[-1] and "Traceback" not in said and "Exception" not in said, said


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.5])
def test_asked_to_stop_in_its_first_moments_it_ends_in_one_line(delay, never_ending, tmp_path):
    stop_after(delay, never_ending, tmp_path / "run", signal.SIGTERM)


def test_ctrl_c_in_the_first_moments_is_told_in_one_line_too(never_ending, tmp_path):
    assert signalled(0.2, never_ending, tmp_path / "run", signal.SIGINT) == (INTERRUPTED, "interrupted\n")


@pytest.mark.slow
@pytest.mark.parametrize("moments", [range(20), pytest.param(range(20, 200), marks=pytest.mark.hours)], ids=len)
def test_asked_to_stop_at_any_moment_it_ends_in_one_line(moments, never_ending, tmp_path):
    """Imports, the start again with huge pages, restoring, compiling, training: wherever the signal comes."""
    rng = random.Random(moments.start)
    for number in moments:
        delay = rng.uniform(0, 12) if number % 2 else rng.uniform(0, 1.5)
        print(f"try {number}: {delay:.3f} s after the first line")
        stop_after(delay, never_ending, tmp_path / f"run-{number // 10}", rng.choice([signal.SIGTERM, signal.SIGHUP]))

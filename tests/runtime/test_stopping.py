import signal
import subprocess
import sys

import pytest

UNWINDS = """if True:
    import gc, os, signal, sys, time
    from dalle_mini.commands.terminal import exit_code
    {before}
    def work():
        try:
            print("ready", flush=True)
            {work}
            for _ in range(600):
                time.sleep(0.1)
        finally:
            {tidy}
            print("tidied up", flush=True)
    sys.exit(exit_code(work))
"""


def end(number: int | None = None, before: str = "", work: str = "", tidy: str = "") -> tuple[int, str, str]:
    """Exit code, stdout behind the first line, and stderr of a command that is sent a signal in its work."""
    code = UNWINDS.format(before=before, work=work, tidy=tidy)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=-1, stderr=-1, text=True)
    if number is not None:
        process.stdout.readline()
        process.send_signal(number)
    out, err = process.communicate(timeout=60)
    return process.returncode, out.removeprefix("ready\n"), err


@pytest.mark.usefixtures("hang_up")
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_command_that_is_asked_to_stop_tidies_up(name, code):
    assert end(getattr(signal, name)) == (code, "tidied up\n", f"stopped by {name}\n")


def test_what_the_garbage_collector_swallows_is_raised_again():
    # As in JAX, which calls back at every collection.
    before = "sent = []; gc.callbacks.append(lambda *_: sent and os.kill(os.getpid(), sent.pop()))"
    work = "sent.append(signal.SIGTERM); gc.collect()"
    assert end(before=before, work=work) == (143, "tidied up\n", "stopped by SIGTERM\n")


def test_a_second_signal_does_not_end_the_tidying_up():
    tidy = "os.kill(os.getpid(), signal.SIGTERM); os.kill(os.getpid(), signal.SIGHUP); time.sleep(0.1)"
    assert end(signal.SIGTERM, tidy=tidy) == (143, "tidied up\n", "stopped by SIGTERM\n")


def test_what_is_ignored_from_the_start_stays_ignored():
    work = "os.kill(os.getpid(), signal.SIGHUP); raise SystemExit(7)"
    assert end(before="signal.signal(signal.SIGHUP, signal.SIG_IGN)", work=work) == (7, "tidied up\n", "")


def test_a_forked_child_ends_and_leaves_the_tidying_up_to_its_parent():
    work = """child = os.fork()
            if child == 0:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(60)
            raise SystemExit(os.waitpid(child, 0)[1])"""
    assert end(work=work) == (signal.SIGTERM, "tidied up\n", "")


def test_handlers_of_foreign_code_are_put_back():
    from dalle_mini.runtime import stopping

    with stopping.unwinding():
        ours = signal.getsignal(signal.SIGTERM)
        with stopping.kept():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        assert signal.getsignal(signal.SIGTERM) is ours
    assert signal.getsignal(signal.SIGTERM) is not ours

"""Damaged files of every kind end well: read, or refused in one line. `run.py` says how the limits are kept."""

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
QUICK, SLOW, HOURS = 30, 200, 2200  # of a reader's cases, where the quick ones, the slow ones and all end


def run(start: int, stop: int) -> subprocess.CompletedProcess:
    """In a process of its own: it forks, which a process that has run networks must not."""
    sys.path.insert(0, str(HERE))
    from readers import READERS

    command = [sys.executable, str(HERE / "run.py"), "--start", str(start)]
    command += ["--cases", str((stop - start) * len(READERS))]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("start", "stop"),
    [
        (0, QUICK),
        pytest.param(QUICK, SLOW, marks=pytest.mark.slow),
        pytest.param(SLOW, HOURS, marks=[pytest.mark.slow, pytest.mark.hours]),
    ],
)
def test_damaged_files_end_well(start, stop):
    done = run(start, stop)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_what_fails_is_found(tmp_path, monkeypatch):
    # The fuzzer itself: an endless reader, a greedy one, one that raises and one that dies are each told.
    code = f"""if True:
        import sys
        sys.path.insert(0, {str(HERE)!r})
        import run, readers, os, ctypes
        run.CPU_SECONDS = 1
        def endless(folder):
            while True: pass
        def greedy(folder): bytearray(2 << 30)
        def raises(folder): raise KeyError("x")
        def dies(folder): os.abort()
        for read in (endless, greedy, raises, dies):
            readers.READERS["one"] = lambda: readers.Reader({{"a": (b"a", lambda random, data: data)}}, read)
            outcome = run.fuzz("one", range(2))
            assert len(outcome.failed) == 2 and not outcome.read, outcome
            print(outcome.failed[1])
        """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    endless, greedy, raises, dies = done.stdout.splitlines()
    assert "processor seconds" in endless and "600 MB" in greedy and "KeyError" in raises and "ended with -6" in dies

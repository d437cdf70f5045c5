"""Feed damaged files to every reader: `python tests/fuzz/run.py --cases 50000 [--readers NAME ...] [--keep FOLDER]`.

A case may be read, or refused with the project's own errors. It fails where it ends in another exception or kills the
process, uses more than 10 processor seconds, or lets memory grow by more than 600 MB. The limits are the kernel's
(`RLIMIT_CPU`, `RLIMIT_AS`), set in forked workers that have imported everything already; no clock is asked.

A case is its reader's name and a number; the same two give the same bytes. `--only NAME NUMBER` runs one case and shows
its traceback.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import TextIO

CPU_SECONDS = 10
GROWTH = 600 << 20  # bytes
REFUSED = "refused"

os.environ.setdefault("JAX_PLATFORMS", "cpu")
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ARROW_IO_THREADS"):
    os.environ.setdefault(name, "1")

import conftest  # noqa: E402, F401 puts the makers of small files on the path
import readers  # noqa: E402


@dataclasses.dataclass
class Outcome:
    """The outcome of a reader's cases: how many were read, how many refused, and why each other one failed."""

    read: int = 0
    refused: int = 0
    failed: dict[int, str] = dataclasses.field(default_factory=dict)

    def add(self, number: int, why: str | None) -> None:
        if why is None:
            self.read += 1
        elif why == REFUSED:
            self.refused += 1
        else:
            self.failed[number] = why


def fuzz(name: str, numbers: range, keep: Path | None = None) -> Outcome:
    """Try the cases of a reader; a worker that dies of one is followed by another."""
    outcome, start = Outcome(), numbers.start
    while start < numbers.stop:
        start = 1 + _worker(name, range(start, numbers.stop), keep, outcome)
    return outcome


def _worker(name: str, numbers: range, keep: Path | None, outcome: Outcome) -> int:
    """Try cases in a forked process. Returns the last number that was tried; the process may have died of it."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receive)
        with os.fdopen(send, "w", buffering=1) as told:
            _work(name, numbers, told, keep)
        os._exit(0)
    os.close(send)
    last = numbers.start - 1
    with os.fdopen(receive) as lines:
        for line in lines:
            last, why = json.loads(line)
            outcome.add(last, why)
    _, status = os.waitpid(child, 0)
    if status == 0:
        return last
    code = os.waitstatus_to_exitcode(status)
    killed = -code in (signal.SIGXCPU, signal.SIGKILL)
    outcome.add(last + 1, f"more than {CPU_SECONDS} processor seconds" if killed else f"the process ended with {code}")
    return last + 1


def _work(name: str, numbers: range, told: TextIO, keep: Path | None) -> None:
    """Try each case; tell a line [number, why] when it is over."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    warnings.simplefilter("ignore")
    reader = readers.READERS[name]()
    with tempfile.TemporaryDirectory() as folder:
        for number in numbers:
            told.write(json.dumps([number, attempt(reader, name, number, Path(folder), keep)]) + "\n")


def attempt(reader: readers.Reader, name: str, number: int, folder: Path, keep: Path | None = None) -> str | None:
    """None where a case was read, `REFUSED`, or why it fails."""
    readers.clear(folder)
    readers.damaged(reader, f"{name}-{number}", folder)
    _limit()
    try:
        reader.read(folder)
        return None
    except readers.refusals() as refusal:
        text = str(refusal)
        if text and "\n" not in text:
            return REFUSED
        why = f"a refusal of {text.count(chr(10)) + 1} lines: {text!r:.150}"
    except MemoryError:
        why = f"more than {GROWTH >> 20} MB"
    except BaseException as error:  # a panic of a Rust library is no Exception
        last = traceback.extract_tb(error.__traceback__)[-1]
        why = f"{type(error).__name__} in {Path(last.filename).name}:{last.lineno}: {str(error)[:150]}"
    if keep is not None:
        target = keep / f"{name}-{number}"
        shutil.copytree(folder, target, dirs_exist_ok=True)
    return why


def _limit() -> None:
    used = time.process_time()
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used) + CPU_SECONDS + 1, hard))
    with open("/proc/self/statm", encoding="ascii") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + GROWTH, hard))


def warm(name: str) -> None:
    """Read the valid files once, so that the workers find everything imported."""
    reader = readers.READERS[name]()
    with tempfile.TemporaryDirectory() as folder:
        for file, (data, _) in reader.files.items():
            (Path(folder) / file).write_bytes(data)
        reader.read(Path(folder))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=5000, help="over all readers together")
    parser.add_argument("--start", type=int, default=0, help="number of the first case of each reader")
    parser.add_argument("--readers", nargs="*", default=list(readers.READERS), choices=list(readers.READERS))
    parser.add_argument("--keep", type=Path, help="a folder for the files of cases that fail")
    parser.add_argument("--only", nargs=2, metavar=("NAME", "NUMBER"))
    args = parser.parse_args()
    if args.only:
        name, number = args.only[0], int(args.only[1])
        with tempfile.TemporaryDirectory() as folder:
            reader = readers.READERS[name]()
            readers.damaged(reader, f"{name}-{number}", Path(folder))
            reader.read(Path(folder))
        return 0
    each, failed = -(-args.cases // len(args.readers)), 0
    for name in args.readers:
        warm(name)
        before = sum(os.times()[:4])
        outcome = fuzz(name, range(args.start, args.start + each), args.keep)
        seconds = sum(os.times()[:4]) - before
        for number, why in outcome.failed.items():
            print(f"  {name} {number}: {why}")
        counts = f"{outcome.read:5} read {outcome.refused:5} refused {len(outcome.failed):5} failed"
        print(f"{name:20} {counts} {seconds:8.1f} processor seconds", flush=True)
        failed += len(outcome.failed)
    print(f"{each * len(args.readers)} cases, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())

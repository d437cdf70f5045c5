"""The same training with several settings, one run after the other (or some at a time), and a page that compares them.

    OUTPUT/sweep.json          what all runs share; another sweep may not use the folder
           runs/<point>/       a run's folder, as `dalle-mini train` writes it
           runs/<point>.log    what it said
           runs/<point>.json   how it ended
           report.html         the runs as a table, best first, and their curves

A sweep that was killed is continued by the same command: runs that are done are left alone, and the others go on from
their checkpoints. Values may be added to a sweep in the same way.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dalle_mini.errors import UserError
from dalle_mini.reports.run_page import Row, write_comparison
from dalle_mini.reports.svg import number
from dalle_mini.results.write import check_writable
from dalle_mini.runtime.console import duration
from dalle_mini.runtime.files import open_to_append, remove_leftovers, write_whole
from dalle_mini.runtime.locks import Busy, lock
from dalle_mini.runtime.stopping import ASKED
from dalle_mini.training.records import read_log
from dalle_mini.training.sweep_points import Point

TRAIN = (sys.executable, "-m", "dalle_mini.cli", "train")
STOPPED = (
    75,
    130,
    -signal.SIGINT,
    -signal.SIGTERM,
    -signal.SIGHUP,
)  # exit codes of a run that was asked to stop and can go on

METRICS = ("eval_loss", "loss", "sample_score", "pictures_per_second")

Say = Callable[[str], None]


@dataclass
class Outcome:
    """How a point's run ended.

    Attributes:
        exit_code: of the run; None while it is not over.
        error: what it said at the end, where it failed.
        seconds: of all its attempts together that were seen to end.
        summary: of its log, as of `summary`.
    """

    point: Point
    exit_code: int | None = None
    error: str = ""
    seconds: float = 0.0
    summary: dict[str, float] = field(default_factory=dict)

    @property
    def is_done(self) -> bool:
        return self.exit_code == 0

    @property
    def loss(self) -> float:
        """What decides: the evaluation's, the training's where there is none, infinite where it failed."""
        return self.summary.get("eval_loss", self.summary.get("loss", math.inf)) if self.is_done else math.inf


@dataclass(frozen=True)
class Sweep:
    """What to run.

    Attributes:
        config: the training's configuration, as `dalle-mini train` takes it.
        output: the sweep's folder.
        fixed: settings of all runs, `key=value`.
        jobs: runs at a time.
        command: what trains; it is given CONFIG --output OUT --resume auto key=value...
    """

    config: str
    output: Path
    fixed: tuple[str, ...] = ()
    jobs: int = 1
    command: tuple[str, ...] = TRAIN

    def run(self, points: Sequence[Point], say: Say) -> list[Outcome]:
        """Run what is not done yet; best first. `KeyboardInterrupt` and SIGTERM are passed on to the runs.

        Raises UserError where any run's settings are wrong, the folder is another sweep's, or it cannot be written, and
        `Stopped` where a run was asked to stop.
        """
        self._check(points)
        self._claim(points)
        outcomes = {point.name: self._read(point) for point in points}
        todo = [point for point in points if not outcomes[point.name].is_done]
        if len(todo) < len(points):
            say(f"{len(points) - len(todo)} of {len(points)} runs are done already")
        place = {point.name: f"[{number}/{len(points)}] {point.name}" for number, point in enumerate(points, 1)}
        children = Children()
        with children.told_of_signals(), ThreadPoolExecutor(self.jobs) as pool:
            waiting = [pool.submit(self._train, point, outcomes[point.name], children, place, say) for point in todo]
            for one in as_completed(waiting):
                outcome = one.result()
                outcomes[outcome.point.name] = outcome
                self._report(list(outcomes.values()))
        if children.stopped:
            raise Stopped(children.stopped)
        ranked = self.ranked(outcomes.values())
        self._report(ranked)
        return ranked

    def ranked(self, outcomes) -> list[Outcome]:
        """Best first; those that failed last."""
        return sorted(outcomes, key=lambda one: (not one.is_done, one.loss))

    def table(self, outcomes: Sequence[Outcome]) -> tuple[list[str], list[Row]]:
        """Titles and rows, as `page.write_comparison` takes them."""
        metrics = [name for name in METRICS if any(name in one.summary for one in outcomes)]
        rows: list[Row] = []
        for one in outcomes:
            if one.exit_code is None:
                rows.append((one.point.name, (), "not done"))
            elif not one.is_done:
                rows.append((one.point.name, (), f"exit code {one.exit_code}: {one.error}"))
            else:
                cells = [number(one.summary[name]) if name in one.summary else "" for name in metrics]
                rows.append((one.point.name, (*cells, duration(one.seconds)), None))
        return [*(name.replace("_", " ") for name in metrics), "time"], rows

    def _check(self, points: Sequence[Point]) -> None:
        """All settings before the first run: what is wrong with a key is wrong in every one."""
        if self.command != TRAIN:
            return  # another command has settings of its own
        from dalle_mini.training.tasks import load_run

        for point in points:
            load_run(self.config, (*self.fixed, *point.assignments))

    def _claim(self, points: Sequence[Point]) -> None:
        """Make the folder this sweep's, or see that it is."""
        check_writable(self.output)
        remove_leftovers(self.output / "runs")
        names = [point.name for point in points]
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"{name}: named twice: leave one out")
        file = Path(self.config)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()[:16] if file.is_file() else None
        ours = {"config": self.config if digest is None else file.name, "sha256": digest, "fixed": list(self.fixed)}
        path = self.output / "sweep.json"
        try:
            found = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            found = ours
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read ({error}): name another --output") from None
        if found != ours:
            changed = [name for name in ours if not isinstance(found, dict) or found.get(name) != ours[name]]
            raise UserError(f"{self.output} holds a sweep with another {' and '.join(changed)}: name another --output")
        write_whole(path, (json.dumps(ours, indent=2) + "\n").encode())

    def _folder(self, point: Point) -> Path:
        return self.output / "runs" / point.name

    def _record(self, point: Point) -> Path:
        return self.output / "runs" / f"{point.name}.json"

    def _read(self, point: Point) -> Outcome:
        try:
            found = json.loads(self._record(point).read_text("utf-8"))
            seconds, exit_code = float(found["seconds"]), found["exit_code"]
            if found["assignments"] != list(point.assignments):
                raise UserError(f"{self._record(point)}: of another run: name another --output")
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, UserError):
                raise
            return Outcome(point)
        return Outcome(point, exit_code, found.get("error", ""), seconds, summary(self._folder(point)))

    def _train(self, point: Point, before: Outcome, children: Children, place: dict[str, str], say: Say) -> Outcome:
        if children.stopped:
            return before
        folder, log = self._folder(point), self.output / "runs" / f"{point.name}.log"
        folder.parent.mkdir(parents=True, exist_ok=True)
        command = [*self.command, self.config, "--output", str(folder), "--resume", "auto"]
        command += [*self.fixed, *point.assignments]
        say(f"{place[point.name]}: begins")
        with open_to_append(log) as file:
            if not children.lock(file, lambda: say(f"{place[point.name]}: still runs from before; waiting")):
                return before
            began = time.monotonic()
            exit_code = children.run(command, file)
        outcome = Outcome(point, exit_code, "", before.seconds + time.monotonic() - began, summary(folder))
        if exit_code in STOPPED:
            children.stop(exit_code)
            outcome.exit_code = None
        elif exit_code != 0:
            outcome.error = last_words(log)
        record = {
            "assignments": list(point.assignments),
            "exit_code": outcome.exit_code,
            "error": outcome.error,
            "seconds": round(outcome.seconds, 1),
            "summary": outcome.summary,
        }
        write_whole(self._record(point), (json.dumps(record, indent=2) + "\n").encode())
        say(f"{place[point.name]}: {self._told(outcome)}")
        return outcome

    def _told(self, outcome: Outcome) -> str:
        if outcome.exit_code is None:
            return "stopped"
        if not outcome.is_done:
            return f"failed, exit code {outcome.exit_code}: {outcome.error}"
        told = [
            f"{name.replace('_', ' ')} {number(outcome.summary[name])}" for name in METRICS if name in outcome.summary
        ]
        return ", ".join([duration(outcome.seconds), *told])

    def _report(self, outcomes: Sequence[Outcome]) -> None:
        ranked = self.ranked(outcomes)
        # Colours by name, so that they stay while the order changes.
        runs = {one.point.name: self._folder(one.point) for one in outcomes if self._folder(one.point).is_dir()}
        runs = dict(sorted(runs.items()))
        header, rows = self.table(ranked)
        write_comparison(self.output / "report.html", f"Sweep · {Path(self.config).stem}", runs, header, rows)


class Stopped(Exception):
    """A run was asked to stop, or this process was: `exit_code` is what it ends with. The same command goes on."""

    def __init__(self, exit_code: int):
        super().__init__(exit_code)
        self.exit_code = 130 if exit_code in (130, -signal.SIGINT) else 75


class Children:
    """The runs of the moment, who are passed the signals that this process gets."""

    def __init__(self):
        self.stopped = 0  # the exit code of the first one that was asked to stop
        self._processes: set[subprocess.Popen] = set()
        self._lock = threading.Lock()

    def run(self, command: Sequence[str], log) -> int:
        # In a group of its own: the terminal's Ctrl-C would come to it twice, and the second time kills.
        with self._lock:
            try:
                process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
            except OSError as error:
                raise UserError(f"--command {command[0]}: cannot be run ({error.strerror})") from None
            self._processes.add(process)
        if self.stopped:
            process.terminate()
        try:
            return process.wait()
        finally:
            with self._lock:
                self._processes.discard(process)

    def lock(self, log, wait: Callable[[], None]) -> bool:
        """Lock a log that no other run writes to any more; False where it is time to stop.

        A run holds the lock with its standard output, and longer than a sweep that was killed.
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
        def tell(number, _frame) -> None:
            self.stop(130 if number == signal.SIGINT else 75)
            for process in list(self._processes):
                process.send_signal(number)

        heard = [number for number in (signal.SIGINT, *ASKED) if signal.getsignal(number) is not signal.SIG_IGN]
        earlier = {number: signal.signal(number, tell) for number in heard}
        try:
            yield
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)


def summary(folder: Path) -> dict[str, Any]:
    """Of a run's log: the lowest value of what is evaluated, else the last one, and the speed's median."""
    found: dict[str, Any] = {}
    speeds = []
    for record in read_log(folder / "log.jsonl"):
        for name, value in record.items():
            if not isinstance(value, int | float):
                continue
            found[name] = min(value, found.get(name, value)) if name == "eval_loss" else value
        if record.get("pictures_per_second") is not None:
            speeds.append(record["pictures_per_second"])
    if speeds:
        found["pictures_per_second"] = sorted(speeds)[len(speeds) // 2]
    return found


def last_words(log: Path) -> str:
    """The last line of a log that begins with `error:`, else the last one that is not blank."""
    with log.open("rb") as file:
        file.seek(max(0, os.path.getsize(log) - 65536))
        lines = [line.strip() for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or ["it said nothing"])[-1][:300]

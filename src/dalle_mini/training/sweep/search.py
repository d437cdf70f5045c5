"""The same training with several settings, one run after the other (or some at a time), and a page that compares them.

    OUTPUT/journal.log         Optuna's journal: what all runs share, and how each trial ended
           runs/<point>/       a run's folder, as `dalle-mini train` writes it
           runs/<point>.log    what it said
           report.html         the runs as a table, best first, their curves, and the result over each setting

The journal says what is done. So the same command continues a sweep that was killed: runs that are done are left alone,
and the others go on from their checkpoints. Values may be added in the same way.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dalle_mini.results.write import check_writable
from dalle_mini.runtime.console import duration
from dalle_mini.runtime.files import remove_leftovers
from dalle_mini.runtime.hashing import short_hash
from dalle_mini.runtime.stopping import Stopped
from dalle_mini.training.config import recipes
from dalle_mini.training.records import LOG
from dalle_mini.training.sweep import study as studies
from dalle_mini.training.sweep.page import result, summary, told, write_page
from dalle_mini.training.sweep.processes import STOPPED, last_words, noted_signals, run
from dalle_mini.training.sweep.space import Plan, Point

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial, Trial

TRAIN = (sys.executable, "-m", "dalle_mini.cli", "train")
CHECKED = 100  # points by chance whose settings are checked where the points are not known before

Say = Callable[[str], None]


@dataclass(frozen=True)
class Sweep:
    """A search over one training: its config, its folder, and the settings to try.

    Attributes:
        config: the training's configuration, as `dalle-mini train` takes it.
        output: the sweep's folder.
        plan: the settings to try.
        seed: for choices by chance.
        jobs: runs at a time.
        command: trains; its arguments are CONFIG --output OUT --resume auto key=value...
    """

    config: str
    output: Path
    plan: Plan
    seed: int = 0
    jobs: int = 1
    command: tuple[str, ...] = TRAIN

    def run(self, say: Say) -> list[FrozenTrial]:
        """Run what is not done yet. Signals that ask to stop are passed on to the runs.

        Returns:
            the last trial of each point, best first, those that failed last. Its `user_attrs` are: `run`, the point's
            name; `wrong`, why it is not done; `seconds`, of all trials of the point, but for those that the sweep did
            not see end; `summary`, of its log.

        Raises:
            UserError: any run's settings are wrong, the folder is another sweep's or in use, or it cannot be written.
            Stopped: the sweep or one of its runs was asked to stop.
        """
        self.plan.check()
        # With TPE no point is known from the start, since each depends on the results before it.
        planned = list(self.plan.combinations()) if self.plan.method == "grid" else []
        if self.plan.method == "random":
            planned = studies.drawn(self.plan, self.plan.run_cap, self.seed)
        if self.command == TRAIN:  # another command has settings of its own
            from dalle_mini.training.tasks import load_run

            for point in planned or studies.drawn(self.plan, CHECKED, self.seed):
                load_run(self.config, point.assignments)
        check_writable(self.output)
        (self.output / "runs").mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.output / "runs")
        with studies.open_study(self.output, self.plan, self._shared()) as study, noted_signals() as asked:
            self._run_all(study, planned, asked, say)
            ranked = self._report(study, planned)
        if asked:
            raise Stopped(asked[0])
        return ranked

    def _shared(self) -> dict[str, Any]:
        """The properties that all runs of a folder share."""
        file = recipes.find(self.config) if self.command == TRAIN else Path(self.config)
        return {
            "config": file.name if file.is_file() else self.config,
            "sha256": short_hash(file.read_bytes()) if file.is_file() else None,
            "fixed": self.plan.fixed,
            "metric": [self.plan.metric.name, self.plan.metric.goal],
        }

    def _run_all(self, study: optuna.Study, planned: Sequence[Point], asked: list[int], say: Say) -> None:
        """Run the points that are not over, in order, until all are or a signal is in `asked`."""
        waiting, turn = self._begun(study, planned, say), threading.Lock()

        def work(_) -> None:
            try:
                while not asked:
                    with turn:
                        if (begun := next(waiting, None)) is None:
                            return
                    self._train(study, *begun, asked)
                    with turn:
                        self._report(study, planned)
            except BaseException:
                asked.append(signal.SIGTERM)  # to the other runs
                raise

        with ThreadPoolExecutor(self.jobs) as pool:
            list(pool.map(work, range(self.jobs)))

    def _begun(self, study: optuna.Study, planned: Sequence[Point], say: Say) -> Iterator[tuple[Trial, Point, Say]]:
        """A trial of one point after the other that is not over, begun when it is asked for."""
        tried = self._last(study, planned)
        over = {name for name, trial in tried.items() if studies.is_over(trial)}
        total = len(planned) or self.plan.run_cap
        if over:
            say(f"{len(over)} of {total} runs are done already")
        points = planned or self._proposals(study, [self.plan.point(trial.params) for trial in tried.values()])
        for place, point in enumerate(points, 1):
            if point.name not in over:
                label = f"[{place}/{total}] {point.name}"
                trial = studies.begin(study, self.plan, point)
                yield trial, point, lambda text, label=label: say(f"{label}: {text}")  # type: ignore[misc]

    def _proposals(self, study: optuna.Study, tried: Sequence[Point]) -> Iterator[Point]:
        """The points that were tried, and new ones until there are enough, each from the results before it."""
        yield from tried
        taken = {point.name for point in tried}
        while len(taken) < self.plan.run_cap:
            if (point := studies.proposed(self.plan, taken, self.seed, study.trials)) is None:
                return
            taken.add(point.name)
            yield point

    def _train(self, study: optuna.Study, trial: Trial, point: Point, tell: Say, asked: list[int]) -> None:
        """Run a point until it ends, and tell the journal how. A run that was asked to stop stops the sweep."""
        from optuna.trial import TrialState

        folder = self.output / "runs" / point.name
        log = folder.with_name(f"{point.name}.log")
        command = [*self.command, self.config, "--output", str(folder), "--resume", "auto", *point.assignments]
        pruner, began = studies.Pruner(trial, folder / LOG, self.plan), time.monotonic()
        tell("begins")
        code, is_pruned = run(command, log, asked, pruner.is_hopeless, tell)
        earlier = [one.user_attrs.get("seconds", 0) for one in study.trials if one.user_attrs["run"] == point.name]
        seconds, found = max(earlier) + time.monotonic() - began, summary(folder, self.plan)
        state, wrong, words = TrialState.FAIL, "stopped", told(found, self.plan)
        if code == 0:
            state, wrong = TrialState.COMPLETE, ""
            words = [duration(seconds), *words]
        elif is_pruned and code in STOPPED:
            state, wrong = TrialState.PRUNED, ", ".join([f"pruned after {pruner.reported} evaluations", *words])
        elif code is not None and code not in STOPPED:
            wrong = f"failed, exit code {code}: {last_words(log)}"
        elif not asked:
            asked.append(signal.SIGINT if code in (130, -signal.SIGINT) else signal.SIGTERM)
        for name, value in (("wrong", wrong), ("seconds", round(seconds, 1)), ("summary", found)):
            trial.set_user_attr(name, value)
        study.tell(trial, None if wrong else result(found, self.plan), state)
        tell(wrong or ", ".join(words))

    def _last(self, study: optuna.Study, planned: Sequence[Point]) -> dict[str, FrozenTrial]:
        """The last trial of each point by name, in the order in which they are planned, or else were first tried."""
        # A trial without parameters is one that a kill left.
        keys = self.plan.space.keys()
        found = studies.last(one for one in study.trials if one.params.keys() == keys)
        names = [point.name for point in planned] or list(found)[: self.plan.run_cap]
        return {name: found[name] for name in names if name in found}

    def _report(self, study: optuna.Study, planned: Sequence[Point]) -> list[FrozenTrial]:
        """Write the page. Returns the last trial of each point, best first; those that failed last."""
        trials = list(self._last(study, planned).values())
        results = {one.number: result(one.user_attrs.get("summary", {}), self.plan) for one in trials}
        trials.sort(key=lambda one: results[one.number], reverse=self.plan.metric.goal == "maximize")
        trials.sort(key=lambda one: (one.state.name != "COMPLETE", one.state.name != "PRUNED"))
        write_page(self.output / "report.html", f"Sweep · {Path(self.config).stem}", trials, self.plan)
        return trials

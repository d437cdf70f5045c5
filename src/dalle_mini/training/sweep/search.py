"""The same training with several settings, one run after the other (or some at a time), and a page that compares them.

    OUTPUT/journal.log         Optuna's journal: what all runs share, and how each trial ended
           runs/<point>/       a run's folder, as `dalle-mini train` writes it
           runs/<point>.log    what it said
           report.html         the runs as a table, best first, their curves, and the result over each setting

The same command continues a sweep that was killed: runs that are done are left alone, and the others go on from their
checkpoints. Values may be added to a sweep in the same way.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dalle_mini.reports.run_page import Row, write_comparison
from dalle_mini.reports.svg import number, scatter
from dalle_mini.results.write import check_writable
from dalle_mini.runtime.console import duration
from dalle_mini.runtime.files import open_to_append, remove_leftovers
from dalle_mini.runtime.hashing import short_hash
from dalle_mini.training.config import recipes
from dalle_mini.training.records import LOG, read_log
from dalle_mini.training.sweep import study as studies
from dalle_mini.training.sweep.processes import STOPPED, Processes, Stopped, last_words
from dalle_mini.training.sweep.space import Plan, Point

if TYPE_CHECKING:
    import optuna
    from optuna.trial import Trial

TRAIN = (sys.executable, "-m", "dalle_mini.cli", "train")
CHECKED = 100  # points by chance whose settings are checked where the points are not known before
METRICS = ("eval_loss", "loss", "sample_score", "pictures_per_second")

Say = Callable[[str], None]


@dataclass
class Outcome:
    """How a point's run ended.

    Attributes:
        exit_code: of the run; None while it is not over.
        pruned_after: evaluations after which it was ended, far behind the others; None where it was not.
        error: its last words, if it failed.
        seconds: of all its attempts together; an attempt that the sweep did not see end is left out.
        summary: of its log, as `summary` makes it.
    """

    point: Point
    exit_code: int | None = None
    pruned_after: int | None = None
    error: str = ""
    seconds: float = 0.0
    summary: dict[str, float] = field(default_factory=dict)

    @property
    def is_done(self) -> bool:
        return self.exit_code == 0

    @property
    def is_over(self) -> bool:
        """It needs no other attempt."""
        return self.is_done or self.pruned_after is not None

    def told(self, metrics: Sequence[str]) -> str:
        """The outcome in one line."""
        values = [f"{named(name)} {number(self.summary[name])}" for name in metrics if name in self.summary]
        if self.pruned_after is not None:
            return ", ".join([f"pruned after {self.pruned_after} evaluations", *values])
        if self.exit_code is None:
            return "stopped"
        if not self.is_done:
            return f"failed, exit code {self.exit_code}: {self.error}"
        return ", ".join([duration(self.seconds), *values])


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

    def run(self, say: Say) -> list[Outcome]:
        """Run what is not done yet; best first. `KeyboardInterrupt` and SIGTERM are passed on to the runs.

        Raises:
            UserError: any run's settings are wrong, the folder is another sweep's or in use, or it cannot be written.
            Stopped: a run was asked to stop.
        """
        self.plan.check()
        self._check_settings()
        check_writable(self.output)
        (self.output / "runs").mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.output / "runs")
        processes = Processes()
        with studies.open_study(self.output, self.plan, self._shared()) as study, processes.told_of_signals():
            outcomes = self._run_all(study, processes, say)
        if processes.stopped:
            raise Stopped(processes.stopped)
        self._report(outcomes)
        return self.ranked(outcomes)

    def ranked(self, outcomes: Iterable[Outcome]) -> list[Outcome]:
        """Best first; those that failed last."""
        sign = -1 if self.plan.maximize else 1
        return sorted(outcomes, key=lambda one: (not one.is_done, not one.is_over, sign * self.result(one)))

    def result(self, outcome: Outcome) -> float:
        """The number that decides; the worst one where the run has none."""
        found = outcome.summary.get(self.plan.metric)
        if found is None and self.plan.metric == "eval_loss":
            found = outcome.summary.get("loss")
        if found is None or math.isnan(found):
            return -math.inf if self.plan.maximize else math.inf
        return found

    def table(self, outcomes: Sequence[Outcome]) -> tuple[list[str], list[Row]]:
        """Titles and rows, as `run_page.write_comparison` takes them."""
        metrics = [name for name in self._metrics() if any(name in one.summary for one in outcomes)]
        rows: list[Row] = []
        for one in outcomes:
            if one.is_done:
                cells = [number(one.summary[name]) if name in one.summary else "" for name in metrics]
                rows.append((one.point.name, (*cells, duration(one.seconds)), None))
            else:
                wrong = "not done" if one.exit_code is None and not one.is_over else one.told(metrics)
                rows.append((one.point.name, (), wrong))
        return [*(named(name) for name in metrics), "time"], rows

    def _metrics(self) -> tuple[str, ...]:
        return METRICS if self.plan.metric in METRICS else (self.plan.metric, *METRICS)

    def _check_settings(self) -> None:
        """All settings before the first run: what is wrong with a key is wrong in every one."""
        if self.command != TRAIN:
            return  # another command has settings of its own
        from dalle_mini.training.tasks import load_run

        for point in self._planned() or studies.drawn(self.plan, CHECKED, self.seed):
            load_run(self.config, (*self.plan.fixed, *point.assignments))

    def _shared(self) -> dict[str, Any]:
        """The properties that all runs of a folder share."""
        file = recipes.find(self.config) if self.command == TRAIN else Path(self.config)
        digest = short_hash(file.read_bytes()) if file.is_file() else None
        return {
            "config": self.config if digest is None else file.name,
            "sha256": digest,
            "fixed": list(self.plan.fixed),
            "metric": [self.plan.metric, self.plan.maximize],
        }

    def _planned(self) -> list[Point]:
        """The points that are known from the start; none where each depends on the results before it."""
        if self.plan.method == "grid":
            return self.plan.combinations()
        return studies.drawn(self.plan, self.plan.count, self.seed) if self.plan.method == "random" else []

    def _proposals(self, study: optuna.Study, outcomes: dict[str, Outcome]) -> Iterator[Point]:
        """The points that were tried, and new ones until there are enough. `outcomes` grows meanwhile."""
        yield from [one.point for one in outcomes.values()]
        while len(outcomes) < self.plan.count and (
            point := studies.proposed(study, self.plan, outcomes.keys(), self.seed)
        ):
            yield point

    def _tried(self, study: optuna.Study) -> dict[str, Outcome]:
        """The outcome of each point by name, from the journal, in the order of their first trials."""
        found: dict[str, Outcome] = {}
        for trial in study.trials:
            if trial.params.keys() != {axis.key for axis in self.plan.axes}:
                continue  # the sweep was killed before it wrote them down
            point, attrs = self.plan.point(trial.params), trial.user_attrs
            found[point.name] = Outcome(
                point,
                attrs.get("exit_code"),
                attrs.get("pruned_after"),
                attrs.get("error", ""),
                attrs.get("seconds", 0.0) + (found[point.name].seconds if point.name in found else 0.0),
                self._summary(point),
            )
        return found

    def _run_all(self, study: optuna.Study, processes: Processes, say: Say) -> list[Outcome]:
        """Run the points that are not over, in order. Returns the outcomes of all."""
        outcomes, planned = self._tried(study), self._planned()
        points: Iterable[Point]
        if planned:
            outcomes = {point.name: outcomes.get(point.name, Outcome(point)) for point in planned}
            points, total = planned, len(planned)
        else:
            outcomes = dict(list(outcomes.items())[: self.plan.count])
            points, total = self._proposals(study, outcomes), self.plan.count
        over = sum(one.is_over for one in outcomes.values())
        if over:
            say(f"{over} of {total} runs are done already")
        running: set[Future] = set()
        with ThreadPoolExecutor(self.jobs) as pool:
            for place, point in enumerate(points, 1):
                before = outcomes.setdefault(point.name, Outcome(point))
                if before.is_over:
                    continue
                if processes.stopped:
                    break

                def tell(text: str, name: str = f"[{place}/{total}] {point.name}") -> None:
                    say(f"{name}: {text}")

                trial = studies.begin(study, self.plan, point)
                running.add(pool.submit(self._train, before, trial, processes, tell))
                if len(running) == self.jobs:
                    running = self._collect(running, study, outcomes)
            while running:
                running = self._collect(running, study, outcomes)
        return list(outcomes.values())

    def _collect(self, running: set[Future], study: optuna.Study, outcomes: dict[str, Outcome]) -> set[Future]:
        """Wait for a run that ends, write it down, and return the others."""
        ended, others = wait(running, return_when=FIRST_COMPLETED)
        for one in ended:
            trial, outcome = one.result()
            before = outcomes[outcome.point.name]
            outcomes[outcome.point.name] = outcome
            trial.set_user_attr("exit_code", outcome.exit_code)
            trial.set_user_attr("pruned_after", outcome.pruned_after)
            trial.set_user_attr("error", outcome.error)
            trial.set_user_attr("seconds", round(outcome.seconds - before.seconds, 1))
            studies.end(study, trial, self.result(outcome), outcome.is_done, outcome.is_over)
        self._report(outcomes.values())
        return others

    def _train(self, before: Outcome, trial: Trial, processes: Processes, tell: Say) -> tuple[Trial, Outcome]:
        """Run a point until it ends, in a thread of its own."""
        point = before.point
        folder, log = self._folder(point), self.output / "runs" / f"{point.name}.log"
        command = [*self.command, self.config, "--output", str(folder), "--resume", "auto"]
        command += [*self.plan.fixed, *point.assignments]
        if processes.stopped:
            return trial, replace(before, exit_code=None)
        tell("begins")
        with open_to_append(log) as file:
            if not processes.lock(file, lambda: tell("still runs from before; waiting")):
                return trial, replace(before, exit_code=None)
            began = time.monotonic()
            watch = Evaluations(trial, folder / LOG, self.plan)
            exit_code, is_pruned = processes.run(command, file, watch.are_hopeless)
        outcome = Outcome(point, exit_code, seconds=before.seconds + time.monotonic() - began)
        outcome.summary = self._summary(point)
        if exit_code in STOPPED and is_pruned:
            outcome.pruned_after = watch.reported
        elif exit_code in STOPPED:
            processes.stop(exit_code)
            outcome.exit_code = None
        elif exit_code != 0:
            outcome.error = last_words(log)
        tell(outcome.told(self._metrics()))
        return trial, outcome

    def _folder(self, point: Point) -> Path:
        return self.output / "runs" / point.name

    def _summary(self, point: Point) -> dict[str, float]:
        return summary(self._folder(point), self.plan)

    def _report(self, outcomes: Iterable[Outcome]) -> None:
        # Colours by name, so that they stay while the order changes.
        runs = {one.point.name: self._folder(one.point) for one in outcomes if self._folder(one.point).is_dir()}
        runs = dict(sorted(runs.items()))
        header, rows = self.table(self.ranked(outcomes))
        cards = self._cards(outcomes, list(runs))
        write_comparison(self.output / "report.html", f"Sweep · {Path(self.config).stem}", runs, header, rows, cards)

    def _cards(self, outcomes: Iterable[Outcome], colours: Sequence[str]) -> list[str]:
        """Charts of the runs' results over each setting, and over the order of the runs where that tells something."""
        done = [one for one in outcomes if one.is_done and math.isfinite(self.result(one))]
        if len(done) < 2:
            return []

        def drawn(title: str, places: Iterable[float], ticks: Sequence[tuple[float, str]], is_log: bool = False) -> str:
            names = [one.point.name for one in done]
            dots = [
                (place, self.result(one), name, colours.index(name))
                for place, one, name in zip(places, done, names, strict=True)
            ]
            return scatter(f"{named(self.plan.metric).capitalize()} over {title}", dots, ticks=ticks, is_log=is_log)

        cards = []
        for axis in self.plan.axes:
            values = [one.point.params[axis.key] for one in done]
            if axis.values:
                cards.append(drawn(axis.key, map(axis.values.index, values), list(enumerate(axis.values))))
            else:
                middle = math.sqrt(axis.low * axis.high) if axis.is_log else (axis.low + axis.high) / 2
                ticks = [(place, number(float(f"{place:.3g}"))) for place in (axis.low, middle, axis.high)]
                cards.append(drawn(axis.key, values, ticks, axis.is_log))
        if self.plan.method == "tpe":
            order = range(1, len(done) + 1)
            cards.append(drawn("the order of the runs", order, [(1, "1"), (len(done), str(len(done)))]))
        return cards


class Evaluations:
    """Tells a trial the evaluations of its run, and whether the pruner gives it up."""

    def __init__(self, trial: Trial, log: Path, plan: Plan):
        self.reported = 0  # evaluations
        self._trial, self._log, self._plan, self._size = trial, log, plan, -1

    def are_hopeless(self) -> bool:
        if self._plan.halving is None or not self._log.exists():
            return False
        size = self._log.stat().st_size
        if size == self._size:
            return False
        self._size = size
        values = [record[self._plan.metric] for record in read_log(self._log) if self._plan.metric in record]
        for value in values[self.reported :]:
            self.reported += 1
            self._trial.report(math.nan if value is None else value, self.reported)
            if self._trial.should_prune():
                return True
        return False


def named(metric: str) -> str:
    return metric.replace("_", " ")


def summary(folder: Path, plan: Plan) -> dict[str, Any]:
    """A run's log in short: the best value of the metric and of the evaluation loss, the median of the speed, and the
    last value of every other number."""
    found: dict[str, Any] = {}
    best = {"eval_loss": min, plan.metric: max if plan.maximize else min}
    speeds = []
    for record in read_log(folder / LOG):
        for name, value in record.items():
            if isinstance(value, int | float):
                choose = best.get(name)
                found[name] = choose(value, found.get(name, value)) if choose else value
        if record.get("pictures_per_second") is not None:
            speeds.append(record["pictures_per_second"])
    if speeds:
        found["pictures_per_second"] = sorted(speeds)[len(speeds) // 2]
    return found

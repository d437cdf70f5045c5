"""Optuna's side of a sweep: its journal, and the points that a sampler proposes.

The journal is `OUTPUT/journal.log`, which `optuna-dashboard` reads too. Optuna does not let the choices of a study
change, so each space has a study of its own in the journal; a new one begins with the results of the others.
"""

from __future__ import annotations

import contextlib
import copy
import math
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dalle_mini.errors import UserError
from dalle_mini.runtime import files
from dalle_mini.runtime.hashing import hash_64, short_hash
from dalle_mini.runtime.locks import Busy
from dalle_mini.training.records import read_log
from dalle_mini.training.sweep.space import Plan, Point, choices, imported_optuna

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial, Trial

JOURNAL = "journal.log"
TRIES = 100  # draws for one point that was not tried before


@contextlib.contextmanager
def open_study(output: Path, plan: Plan, shared: dict[str, Any]) -> Iterator[optuna.Study]:
    """The study of a plan in the journal of `output`, for this process alone.

    Args:
        shared: what all runs of the folder have in common, as JSON values.

    Raises:
        UserError: another sweep is at work in the folder, its journal has another `shared`, or it cannot be read.
    """
    optuna = imported_optuna()
    path = output / JOURNAL
    with contextlib.ExitStack() as held:
        try:
            with files.blamed(path):
                held.enter_context(files.locked(path))
                # A crash may leave a line without its end, and Optuna's own lock, for which it would wait.
                os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
                path.with_name(f"{JOURNAL}.lock").unlink(missing_ok=True)
        except Busy:
            raise UserError(
                f"{output}: another sweep is at work here: wait until it ends, or name another --output"
            ) from None
        try:
            storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
            earlier = optuna.get_all_study_summaries(storage)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: cannot be read ({files.reason(error)}): name another --output") from None
        for summary in earlier:
            found = summary.user_attrs.get("shared", shared)
            if changed := [name for name in shared if found.get(name) != shared[name]]:
                raise UserError(f"{output} holds a sweep with another {' and '.join(changed)}: name another --output")
        yield _study(storage, plan, shared)


def _study(storage, plan: Plan, shared: dict[str, Any]) -> optuna.Study:
    """The plan's study, with the trials of other studies in the journal that are over, where they fit its space."""
    optuna = imported_optuna()
    space, rule, pruners = plan.space, plan.early_terminate, optuna.pruners
    study = optuna.create_study(
        storage=storage,
        pruner=pruners.SuccessiveHalvingPruner(rule.min_iter, rule.eta, 0) if rule else pruners.NopPruner(),
        study_name=short_hash(repr(sorted(space.items()))),
        direction=plan.metric.goal,
        load_if_exists=True,
    )
    study.set_user_attr("shared", shared)
    known = last(filter(is_over, study.trials))
    for other in optuna.get_all_study_summaries(storage):
        for trial in optuna.load_study(study_name=other.study_name, storage=storage).trials:
            if is_over(trial) and trial.user_attrs["run"] not in known and trial.params.keys() == space.keys():
                trial.distributions = space
                with contextlib.suppress(ValueError):  # a value that is no longer among the choices
                    study.add_trial(trial)
    for trial in study.trials:
        # A kill left it. The point is tried again as a new trial, which goes on in its folder.
        if trial.state.name == "WAITING":
            study.ask()
        if not trial.state.is_finished():
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    return study


def is_over(trial: FrozenTrial) -> bool:
    """Its point needs no other attempt."""
    return trial.state.name in ("COMPLETE", "PRUNED")


def last(trials: Iterable[FrozenTrial]) -> dict[str, FrozenTrial]:
    """The last trial of each point by its name, in the order in which points were first tried."""
    return {trial.user_attrs["run"]: trial for trial in trials}


def begin(study: optuna.Study, plan: Plan, point: Point) -> Trial:
    """A trial of the study that runs the point."""
    study.enqueue_trial(dict(point.params), user_attrs={"run": point.name})
    return study.ask(plan.space)


def drawn(plan: Plan, count: int, seed: int) -> list[Point]:
    """`count` different points by chance, or all where there are fewer. A larger count begins with the same points."""
    found: dict[str, Point] = {}
    while len(found) < count and (point := proposed(plan, found, seed)):
        found[point.name] = point
    return list(found.values())


def proposed(plan: Plan, taken: Collection[str], seed: int, trials: Sequence[FrozenTrial] = ()) -> Point | None:
    """The point that TPE would try after these trials: by chance after fewer than ten, or where its own is taken.

    Args:
        taken: names of points that were tried. None is returned where all were.
    """
    optuna = imported_optuna()
    number = hash_64(f"{seed} {len(taken)}") % 2**32
    # In memory: the journal holds only trials that are run.
    scratch = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=number), direction=plan.metric.goal)
    scratch.add_trials(trials)
    by_chance = optuna.samplers.RandomSampler(number)
    for _ in range(TRIES):
        point = plan.point(scratch.ask(plan.space).params)
        if point.name not in taken:
            return point
        scratch.sampler = by_chance
    if not all(map(choices, plan.space.values())):
        return None
    return next((point for point in plan.combinations() if point.name not in taken), None)


class Pruner:
    """Tells a trial the evaluations of its run, and whether the pruner gives it up."""

    def __init__(self, trial: Trial, log: Path, plan: Plan):
        self.reported = 0  # evaluations
        self._trial, self._log, self._plan, self._size = trial, log, plan, 0
        # The pruner would count a point twice of which a kill, a stop or a failure left a trial.
        study, trial.study = trial.study, copy.copy(trial.study)
        trial.study.get_trials = lambda **options: list(  # type: ignore[method-assign]
            last(study.get_trials(**options)).values()
        )

    def is_hopeless(self) -> bool:
        if self._plan.early_terminate is None or not self._log.exists() or self._log.stat().st_size == self._size:
            return False
        self._size = self._log.stat().st_size
        name = self._plan.metric.name
        values = [record[name] for record in read_log(self._log) if name in record]
        for value in values[self.reported :]:
            self.reported += 1
            self._trial.report(math.nan if value is None else value, self.reported)
            if self._trial.should_prune():
                return True
        return False

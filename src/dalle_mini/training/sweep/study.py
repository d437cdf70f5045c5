"""Optuna's side of a sweep: its journal, the points that a sampler proposes, and the trials as outcomes.

The journal is `OUTPUT/journal.log`, which `optuna-dashboard` reads too. Optuna does not let the choices of a study
change, so each set of axes has a study of its own in the journal; a new one begins with the results of the others.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dalle_mini.errors import UserError
from dalle_mini.runtime import files
from dalle_mini.runtime.hashing import short_hash
from dalle_mini.runtime.locks import Busy
from dalle_mini.training.sweep.space import Axis, Plan, Point

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial, Trial

JOURNAL = "journal.log"
TRIES = 100  # draws for one point that was not tried before


@contextlib.contextmanager
def open_study(output: Path, plan: Plan, shared: Mapping[str, Any]) -> Iterator[optuna.Study]:
    """The study of a plan in the journal of `output`, for this process alone.

    Args:
        shared: what all runs of the folder have in common, as JSON values.

    Raises:
        UserError: another sweep is at work in the folder, its journal has another `shared`, or it cannot be read.
    """
    optuna = imported()
    path = output / JOURNAL
    with contextlib.ExitStack() as held:
        try:
            with files.blamed(path):
                held.enter_context(files.locked(path))
                _mend(path)
        except Busy:
            raise UserError(
                f"{output}: another sweep is at work here: wait until it ends, or name another --output"
            ) from None
        # Optuna waits half a minute for a lock of a process that was killed. Ours says that there is no other.
        path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
        try:
            storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
            earlier = optuna.get_all_study_summaries(storage)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: cannot be read ({files.reason(error)}): name another --output") from None
        for summary in earlier:
            found = summary.user_attrs.get("shared", shared)
            if changed := [name for name in shared if found.get(name) != shared[name]]:
                raise UserError(f"{output} holds a sweep with another {' and '.join(changed)}: name another --output")
        yield _study(storage, plan, shared, [summary.study_name for summary in earlier])


def imported():
    """Optuna, which tells warnings and errors alone."""
    try:
        import optuna
    except ImportError as error:
        raise UserError(f"a sweep needs Optuna ({error}): pip install 'dalle-mini[sweep]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _mend(path: Path) -> None:
    """Cut off a last line that a crash left without its end; Optuna would append to it."""
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        os.truncate(path, data.rfind(b"\n") + 1)


def _study(storage, plan: Plan, shared: Mapping[str, Any], earlier: Sequence[str]) -> optuna.Study:
    optuna = imported()
    name = short_hash(repr(sorted(plan.axes, key=lambda axis: axis.key)))
    pruners = optuna.pruners
    pruner = pruners.SuccessiveHalvingPruner(*plan.halving, 0) if plan.halving else pruners.NopPruner()
    direction = "maximize" if plan.maximize else "minimize"
    study = optuna.create_study(
        storage=storage, pruner=pruner, study_name=name, direction=direction, load_if_exists=True
    )
    study.set_user_attr("shared", dict(shared))
    for other in earlier:
        if other != name:
            _adopt(study, optuna.load_study(study_name=other, storage=storage).trials, plan.axes)
    for trial in study.get_trials(states=(optuna.trial.TrialState.WAITING, optuna.trial.TrialState.RUNNING)):
        # A kill left it. The point is tried again as a new trial, which goes on in its folder.
        if trial.state == optuna.trial.TrialState.WAITING:
            study.ask()
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    return study


def _adopt(study: optuna.Study, trials: Sequence[FrozenTrial], axes: Sequence[Axis]) -> None:
    """Add what other trials found, where their parameters are in the axes and the study has not run the same."""
    space = {axis.key: axis.distribution() for axis in axes}
    known = {trial.user_attrs["run"] for trial in _over(study.trials)}
    for trial in _over(trials):
        if trial.user_attrs["run"] not in known and set(trial.params) == set(space):
            trial.distributions = space
            with contextlib.suppress(ValueError):  # a value that is no longer among the choices
                study.add_trial(trial)


def _over(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    return [trial for trial in trials if trial.state.name in ("COMPLETE", "PRUNED")]


def begin(study: optuna.Study, plan: Plan, point: Point) -> Trial:
    """A trial of the study that runs the point."""
    study.enqueue_trial(dict(point.params), user_attrs={"run": point.name})
    return study.ask({axis.key: axis.distribution() for axis in plan.axes})


def end(study: optuna.Study, trial: Trial, result: float, is_done: bool, is_over: bool) -> None:
    """Write down how a trial ended: done with a result, pruned (over and not done), or failed."""
    from optuna.trial import TrialState

    if is_done:
        study.tell(trial, result)
    else:
        study.tell(trial, state=TrialState.PRUNED if is_over else TrialState.FAIL)


def drawn(plan: Plan, count: int, seed: int) -> list[Point]:
    """`count` different points by chance, or all where there are fewer. A larger count begins with the same points."""
    optuna = imported()
    scratch = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed))
    found: dict[str, Point] = {}
    while len(found) < count and (point := _new(scratch, plan, found)):
        found[point.name] = point
    return list(found.values())


def proposed(study: optuna.Study, plan: Plan, taken: Collection[str], seed: int) -> Point | None:
    """The point that TPE would try next, or one by chance where that was tried. None: all were tried.

    Args:
        taken: names of points that were tried.
    """
    optuna = imported()
    sampler = optuna.samplers.TPESampler(seed=seed + len(taken))
    # In memory: the journal holds only trials that are run.
    scratch = optuna.create_study(sampler=sampler, direction=study.direction)
    scratch.add_trials(study.trials)
    found = _new(scratch, plan, taken, tries=1)
    scratch.sampler = optuna.samplers.RandomSampler(seed + len(taken))
    return found or _new(scratch, plan, taken)


def _new(scratch: optuna.Study, plan: Plan, taken: Collection[str], tries: int = TRIES) -> Point | None:
    space = {axis.key: axis.distribution() for axis in plan.axes}
    for _ in range(tries):
        point = plan.point(scratch.ask(space).params)
        if point.name not in taken:
            return point
    return None

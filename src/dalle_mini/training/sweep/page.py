"""The results of a sweep: a run's log in short, the table of the runs, and the page with their curves and charts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dalle_mini.reports.run_page import Row, write_comparison
from dalle_mini.reports.svg import number, scatter
from dalle_mini.runtime.console import duration
from dalle_mini.training.records import LOG, read_log
from dalle_mini.training.sweep.space import Plan, choices

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

METRICS = ("eval_loss", "loss", "sample_score", "pictures_per_second")


def summary(folder: Path, plan: Plan) -> dict[str, float]:
    """A run's log in short: the best value of the metric and of the evaluation loss, the median of the speed, and the
    last value of every other number."""
    found: dict[str, list[float]] = {}
    for record in read_log(folder / LOG):
        for name, value in record.items():
            if value is not None:
                found.setdefault(name, []).append(value)
    best = max if plan.metric.goal == "maximize" else min
    rules: dict[str, Callable] = {"eval_loss": min, "pictures_per_second": statistics.median_high}
    rules[plan.metric.name] = best
    return {name: rules[name](values) if name in rules else values[-1] for name, values in found.items()}


def result(found: Mapping[str, float], plan: Plan) -> float:
    """The number of a summary that decides; the worst one where it has none."""
    worst = math.inf if plan.metric.goal == "minimize" else -math.inf
    return found.get(plan.metric.name, found.get("loss", worst) if plan.metric.name == "eval_loss" else worst)


def told(found: Mapping[str, float], plan: Plan) -> list[str]:
    """The numbers of a summary that decide or tell the most, as words."""
    return [f"{_named(name)} {number(found[name])}" for name in _metrics(plan) if name in found]


def table(trials: Sequence[FrozenTrial], plan: Plan) -> tuple[list[str], list[Row]]:
    """Titles and rows, as `write_comparison` takes them."""
    found = {one.number: one.user_attrs.get("summary", {}) for one in trials}
    metrics = [name for name in _metrics(plan) if any(name in values for values in found.values())]
    rows: list[Row] = []
    for one in trials:
        values = found[one.number]
        cells = [number(values[name]) if name in values else "" for name in metrics]
        wrong = None if one.state.name == "COMPLETE" else one.user_attrs.get("wrong") or "not done"
        rows.append((one.user_attrs["run"], (*cells, duration(one.user_attrs.get("seconds", 0))), wrong))
    return [*map(_named, metrics), "time"], rows


def write_page(path: Path, title: str, trials: Sequence[FrozenTrial], plan: Plan) -> None:
    """Write the page of a sweep, whose runs lie in the folder `runs` beside it. The table has the trials' order."""
    # Colours by name, so that they stay while the order changes.
    runs = {name: path.parent / "runs" / name for name in sorted(one.user_attrs["run"] for one in trials)}
    write_comparison(path, title, runs, *table(trials, plan), _charts(trials, plan, list(runs)))


def _charts(trials: Sequence[FrozenTrial], plan: Plan, colours: Sequence[str]) -> list[str]:
    """The results over each setting, and over the order of the runs where that tells something."""
    done = [one for one in trials if one.state.name == "COMPLETE" and math.isfinite(one.value or 0)]
    if len(done) < 2:
        return []

    def drawn(title: str, places: Sequence[float], ticks: Sequence[tuple[float, str]], is_log: bool = False) -> str:
        names = [one.user_attrs["run"] for one in done]
        values = [one.value or 0.0 for one in done]
        dots = list(zip(places, values, names, map(colours.index, names), strict=True))
        return scatter(f"{_named(plan.metric.name).capitalize()} over {title}", dots, ticks=ticks, is_log=is_log)

    charts = []
    for key, one in plan.space.items():
        values: list[Any] = [trial.params[key] for trial in done]
        if known := choices(one):
            charts.append(drawn(key, [known.index(value) for value in values], list(enumerate(known))))
        else:
            middle = math.sqrt(one.low * one.high) if one.log else (one.low + one.high) / 2
            ticks = [(place, number(float(f"{place:.3g}"))) for place in (one.low, middle, one.high)]
            charts.append(drawn(key, values, ticks, one.log))
    if plan.method == "bayes":
        done.sort(key=lambda one: one.number)
        ticks = [(1, "1"), (len(done), str(len(done)))]
        charts.append(drawn("the order of the runs", range(1, len(done) + 1), ticks))
    return charts


def _metrics(plan: Plan) -> tuple[str, ...]:
    return tuple(dict.fromkeys((plan.metric.name, *METRICS)))


def _named(metric: str) -> str:
    return metric.replace("_", " ")

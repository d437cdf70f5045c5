"""The settings that a sweep tries, from the command line or from a file that `wandb sweep` reads too."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct

from dalle_mini.errors import UserError, listed
from dalle_mini.runtime import parsing
from dalle_mini.runtime.hashing import short_hash

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

LONGEST = 100  # characters of a point's name
RANGE = re.compile(r"([0-9.eE+-]+)\.\.([0-9.eE+-]+)")
METHODS = {"grid": "grid", "random": "random", "bayes": "tpe"}  # wandb's name -> ours
RANGES = {  # wandb's distribution -> (logarithmic, whole numbers)
    "uniform": (False, False),
    "q_uniform": (False, False),
    "int_uniform": (False, True),
    "log_uniform_values": (True, False),
}


Distribution = Literal["constant", "categorical", "uniform", "q_uniform", "int_uniform", "log_uniform_values"]


class Parameter(Struct, forbid_unknown_fields=True, frozen=True):
    """A setting in wandb's file: one value, several, or a range."""

    value: Any = UNSET
    values: list[Any] = []
    min: int | float | None = None
    max: int | float | None = None
    distribution: Distribution | None = None
    q: Annotated[float, Meta(gt=0)] = 1.0


class Metric(Struct, forbid_unknown_fields=True, frozen=True):
    name: str = "eval_loss"
    goal: Literal["minimize", "maximize"] = "minimize"


class EarlyTerminate(Struct, forbid_unknown_fields=True, frozen=True):
    type: Literal["hyperband"]
    min_iter: Annotated[int, Meta(ge=1)]
    eta: Annotated[int, Meta(ge=2)] = 3


class SweepFile(Struct, forbid_unknown_fields=True, frozen=True):
    """The file of a sweep. The last six fields mean something to wandb alone."""

    method: Literal["grid", "random", "bayes"]
    parameters: dict[str, Parameter]
    metric: Metric = Metric()
    early_terminate: EarlyTerminate | None = None
    run_cap: Annotated[int, Meta(ge=1)] | None = None
    program: Any = None
    command: Any = None
    project: Any = None
    entity: Any = None
    name: Any = None
    description: Any = None


@dataclass(frozen=True)
class Axis:
    """A setting that varies: over `values`, or, where there are none, between `low` and `high`.

    Attributes:
        values: as they are written in an override.
        is_log: the range is uniform in its logarithm.
        is_whole: the range has whole numbers alone.
        step: the range has `low` plus multiples of it; None: every number.
    """

    key: str
    values: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    is_log: bool = True
    is_whole: bool = False
    step: float | None = None

    def distribution(self) -> BaseDistribution:
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.values:
            return CategoricalDistribution(self.values)
        if self.is_whole:
            return IntDistribution(int(self.low), int(self.high), self.is_log)
        return FloatDistribution(self.low, self.high, self.is_log, self.step)

    def rounded(self, value: Any) -> Any:
        """A value of the distribution with the digits that `text` writes: four, where there is no step."""
        if self.values or self.is_whole:
            return value
        return min(max(float(self.text(value)), self.low), self.high)

    def text(self, value: Any) -> str:
        """A value of the distribution as it is written in an override."""
        if self.values or self.is_whole:
            return str(value)
        return f"{value:.4g}" if self.step is None else f"{value:.10g}"


@dataclass(frozen=True)
class Point:
    """One run: the settings that vary, as values by key and as `key=value`."""

    name: str
    params: Mapping[str, Any]
    assignments: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """The settings that a sweep tries, and how it chooses among them.

    Attributes:
        fixed: settings of all runs, `key=value`.
        method: "grid" (all combinations), "random", or "tpe" (each from the results before it).
        count: runs of a method that is not "grid"; 0: not said.
        metric: a number of the run's log; "eval_loss" is replaced by "loss" where a run has no evaluation.
        halving: (min_iter, eta): at evaluations min_iter, min_iter * eta, ... the best 1 / eta of the runs go on; None:
            all go on.
    """

    axes: tuple[Axis, ...] = ()
    fixed: tuple[str, ...] = ()
    method: str = "grid"
    count: int = 0
    metric: str = "eval_loss"
    maximize: bool = False
    halving: tuple[int, int] | None = None

    def check(self) -> None:
        """Raises UserError where nothing varies, a value is named twice, or the method does not fit the settings."""
        if not self.axes:
            raise UserError(
                "nothing varies: give a setting several values, training.optimizer.learning_rate=0.001,0.003"
            )
        if self.method != "grid" and not self.count:
            raise UserError(f"method {self.method}: say how many runs: --random N, --tpe N, or run_cap in the file")
        for axis in self.axes:
            for value in axis.values:
                if axis.values.count(value) > 1:
                    raise UserError(f"{axis.key}={value}: named twice: leave one out")
            if self.method == "grid" and not axis.values:
                raise UserError(f"{axis.key}={axis.low:g}..{axis.high:g}: a range needs --random N or --tpe N")

    def point(self, params: Mapping[str, Any]) -> Point:
        """Its name has the keys' last parts, whole keys where those are the same, and is one that a folder can have."""
        rounded = {axis.key: axis.rounded(params[axis.key]) for axis in self.axes}
        texts = {axis.key: axis.text(rounded[axis.key]) for axis in self.axes}
        short = [key.rpartition(".")[2] for key in texts]
        keys = short if len({*short}) == len(short) else list(texts)
        told = ",".join(f"{key}={text}" for key, text in zip(keys, texts.values(), strict=True))
        name = re.sub(r"[^\w.,=+-]+", "_", told, flags=re.ASCII)
        if name != told or len(name) > LONGEST:
            name = f"{name[:LONGEST]}-{short_hash(told)[:8]}"
        return Point(name, rounded, tuple(f"{key}={text}" for key, text in texts.items()))

    def combinations(self) -> list[Point]:
        """Every combination of the values of axes that have values."""
        keys = [axis.key for axis in self.axes]
        return [
            self.point(dict(zip(keys, values, strict=True)))
            for values in itertools.product(*(axis.values for axis in self.axes))
        ]


def parse_settings(texts: Sequence[str], base: Plan = Plan()) -> Plan:
    """`base` with settings from the command line: `key=a,b,c` and `key=low..high` vary, `key=a` is for all runs.

    They take the place of those in `base`. Commas within brackets, braces and quotes do not part values:
    `samples.prompts=["a, b"]` is one.

    Raises:
        UserError: a text is none of these.
    """
    axes, fixed = [], []
    for text in texts:
        key, separator, value = text.partition("=")
        if not (separator and key.strip()):
            raise UserError(f"{text!r}: settings are written key=value, key=value,value or key=low..high")
        values = _parted(value)
        bounds = RANGE.fullmatch(value)
        if bounds:
            low, high = _bounds(text, *bounds.groups())
            axes.append(Axis(key, (), low, high, is_whole=low.is_integer() and high.is_integer()))
        elif len(values) > 1:
            if "" in values:
                raise UserError(f"{text!r}: a value is missing between two commas")
            axes.append(Axis(key, tuple(values)))
        else:
            fixed.append(text)
    keys = [axis.key for axis in axes] + [text.partition("=")[0] for text in fixed]
    for key in keys:
        if keys.count(key) > 1:
            raise UserError(f"{key}: named twice: write its values with commas, {key}=a,b")
    kept = [axis for axis in base.axes if axis.key not in keys]
    also = [text for text in base.fixed if text.partition("=")[0] not in keys]
    return replace(base, axes=(*kept, *axes), fixed=(*also, *fixed))


def _bounds(text: str, low: str, high: str) -> tuple[float, float]:
    try:
        bounds = float(low), float(high)
    except ValueError:
        bounds = (0.0, 0.0)
    if not 0 < bounds[0] < bounds[1] < math.inf:
        raise UserError(f"{text!r}: a range is written low..high, two numbers above 0, the second one larger")
    return bounds


def _parted(text: str) -> list[str]:
    """At its commas, but for those within brackets, braces or quotes."""
    parts, depth, quoted = [""], 0, False
    for place, char in enumerate(text):
        if char == '"' and text[place - 1 : place] != "\\":
            quoted = not quoted
        elif not quoted:
            depth += (char in "[{") - (char in "]}")
        if char == "," and not quoted and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return parts


def read_plan(path: Path) -> Plan:
    """A plan from a YAML file that `wandb sweep` reads: parameters, method, metric, early_terminate and run_cap.

    Raises:
        UserError: the file cannot be read, or it asks for something that this sweep does not have.
    """
    content = parsing.read_yaml(path)
    try:
        return _plan(parsing.convert(content, SweepFile, strict=False))  # YAML reads 1e-4 as text
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def _plan(file: SweepFile) -> Plan:
    axes, fixed = [], []
    for key, wanted in file.parameters.items():
        if wanted.value is not UNSET:
            fixed.append(f"{key}={_text(wanted.value)}")
        else:
            axes.append(_axis(key, wanted))
    rule = file.early_terminate
    return Plan(
        tuple(axes),
        tuple(fixed),
        method=METHODS[file.method],
        count=file.run_cap or 0,
        metric=file.metric.name,
        maximize=file.metric.goal == "maximize",
        halving=(rule.min_iter, rule.eta) if rule else None,
    )


def _axis(key: str, wanted: Parameter) -> Axis:
    if wanted.values:
        return Axis(key, tuple(_text(value) for value in wanted.values))
    low, high = wanted.min, wanted.max
    if low is None or high is None or not low < high:
        raise ValueError(f"{key}: it needs value, values, or min and max, the second one larger")
    kind = wanted.distribution or ("int_uniform" if type(low) is type(high) is int else "uniform")
    if kind not in RANGES:
        raise ValueError(f"{key}: distribution {kind} needs value or values; for min and max it is {listed(RANGES)}")
    is_log, is_whole = RANGES[kind]
    if is_log and low <= 0:
        raise ValueError(f"{key}: min must be above 0 for a logarithmic range")
    return Axis(key, (), low, high, is_log, is_whole, wanted.q if kind == "q_uniform" else None)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

"""The settings that a sweep tries, from the command line or from a file that `wandb sweep` reads too."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, structs

from dalle_mini.errors import UserError
from dalle_mini.runtime import parsing
from dalle_mini.runtime.hashing import short_hash
from dalle_mini.runtime.installing import install_line

Distribution = Any  # one of Optuna's, which is imported where it is used
LONGEST = 100  # characters of a point's name
RANGE = re.compile(r"([0-9.eE+-]+)\.\.([0-9.eE+-]+)")
QUOTED = re.compile(r'"(?:\\.|[^"\\])*"')
Kind = Literal[
    "constant", "categorical", "uniform", "q_uniform", "int_uniform", "log_uniform_values", "q_log_uniform_values"
]


class Parameter(Struct, forbid_unknown_fields=True, frozen=True):
    """A setting: one value, several, or a range."""

    value: Any = UNSET
    values: list[Any] = []
    min: int | float | None = None
    max: int | float | None = None
    distribution: Kind | None = None
    q: Annotated[float, Meta(gt=0)] = 1.0

    def varies(self, key: str) -> Distribution:
        """Its values, as an override writes them, or its range. Raises UserError, which names `key`, for neither."""
        distributions = imported_optuna().distributions
        if self.values:
            texts = [_text(value) for value in self.values]
            if twice := [text for text in texts if texts.count(text) > 1]:
                raise UserError(f"{key}={twice[0]}: named twice: leave one out")
            return distributions.CategoricalDistribution(texts)
        low, high = self.min, self.max
        if low is None or high is None or not low < high:
            raise UserError(f"{key}: it needs value, values, or min and max, the second one larger")
        kind = self.distribution or ("int_uniform" if type(low) is type(high) is int else "uniform")
        if "uniform" not in kind:
            raise UserError(f"{key}: distribution {kind} needs value or values, not min and max")
        is_log = "log" in kind
        if is_log and low <= 0:
            raise UserError(f"{key}: min must be above 0 for a logarithmic range")
        if kind == "q_log_uniform_values" and self.q != 1:
            raise UserError(f"{key}: q must be 1 for a logarithmic range: it has whole numbers")
        if kind in ("int_uniform", "q_log_uniform_values"):
            return distributions.IntDistribution(int(low), int(high), is_log)
        return distributions.FloatDistribution(low, high, is_log, self.q if kind == "q_uniform" else None)


class Metric(Struct, forbid_unknown_fields=True, frozen=True):
    """A number of the run's log. "eval_loss" is replaced by "loss" where a run has no evaluation."""

    name: str = "eval_loss"
    goal: Literal["minimize", "maximize"] = "minimize"


class EarlyTerminate(Struct, forbid_unknown_fields=True, frozen=True):
    """At evaluations `min_iter`, `min_iter * eta`, ... the best `1 / eta` of the runs go on."""

    type: Literal["hyperband"]
    min_iter: Annotated[int, Meta(ge=1)]
    eta: Annotated[int, Meta(ge=2)] = 3


@dataclass(frozen=True)
class Point:
    """One run: the settings that vary, as Optuna's values by key, and all of the plan's settings as `key=value`."""

    name: str
    params: Mapping[str, Any]
    assignments: tuple[str, ...]


class Plan(Struct, forbid_unknown_fields=True, frozen=True):
    """The settings that a sweep tries, and how it chooses among them, under wandb's names.

    The last six fields mean something to wandb alone.

    Attributes:
        method: "grid" (all combinations), "random", or "bayes" (Optuna's TPE: each from the results before it).
        run_cap: runs of a method that is not "grid"; 0: not said.
    """

    method: Literal["grid", "random", "bayes"]
    parameters: dict[str, Parameter]
    metric: Metric = Metric()
    early_terminate: EarlyTerminate | None = None
    run_cap: Annotated[int, Meta(ge=1)] = 0
    program: Any = None
    command: Any = None
    project: Any = None
    entity: Any = None
    name: Any = None
    description: Any = None

    @property
    def fixed(self) -> dict[str, str]:
        """The settings that are the same in all runs."""
        return {key: _text(one.value) for key, one in self.parameters.items() if one.value is not UNSET}

    @property
    def space(self) -> dict[str, Distribution]:
        """Optuna's distribution of each setting that varies. Raises UserError where one cannot be."""
        return {key: one.varies(key) for key, one in self.parameters.items() if one.value is UNSET}

    def check(self) -> None:
        """Raises UserError where nothing varies, or the method does not fit the settings."""
        if not self.space:
            raise UserError(
                "nothing varies: give a setting several values, training.optimizer.learning_rate=0.001,0.003"
            )
        if self.method != "grid" and not self.run_cap:
            raise UserError(f"method {self.method}: say how many runs: --random N, --tpe N, or run_cap in the file")
        for key, one in self.space.items():
            if self.method == "grid" and not choices(one):
                raise UserError(f"{key}={one.low:g}..{one.high:g}: a range needs --random N or --tpe N")

    def point(self, params: Mapping[str, Any]) -> Point:
        """The point of these values. Numbers of a range without steps are rounded to four digits.

        Its name has the keys' last parts, whole keys where those are the same, and is one that a folder can have.
        """
        params = {key: _rounded(params[key], one) for key, one in self.space.items()}
        texts = {key: f"{value:.10g}" if isinstance(value, float) else str(value) for key, value in params.items()}
        short = [key.rpartition(".")[2] for key in texts]
        keys = short if len({*short}) == len(short) else texts
        told = ",".join(f"{key}={text}" for key, text in zip(keys, texts.values(), strict=True))
        name = re.sub(r"[^\w.,=+-]+", "_", told, flags=re.ASCII)
        if name != told or len(name) > LONGEST:
            name = f"{name[:LONGEST]}-{short_hash(told)[:8]}"
        return Point(name, params, tuple(f"{key}={text}" for key, text in (self.fixed | texts).items()))

    def combinations(self) -> Iterator[Point]:
        """Every combination of the values, where no setting has a range."""
        space = self.space
        for values in itertools.product(*map(choices, space.values())):
            yield self.point(dict(zip(space, values, strict=True)))


GRID = Plan("grid", {})


def imported_optuna() -> ModuleType:
    """Optuna, which tells warnings and errors alone. Raises UserError where it is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise UserError(f"a sweep needs Optuna ({error}): {install_line('sweep')}") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def choices(distribution: Distribution) -> tuple[str, ...]:
    """The values of a setting; none for a range."""
    return getattr(distribution, "choices", ())


def _rounded(value: Any, distribution: Distribution) -> Any:
    if not isinstance(value, float) or distribution.step is not None:
        return value
    return min(max(float(f"{value:.4g}"), distribution.low), distribution.high)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def read_plan(path: Path) -> Plan:
    """A plan from a YAML file that `wandb sweep` reads.

    Raises:
        UserError: the file cannot be read, or it asks for something that this sweep does not have.
    """
    content = parsing.read_yaml(path)
    try:
        plan = parsing.convert(content, Plan, strict=False)  # YAML reads 1e-4 as text
        _ = plan.space  # may refuse a setting
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    return plan


def parse_settings(texts: Sequence[str], base: Plan = GRID) -> Plan:
    """`base` with settings from the command line: `key=a,b,c` and `key=low..high` vary, `key=a` is for all runs.

    They take the place of those in `base`. Commas within brackets, braces and quotes do not part values:
    `samples.prompts=["a, b"]` is one.

    Raises:
        UserError: a text is none of these.
    """
    found: dict[str, Parameter] = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not (separator and key.strip()):
            raise UserError(f"{text!r}: settings are written key=value, key=value,value or key=low..high")
        if key in found:
            raise UserError(f"{key}: named twice: write its values with commas, {key}=a,b")
        values, bounds = _parted(value), RANGE.fullmatch(value)
        if bounds:
            found[key] = _range(text, *bounds.groups())
        elif len(values) > 1 and "" in values:
            raise UserError(f"{text!r}: a value is missing between two commas")
        else:
            found[key] = Parameter(values=values) if len(values) > 1 else Parameter(value)
    return structs.replace(base, parameters=base.parameters | found)


def _range(text: str, *bounds: str) -> Parameter:
    with contextlib.suppress(ValueError):
        low, high = map(float, bounds)
        if 0 < low < high < float("inf"):
            is_whole = low.is_integer() and high.is_integer()
            kind: Kind = "q_log_uniform_values" if is_whole else "log_uniform_values"
            return Parameter(min=low, max=high, distribution=kind)
    raise UserError(f"{text!r}: a range is written low..high, two numbers above 0, the second one larger")


def _parted(text: str) -> list[str]:
    """The text at its commas, but for those within brackets, braces or quotes."""
    parts: list[str] = []
    for piece in text.split(","):
        before = QUOTED.sub("", parts[-1]) if parts else ""
        if '"' in before or len(re.findall(r"[\[{]", before)) > len(re.findall(r"[\]}]", before)):
            parts[-1] += f",{piece}"
        else:
            parts.append(piece)
    return parts

"""Which settings a sweep tries: `key=a,b,c` and `key=low..high`, all combinations or some by chance."""

from __future__ import annotations

import hashlib
import itertools
import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from dalle_mini.errors import UserError

LONGEST = 100  # characters of a point's name
RANGE = re.compile(r"([0-9.eE+-]+)\.\.([0-9.eE+-]+)")


@dataclass(frozen=True)
class Axis:
    """A setting that varies: over `values`, or, where there are none, between `low` and `high`."""

    key: str
    values: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0

    def draw(self, chance: random.Random) -> str:
        """One of the values, or a number from the range whose logarithm is uniform, to four digits."""
        if self.values:
            return chance.choice(self.values)
        value = math.exp(chance.uniform(math.log(self.low), math.log(self.high)))
        if self.low.is_integer() and self.high.is_integer():
            return str(round(value))
        return f"{value:.4g}"


@dataclass(frozen=True)
class Point:
    """One run: the settings that vary, as `key=value`."""

    name: str
    assignments: tuple[str, ...]


def parse_axes(texts: Sequence[str]) -> tuple[tuple[Axis, ...], tuple[str, ...]]:
    """`key=a,b,c` and `key=low..high` as axes, and `key=a` as settings of all runs.

    Commas within brackets, braces and quotes do not part values: `samples.prompts=["a, b"]` is one.
    Raises UserError where a text is none of these.
    """
    axes, fixed = [], []
    for text in texts:
        key, separator, value = text.partition("=")
        if not (separator and key.strip()):
            raise UserError(f"{text!r}: settings are written key=value, key=value,value or key=low..high")
        values = _parted(value)
        bounds = RANGE.fullmatch(value)
        if bounds:
            axes.append(Axis(key, (), *_bounds(text, *bounds.groups())))
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
    if not axes:
        raise UserError("nothing varies: give a setting several values, training.optimizer.learning_rate=0.001,0.003")
    return tuple(axes), tuple(fixed)


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


def grid(axes: Sequence[Axis]) -> list[Point]:
    """Every combination. Raises UserError for an axis that is a range."""
    for axis in axes:
        if not axis.values:
            raise UserError(f"{axis.key}={axis.low:g}..{axis.high:g}: a range needs --random N")
    return [point(axes, values) for values in itertools.product(*(axis.values for axis in axes))]


def sampled(axes: Sequence[Axis], count: int, seed: int) -> list[Point]:
    """`count` different combinations by chance; fewer where there are fewer. More of them begin with the same ones."""
    chance, found = random.Random(seed), {}
    for _ in range(100 * count):
        if len(found) == count:
            break
        one = point(axes, [axis.draw(chance) for axis in axes])
        found.setdefault(one.name, one)
    return list(found.values())


def point(axes: Sequence[Axis], values: Sequence[str]) -> Point:
    """Its name has the keys' last parts, whole keys where those are the same, and is one that a folder can have."""
    short = [axis.key.rpartition(".")[2] for axis in axes]
    keys = short if len({*short}) == len(short) else [axis.key for axis in axes]
    told = ",".join(f"{key}={value}" for key, value in zip(keys, values, strict=True))
    name = re.sub(r"[^\w.,=+-]+", "_", told, flags=re.ASCII)
    if name != told or len(name) > LONGEST:
        name = f"{name[:LONGEST]}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"
    return Point(name, tuple(f"{axis.key}={value}" for axis, value in zip(axes, values, strict=True)))

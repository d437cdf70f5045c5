"""Curves as SVG that needs no script: colours come from the page's CSS, and a point's value from hovering over it."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 560, 250
LEFT, RIGHT, TOP, BOTTOM = 54, 12, 10, 28
BUCKETS = 240  # points that a curve has at most
HOVERS = 60  # of them those that tell their value
COLOURS = 8  # --s0 ... --s7; curves beyond are dashed
LOG_FROM = 60.0  # largest over smallest from which an axis that may be logarithmic is

Point = tuple[float, float | None]


@dataclass(frozen=True)
class Series:
    """A curve: `points` are (step, value) in order; a value of None is a gap."""

    name: str
    points: Sequence[Point]
    colour: int = 0


@dataclass(frozen=True)
class Bucket:
    """Neighbouring points as one: their mean, and from where to where they reach."""

    x: float
    mean: float | None
    low: float = 0.0
    high: float = 0.0


def chart(
    title: str,
    series: Sequence[Series],
    *,
    end: float,
    legend: bool = True,
    may_be_log: bool = False,
    from_zero: bool = False,
    percent: bool = False,
) -> str:
    """A card with a title, a legend with each curve's last value, and the curves from step 0 to `end`.

    A curve of more than `BUCKETS` points is drawn as the means of neighbours, in a band from least to largest.
    Nothing to draw is an empty string.
    """
    curves = [(one, down_sampled(one.points, end)) for one in series]
    bounds = [value for _, curve in curves for one in curve if one.mean is not None for value in (one.low, one.high)]
    if not bounds:
        return ""
    low, high = min(bounds + [0.0] * from_zero), max(bounds)
    is_log = may_be_log and low > 0 and high / low >= LOG_FROM
    ticks = log_ticks(low, high) if is_log else linear_ticks(low, high)
    if not is_log:
        low, high = min(low, ticks[0]), max(high, ticks[-1])
    scale = math.log10 if is_log else float
    bottom, span = scale(low), (scale(high) - scale(low)) or 1.0

    def place_x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / max(end, 1)

    def place_y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (scale(value) - bottom) / span

    # A norm of 210.3 that moves in its fifth digit wants five.
    digits = next((d for d in range(4, 9) if len({number(tick, percent, d) for tick in ticks}) == len(ticks)), 9)
    parts = []
    for tick in ticks:
        y = place_y(tick)
        parts.append(f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_label(LEFT - 8, y + 4, "end", number(tick, percent, digits)))
    for tick in linear_ticks(0, end, 5):
        if tick <= end:
            x, anchor = place_x(tick), "middle" if tick < 0.97 * end else "end"
            parts.append(
                f'<text class="tick" x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{number(tick)}</text>'
            )
    for one, curve in curves:
        parts.append(_curve(one, curve, place_x, place_y, percent))
    keys = "".join(_key(one, percent) for one in series) if legend else ""
    label = html.escape(f"{title} over steps")
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    return f'<section class="card"><header><h3>{html.escape(title)}</h3>{keys}</header>{svg}</section>'


def down_sampled(points: Sequence[Point], end: float, buckets: int = BUCKETS) -> list[Bucket]:
    """At most `buckets` of them (and gaps), each of the points in an equal share of the steps up to `end`."""
    if len(points) <= buckets:
        return [Bucket(x, y, y or 0.0, y or 0.0) for x, y in points]
    shares: dict[int, list[Point]] = {}
    for point in points:
        shares.setdefault(min(int(point[0] / max(end, 1) * buckets), buckets - 1), []).append(point)
    made = []
    for _, share in sorted(shares.items()):
        values = [y for _, y in share if y is not None]
        x = sum(x for x, _ in share) / len(share)
        made.append(Bucket(x, sum(values) / len(values), min(values), max(values)) if values else Bucket(x, None))
    return made


def linear_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers, about `count` steps apart, from at or below `low` to at or above `high`."""
    span = high - low
    if span <= abs(high) * 1e-9:
        span = abs(high) or 1.0
    raw = span / count
    unit = 10 ** math.floor(math.log10(raw))
    step = unit * next(factor for factor in (1, 2, 2.5, 5, 10) if factor * unit >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, max(last, first + 1) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten between the two, thinned out where there are many."""
    powers = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
    return [10.0**power for power in powers][:: max(1, len(powers) // 5)]


def number(value: float, percent: bool = False, digits: int = 4) -> str:
    """Short, for an axis and a legend: 12k, 0.25, 3.2e-05, 41 %."""
    if percent:
        return f"{100 * value:.{digits - 1}g} %"
    if value == 0:
        return "0"
    size = abs(value)
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= unit:
            return f"{value / min(unit, 1e3 if letter == 'k' else unit):.{digits}g}{letter}"
    return f"{value:.{digits}g}" if size >= 1e-3 else f"{value:.{digits - 2}g}"


def _label(x: float, y: float, anchor: str, text: str) -> str:
    return f'<text class="tick" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


def _curve(series: Series, curve: Sequence[Bucket], place_x, place_y, percent: bool) -> str:
    style = f'style="--c:var(--s{series.colour % COLOURS})"'
    dashed = ' stroke-dasharray="6 4"' if series.colour >= COLOURS else ""
    parts = [f"<g {style}>"]
    for run in _runs(curve):
        if any(one.low < one.high for one in run):
            upper = [f"{place_x(one.x):.1f},{place_y(one.high):.1f}" for one in run]
            lower = [f"{place_x(one.x):.1f},{place_y(one.low):.1f}" for one in reversed(run)]
            parts.append(f'<polygon class="band" points="{" ".join(upper + lower)}"/>')
        line = " ".join(f"{place_x(one.x):.1f},{place_y(one.mean):.1f}" for one in run)
        parts.append(f'<polyline class="line"{dashed} points="{line}"/>')
    known = [one for one in curve if one.mean is not None]
    every = max(1, -(-len(known) // HOVERS))
    for index, one in enumerate(known):
        if index % every == 0 or index == len(known) - 1:
            told = html.escape(f"step {round(one.x):,}: {series.name} {number(one.mean, percent)}")
            # A curve of few points shows them: a single one would be no line.
            kind = "dot" if len(known) <= 12 else "spot"
            x, y = place_x(one.x), place_y(one.mean)
            parts.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{told}</title></circle>')
    return "".join(parts) + "</g>"


def _runs(curve: Sequence[Bucket]) -> list[list[Bucket]]:
    """The stretches between gaps."""
    runs: list[list[Bucket]] = [[]]
    for one in curve:
        if one.mean is None:
            runs.append([])
        else:
            runs[-1].append(one)
    return [run for run in runs if run]


def _key(series: Series, percent: bool) -> str:
    last = next((y for _, y in reversed(series.points) if y is not None), None)
    value = "" if last is None else f" <b>{number(last, percent)}</b>"
    return f'<span class="key" style="--c:var(--s{series.colour % COLOURS})">{html.escape(series.name)}{value}</span>'

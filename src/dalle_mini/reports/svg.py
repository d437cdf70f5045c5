"""Charts as SVG, without a script: `style.css` has their colours, and hovering over a mark tells its value."""

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

WIDTH, HEIGHT = 560, 230  # of a drawing, in its own units, and its margins
LEFT, RIGHT, TOP, BOTTOM = 54, 12, 10, 28
FLOOR = HEIGHT - BOTTOM
INSET = 24  # of the first and the last dot of a scatter plot from the margins
BUCKETS = 240  # points that a curve has at most
HOVERS = 60  # points of a curve that tell their value
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


@dataclass(frozen=True)
class Scale:
    """Where a value lies along an axis, whose ends are at `start` and `end` of the drawing."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (math.log10(one) if self.is_log else one for one in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (value - low) / ((high - low) or 1.0)


def across(low: float, high: float, is_log: bool = False) -> Scale:
    return Scale(low, high, LEFT, WIDTH - RIGHT, is_log)


def upwards(low: float, high: float, is_log: bool = False) -> Scale:
    return Scale(low, high, FLOOR, TOP, is_log)


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
    y, parts = _value_axis(min(bounds + [0.0] * from_zero), max(bounds), may_be_log, percent)
    x = across(0, max(end, 1))
    parts += [
        _tick(x(tick), number(tick), "middle" if tick < 0.97 * end else "end")
        for tick in linear_ticks(0, end, 5)
        if tick <= end
    ]
    parts += [_curve(one, curve, x, y, percent) for one, curve in curves]
    keys = "".join(_key(one, percent) for one in series) if legend else ""
    return card(title, _svg(f"{title} over steps", parts), keys)


def scatter(
    title: str,
    dots: Sequence[tuple[float, float, str, int]],
    *,
    ticks: Sequence[tuple[float, str]],
    is_log: bool = False,
) -> str:
    """A card with a dot for each (x, value, name, colour); `ticks` are (x, text)."""
    values = [value for _, value, *_ in dots]
    y, parts = _value_axis(min(values), max(values), may_be_log=True)
    places = [place for place, *_ in dots] + [place for place, _ in ticks]
    x = Scale(min(places), max(places), LEFT + INSET, WIDTH - RIGHT - INSET, is_log)
    parts += [_tick(x(place), text, "middle") for place, text in ticks]
    parts += [
        f'<circle class="dot" style="--c:var(--s{colour % COLOURS})" cx="{x(place):.1f}" cy="{y(value):.1f}" r="5">'
        f"<title>{html.escape(f'{name}: {number(value)}')}</title></circle>"
        for place, value, name, colour in dots
    ]
    return card(title, _svg(title, parts))


def histogram(
    values: np.ndarray,
    edges: Sequence[float] | np.ndarray,
    label: str,
    *,
    ticks: Sequence[tuple[float, str]],
    span: Callable[[float, float], str],
    marks: Sequence[float] = (),
) -> str:
    """Bars of even width between edges. Values beyond the ends are counted in the first and last bar.

    Args:
        values: [n].
        edges: of the bars, ascending.
        label: the chart's subject, for those who do not see it.
        ticks: (value, text) along the axis.
        span: the name of a bar, from its lower and upper edge.
        marks: values where a line is drawn, such as a median.
    """
    counts, _ = np.histogram(np.clip(values, edges[0], np.nextafter(edges[-1], -math.inf)), bins=edges)
    most = max(int(counts.max()), 1)
    x, y = across(0, len(counts)), upwards(0, most)
    parts = [_rule(y(tick), number(tick)) for tick in linear_ticks(0, most) if tick == int(tick) and tick <= most]
    step = x(1) - x(0)
    for place, count in enumerate(counts.tolist()):
        if count:
            height = max(FLOOR - y(count), 1)
            title = f"{span(edges[place], edges[place + 1])}: {count:,} ({count / len(values):.1%})"
            parts.append(
                f'<rect class="mark" x="{x(place) + 0.75:.1f}" y="{FLOOR - height:.1f}" '
                f'width="{max(step - 1.5, 0.5):.1f}" height="{height:.1f}" rx="1.5">'
                f"<title>{html.escape(title)}</title></rect>"
            )

    def at(value: float) -> float:
        return x(float(np.interp(value, edges, np.arange(len(edges)))))

    parts += [_line("median", at(value), TOP, at(value), FLOOR) for value in marks]
    parts += [_tick(at(value), text, "end" if at(value) > WIDTH - 20 else "middle") for value, text in ticks]
    return _svg(label, parts)


def rank_curve(counts: np.ndarray, label: str) -> str:
    """How often each thing occurs, the commonest first, on logarithmic scales, beside even use."""
    ordered = np.sort(counts[counts > 0])[::-1]
    even = int(counts.sum()) / len(counts)
    x = across(1, max(len(counts), 2), is_log=True)
    y = upwards(max(min(ordered[-1], even) * 0.7, 0.5), max(ordered[0], even) * 1.3, is_log=True)
    ranks = np.unique(np.geomspace(1, len(ordered), min(len(ordered), 160)).round().astype(int))
    line = " ".join(f"{x(rank):.1f},{y(ordered[rank - 1]):.1f}" for rank in ranks.tolist())
    parts = [_rule(y(tick), number(tick)) for tick in log_ticks(y.low, y.high)]
    parts += [
        f'<polygon class="band" points="{x(1):.1f},{FLOOR} {line} {x(len(ordered)):.1f},{FLOOR}"/>'
        f'<polyline class="line" points="{line}"/>',
        _line("median", LEFT, y(even), WIDTH - RIGHT, y(even), f"even use: {even:,.1f} each"),
    ]
    for rank in sorted({1, 10, 100, 1000, 10_000, len(ordered)}):
        if rank <= len(ordered):
            told = f"number {rank:,} in order of use: {ordered[rank - 1]:,} times"
            parts.append(_dot("dot", x(rank), y(ordered[rank - 1]), told))
    parts += [_tick(x(10**power), number(10**power), "middle") for power in range(int(math.log10(len(counts))) + 1)]
    return _svg(label, parts)


def bars(rows: Sequence[tuple[str, int, str]], whole: int) -> str:
    """A table with a bar in each line: (name, count, text on hovering), and the count's share of the whole."""
    most = max((count for _, count, _ in rows), default=1)
    lines = [
        f'<tr title="{html.escape(meaning, quote=True)}"><th scope="row">{html.escape(name)}</th>'
        f'<td class="bar"><i style="width:{100 * count / most:.2f}%"></i></td>'
        f"<td>{count:,}</td><td>{count / max(whole, 1):.2%}</td></tr>"
        for name, count, meaning in rows
    ]
    return f'<table class="bars">{"".join(lines)}</table>'


def card(title: str, drawn: str, keys: str = "", note: str = "") -> str:
    """A chart under its title; `drawn` and `keys` are markup, `title` and `note` are text."""
    below = f"<p>{html.escape(note)}</p>" if note else ""
    head = f"<header><h3>{html.escape(title)}</h3>{keys}</header>"
    return f'<section class="card">{head}{drawn}{below}</section>'


def down_sampled(points: Sequence[Point], end: float) -> list[Bucket]:
    """At most `BUCKETS` of them (and gaps), each of the points in an equal share of the steps up to `end`."""
    if len(points) <= BUCKETS:
        return [Bucket(x, y, y or 0.0, y or 0.0) for x, y in points]
    shares: dict[int, list[Point]] = {}
    for point in points:
        shares.setdefault(min(int(point[0] / max(end, 1) * BUCKETS), BUCKETS - 1), []).append(point)
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


def _value_axis(low: float, high: float, may_be_log: bool = False, percent: bool = False) -> tuple[Scale, list[str]]:
    """The scale of the values, and its rules with their numbers."""
    is_log = may_be_log and low > 0 and high / low >= LOG_FROM
    ticks = log_ticks(low, high) if is_log else linear_ticks(low, high)
    if not is_log:
        low, high = min(low, ticks[0]), max(high, ticks[-1])
    y = upwards(low, high, is_log)
    # A norm of 210.3 that moves in its fifth digit wants five.
    digits = next((d for d in range(4, 9) if len({number(tick, percent, d) for tick in ticks}) == len(ticks)), 9)
    return y, [_rule(y(tick), number(tick, percent, digits)) for tick in ticks]


def _svg(label: str, parts: Sequence[str]) -> str:
    name = html.escape(label, quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name}">{"".join(parts)}</svg>'


def _line(kind: str, x1: float, y1: float, x2: float, y2: float, told: str = "") -> str:
    title = f"<title>{html.escape(told)}</title>" if told else ""
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}">{title}</line>'


def _rule(y: float, text: str) -> str:
    """A horizontal line with its number beside it."""
    return _line("rule", LEFT, y, WIDTH - RIGHT, y) + _text(LEFT - 8, y + 4, "end", text)


def _tick(x: float, text: str, anchor: str) -> str:
    return _text(x, HEIGHT - 8, anchor, text)


def _text(x: float, y: float, anchor: str, text: str) -> str:
    return f'<text class="tick" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _dot(kind: str, x: float, y: float, told: str) -> str:
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{html.escape(told)}</title></circle>'


def _curve(series: Series, curve: Sequence[Bucket], x: Scale, y: Scale, percent: bool) -> str:
    dashed = ' stroke-dasharray="6 4"' if series.colour >= COLOURS else ""
    parts = [f'<g style="--c:var(--s{series.colour % COLOURS})">']
    for run in _runs(curve):
        if any(one.low < one.high for one in run):
            upper = [f"{x(one.x):.1f},{y(one.high):.1f}" for one in run]
            lower = [f"{x(one.x):.1f},{y(one.low):.1f}" for one in reversed(run)]
            parts.append(f'<polygon class="band" points="{" ".join(upper + lower)}"/>')
        line = " ".join(f"{x(one.x):.1f},{y(one.mean):.1f}" for one in run if one.mean is not None)
        parts.append(f'<polyline class="line"{dashed} points="{line}"/>')
    known = [(one.x, one.mean) for one in curve if one.mean is not None]
    every = max(1, -(-len(known) // HOVERS))
    kind = "dot" if len(known) <= 12 else "spot"  # a curve of few points shows them: a single one would be no line
    for index, (step, mean) in enumerate(known):
        if index % every == 0 or index == len(known) - 1:
            told = f"step {round(step):,}: {series.name} {number(mean, percent)}"
            parts.append(_dot(kind, x(step), y(mean), told))
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

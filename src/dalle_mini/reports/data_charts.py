"""Bars and curves as SVG, for pages that need no script: what a mark stands for is its `<title>`, shown on hovering."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence

import numpy as np

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 560, 200, 46, 26, 8  # of the drawing, and of its margins, in its own units


def histogram(
    values: np.ndarray,
    edges: Sequence[float],
    label: str,
    *,
    ticks: Sequence[tuple[float, str]],
    span: Callable[[float, float], str],
    marks: Sequence[float] = (),
) -> str:
    """Bars of even width between edges; what lies beyond the ends is counted in the first and last bar.

    Args:
        values: [n].
        edges: of the bars, ascending.
        label: what the chart shows, for who does not see it.
        ticks: (value, text) along the axis.
        span: what a bar is called: of its lower and upper edge.
        marks: values where a line is drawn, such as a median.
    """
    counts, _ = np.histogram(np.clip(values, edges[0], np.nextafter(edges[-1], -math.inf)), bins=edges)
    top = max(int(counts.max()), 1)
    step = (WIDTH - LEFT) / len(counts)

    def x_of(value: float) -> float:
        return LEFT + step * float(np.interp(value, edges, np.arange(len(edges))))

    parts = [_grid(top)]
    for number, count in enumerate(counts.tolist()):
        if count:
            height = max((HEIGHT - BOTTOM - TOP) * count / top, 1)
            title = f"{span(edges[number], edges[number + 1])}: {count:,} ({count / len(values):.1%})"
            parts.append(
                f'<rect class="mark" x="{LEFT + number * step + 0.75:.1f}" y="{HEIGHT - BOTTOM - height:.1f}" '
                f'width="{max(step - 1.5, 0.5):.1f}" height="{height:.1f}" rx="1.5">'
                f"<title>{html.escape(title)}</title></rect>"
            )
    for value in marks:
        parts.append(
            f'<line class="median" x1="{x_of(value):.1f}" x2="{x_of(value):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        )
    parts += [_tick(x_of(value), text) for value, text in ticks]
    return _svg(label, parts)


def rank_curve(counts: np.ndarray, label: str) -> str:
    """How often each thing occurs, the commonest first, on logarithmic scales, beside what even use would be."""
    ordered = np.sort(counts[counts > 0])[::-1]
    total, number = int(counts.sum()), len(counts)
    even = total / number
    least, most = math.log10(max(min(ordered[-1], even) * 0.7, 0.5)), math.log10(max(ordered[0], even) * 1.3)

    def x_of(rank: float) -> float:
        return LEFT + (WIDTH - LEFT - 8) * math.log10(rank) / max(math.log10(number), 1e-9)

    def y_of(count: float) -> float:
        return TOP + (HEIGHT - BOTTOM - TOP) * (most - math.log10(count)) / (most - least)

    ranks = np.unique(np.geomspace(1, len(ordered), min(len(ordered), 160)).round().astype(int))
    line = " ".join(f"{x_of(rank):.1f},{y_of(ordered[rank - 1]):.1f}" for rank in ranks.tolist())
    floor = HEIGHT - BOTTOM
    area = f"{x_of(1):.1f},{floor} {line} {x_of(len(ordered)):.1f},{floor}"
    parts = []
    for power in range(math.ceil(least), math.floor(most) + 1):
        parts.append(_rule(y_of(10**power), short(10**power)))
    parts += [
        f'<polygon class="area" points="{area}"/><polyline class="line" points="{line}"/>',
        f'<line class="median" x1="{LEFT}" x2="{WIDTH - 8}" y1="{y_of(even):.1f}" y2="{y_of(even):.1f}">'
        f"<title>even use: {even:,.1f} each</title></line>",
    ]
    for rank in sorted({1, 10, 100, 1000, 10_000, len(ordered)}):
        if rank <= len(ordered):
            parts.append(
                f'<circle class="dot" cx="{x_of(rank):.1f}" cy="{y_of(ordered[rank - 1]):.1f}" r="3.5"><title>'
                f"number {rank:,} in order of use: {ordered[rank - 1]:,} times</title></circle>"
            )
    parts += [_tick(x_of(10**power), short(10**power)) for power in range(int(math.log10(number)) + 1)]
    return _svg(label, parts)


def bars(rows: Sequence[tuple[str, int, str]], whole: int) -> str:
    """A table with a bar in each line: (name, count, what is told on hovering), and the count's share of the whole."""
    most = max((count for _, count, _ in rows), default=1)
    lines = [
        f'<tr title="{html.escape(meaning, quote=True)}"><th scope="row">{html.escape(name)}</th>'
        f'<td class="bar"><i style="width:{100 * count / most:.2f}%"></i></td>'
        f"<td>{count:,}</td><td>{count / max(whole, 1):.2%}</td></tr>"
        for name, count, meaning in rows
    ]
    return f'<table class="bars">{"".join(lines)}</table>'


def short(value: float) -> str:
    """A number in little room: 1.2M, 35k, 7."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def _svg(label: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(label, quote=True)}">'
        f"{''.join(parts)}</svg>"
    )


def _grid(top: int) -> str:
    step = 10 ** math.floor(math.log10(top))
    step = next((step * part for part in (0.2, 0.5, 1, 2) if top / (step * part) <= 5), step * 2)
    levels = [level * step for level in range(int(top / step) + 1) if level * step == int(level * step)]
    return "".join(_rule(HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * level / top, short(level)) for level in levels)


def _rule(y: float, text: str) -> str:
    return (
        f'<line class="rule" x1="{LEFT}" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
    )


def _tick(x: float, text: str) -> str:
    anchor = "end" if x > WIDTH - 20 else "middle"
    return f'<text class="tick" x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{html.escape(text)}</text>'

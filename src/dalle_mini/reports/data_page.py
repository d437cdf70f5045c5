"""The page about an encoded folder: HTML with everything in it. No script, and no request, whatever the captions hold.

All text from the data is strangers' and escaped; a policy in the page's head forbids what would slip through.
"""

import html
import math
from collections.abc import Mapping, Sequence

import numpy as np

from dalle_mini.addresses import hidden, without_secrets
from dalle_mini.data.sources.reasons import REASONS
from dalle_mini.reports.html_page import html_page
from dalle_mini.reports.survey import Row, Survey
from dalle_mini.reports.svg import bars, card, histogram, number, rank_curve

LONGEST = 600  # characters of a caption that are shown
LEAST_SIDE = 128  # pixels of the screen: smaller pictures are enlarged twice, or four times, with their pixels kept

# Why each kind of row is worth a look.
REMARKS = {
    "Lowest CLIP scores": "the captions that CLIP thinks fit their images least",
    "Fewest different codes": "often plain, blank or placeholder images",
    "Shortest captions": "may say too little to learn from",
    "Longest captions": "may be page text rather than captions",
}


def page(name: str, found: Survey, pictures: Mapping[tuple[str, str, int], str]) -> str:
    """The page of a survey; `pictures` are data URIs by (split, key, crop)."""
    manifest = found.manifest
    side = manifest.vqgan.resolution
    body = [
        f"<h1>{html.escape(name)}</h1>",
        f'<p class="lead">{manifest.rows:,} rows of {manifest.kept:,} images, as {manifest.vqgan.image_length} tokens'
        f" each by {html.escape(without_secrets(manifest.vqgan.source))} ({html.escape(manifest.vqgan.identity)})</p>",
        _figures(found),
        _drops(found),
        f"<h2>Captions and images</h2>{_sampled(found)}{_charts(found)}",
        _codebook(manifest.codebook_use),
        "<h2>Random rows</h2>"
        f'<p class="note">{len(found.random)} rows, drawn evenly; the images are what their tokens stand for'
        f"{_enlarged(side)}.</p>",
        _rows(found.random, pictures, side),
    ]
    for title, rows in found.worst.items():
        body.append(f'<h2>{title}</h2><p class="note">{REMARKS[title]}</p>{_rows(rows, pictures, side)}')
    body.append(_settings(found))
    return html_page(f"{name} · encoded images", body)


def _figures(found: Survey) -> str:
    manifest = found.manifest
    dropped = sum(manifest.dropped.values())
    use = np.array(manifest.codebook_use)
    figures = [
        ("images seen", f"{manifest.seen:,}", ""),
        ("kept", f"{manifest.kept:,}", f"{manifest.kept / max(manifest.seen, 1):.1%}"),
        ("dropped", f"{dropped:,}", f"{dropped / max(manifest.seen, 1):.1%}"),
        *((f"{html.escape(split)} rows", f"{shards.rows:,}", "") for split, shards in manifest.splits.items()),
        ("codes used", f"{(use > 0).sum() / len(use):.1%}", f"of {len(use):,}"),
        ("perplexity", f"{perplexity(use):,.0f}", "codes"),
    ]
    cells = (f"<div><dt>{name}</dt><dd>{value} <small>{more}</small></dd></div>" for name, value, more in figures)
    return f'<dl class="figures">{"".join(cells)}</dl>'


def perplexity(use: np.ndarray) -> float:
    """exp of the entropy of the codes: the number of codes that, used evenly, would carry as much."""
    share = use[use > 0] / max(use.sum(), 1)
    return float(np.exp(-(share * np.log(share)).sum()))


def _drops(found: Survey) -> str:
    manifest = found.manifest
    reasons = sorted(manifest.dropped.items(), key=lambda one: (-one[1], one[0]))
    reasons = [(reason, count) for reason, count in reasons if count]
    heading = "<h2>Dropped</h2>"
    if not reasons:
        return f'{heading}<p class="note">Nothing: every image that was seen is here.</p>'
    note = f"<p>of {manifest.seen:,} images seen; the first reason to drop one is counted</p>"
    if manifest.crops_dropped:
        note += f"<p>and {manifest.crops_dropped:,} crops whose images have other crops that stayed</p>"
    examples = ""
    if found.dropped:
        lines = [
            f"<dt>{html.escape(reason)}</dt><dd>"
            + "".join(
                f"<code>{html.escape(_cut(key, 200))} <span>{html.escape(_cut(detail, 200))}</span></code>"
                for key, detail in found.dropped[reason]
            )
            + "</dd>"
            for reason, _ in reasons
            if reason in found.dropped
        ]
        examples = (
            f'<details><summary>the first of each, by key</summary><dl class="keys">{"".join(lines)}</dl></details>'
        )
    drawn = bars([(reason, count, REASONS.get(reason, "")) for reason, count in reasons], manifest.seen)
    return f'{heading}<div class="card">{drawn}{note}{examples}</div>'


def _sampled(found: Survey) -> str:
    rows = found.manifest.rows
    of = "all rows" if found.sampled == rows else f"{found.sampled:,} of {rows:,} rows, drawn at random"
    return f'<p class="note">From {of}. Dashed lines are medians; hover over a bar for its count.</p>'


def _charts(found: Survey) -> str:
    charts = [_lengths("Words a caption", found.words), _lengths("Characters a caption", found.characters)]
    ticks = [
        (math.log2(value), text) for value, text in ((0.25, "1:4"), (0.5, "1:2"), (1, "1:1"), (2, "2:1"), (4, "4:1"))
    ]
    aspect = np.log2(np.maximum(found.aspect, 1e-6))
    drawn = histogram(
        aspect,
        np.linspace(-2.25, 2.25, 46),
        "aspect ratios",
        ticks=ticks,
        span=lambda low, high: f"width / height {2**low:.2f} to {2**high:.2f}",
        marks=[float(np.median(aspect))],
    )
    charts.append(card("Aspect ratio, width to height", drawn, note=f"median {np.median(found.aspect):.2f}"))
    charts.append(_lengths("Shorter side, pixels, before it was resized", found.side))
    if len(found.scores):
        scores = found.scores.astype(np.float64)
        low, high = math.floor(scores.min() * 20) / 20, math.ceil(scores.max() * 20) / 20
        edges = np.linspace(low, max(high, low + 0.05), 41)
        ticks = [(value, f"{value:.2f}") for value in np.linspace(edges[0], edges[-1], 6)]
        drawn = histogram(
            scores,
            edges,
            "CLIP scores",
            ticks=ticks,
            span=lambda low, high: f"{low:.3f} to {high:.3f}",
            marks=[float(np.median(scores))],
        )
        charts.append(card("CLIP score", drawn, note=f"median {np.median(scores):.3f}, {len(scores):,} rows have one"))
    if found.captions.max() > 1:
        charts.append(_lengths("Captions per image", found.captions))
    return f'<div class="charts">{"".join(charts)}</div>'


def _lengths(title: str, values: np.ndarray) -> str:
    """A histogram of whole numbers from 0; a long tail ends in a last bar."""
    last, most = max(int(np.quantile(values, 0.995)), 4), int(values.max())
    width = max(1, math.ceil((last + 1) / 50))
    edges = np.arange(0, last + 1 + width, width)
    step = _round_step(edges[-1] / 6)
    ticks = [(value + width / 2 if width == 1 else value, number(value)) for value in np.arange(0, edges[-1], step)]

    def span(low: float, high: float) -> str:
        low, high = int(low), int(high) - 1
        return (
            f"{low:,} and more"
            if high + 1 >= edges[-1] and most > high
            else f"{low:,}"
            if low == high
            else f"{low:,} to {high:,}"
        )

    median = float(np.median(values))
    drawn = histogram(values, edges, title, ticks=ticks, span=span, marks=[median + (0.5 if width == 1 else 0)])
    beyond = f", the last bar has all from {edges[-2]:,} on" if most >= edges[-1] else ""
    return card(title, drawn, note=f"median {median:,.0f}, most {most:,}{beyond}")


def _round_step(step: float) -> int:
    power = 10 ** math.floor(math.log10(max(step, 1)))
    return max(1, int(next(power * part for part in (1, 2, 5, 10) if power * part >= step)))


def _codebook(codebook_use: Sequence[int]) -> str:
    use = np.array(codebook_use)
    if not use.sum():
        return ""
    used, total = int((use > 0).sum()), int(use.sum())
    ordered = np.sort(use)[::-1]
    half = int(np.searchsorted(np.cumsum(ordered), total / 2)) + 1
    commonest = f"the commonest is {int(use.argmax())}, {ordered[0] / total:.2%} of all tokens"
    curve = card(
        "Uses of each code, the commonest first",
        rank_curve(use, "codes in order of use"),
        note=f"both scales are logarithmic; the dashed line is even use; {commonest}",
    )
    powers = np.log2(np.maximum(use / (total / len(use)), 2.0**-8))
    ticks = [(power, f"{2.0**power:g}×" if power >= 0 else f"1/{2**-power}×") for power in range(-8, 9, 2)]
    spread = histogram(
        powers,
        np.arange(-8.25, 8.5, 0.5),
        "codes by how often they are used",
        ticks=[(-8, "≤1/256×"), *ticks[1:]],
        span=lambda low, high: f"used {2**low:.3g} to {2**high:.3g} times as often as on average",
        marks=[float(np.median(powers))],
    )
    second = card(
        "Codes by use, relative to the average",
        spread,
        note=f"{used:,} of {len(use):,} codes are used; half of all tokens are of {half:,} codes",
    )
    return (
        '<h2>Codebook</h2><p class="note">'
        f"{total:,} tokens of all rows. Perplexity {perplexity(use):,.0f}: so many codes, used evenly, would say as "
        f'much.</p><div class="charts">{curve}{second}</div>'
    )


def _rows(rows: Sequence[Row], pictures: Mapping[tuple[str, str, int], str], side: int) -> str:
    scale = _scale(side)
    shown = side * scale
    tall = shown > 200
    style = f"--cell:{shown + 28 if tall else shown + 230}px;--look:{'auto' if scale == 1 else 'pixelated'}"
    cells = "".join(_cell(row, pictures[row.split, row.key, row.crop], shown) for row in rows)
    return f'<div class="rows{" tall" if tall else ""}" style="{style}">{cells}</div>'


def _scale(side: int) -> int:
    """The width of a picture's pixel, in pixels of the screen."""
    return next((scale for scale in (1, 2) if side * scale >= LEAST_SIDE), 4)


def _enlarged(side: int) -> str:
    scale = _scale(side)
    return "" if scale == 1 else f", {side} pixels wide, shown {'twice' if scale == 2 else 'four times'} as large"


def _cell(row: Row, picture: str, shown: int) -> str:
    facts = [f"{row.width:,} × {row.height:,}"]
    if row.score is not None:
        facts.insert(0, f"CLIP <b>{row.score:.3f}</b>")
    if row.crop:
        facts.append(f"crop {row.crop}")
    if row.split != "train":
        facts.append(html.escape(row.split))
    others = ""
    if row.others:
        more = f" and {len(row.others) - 1} more" if len(row.others) > 1 else ""
        others = f'<div class="also">also: {html.escape(_cut(row.others[0], 120))}{more}</div>'
    return (
        f'<figure><img src="{picture}" width="{shown}" height="{shown}" alt=""><figcaption>'
        f"<q>{html.escape(_cut(row.caption, LONGEST))}</q>{others}"
        f"<small>{' · '.join(facts)}<br>{html.escape(_cut(row.key, 120))}</small></figcaption></figure>"
    )


def _settings(found: Survey) -> str:
    manifest = found.manifest
    told = {"source": hidden(manifest.source), "options": manifest.options}
    if manifest.clip:
        told["clip"] = manifest.clip
    lines = [
        f"{name}.{key}: {value}" if isinstance(values, dict) else f"{name}: {values}"
        for name, values in told.items()
        for key, value in (values.items() if isinstance(values, dict) else [("", "")])
    ]
    if not lines:
        return ""
    text = html.escape("\n".join(_cut(line, 500) for line in lines))
    return (
        '<h2>Settings</h2><div class="card"><details open><summary>as it was encoded</summary>'
        f"<pre>{text}</pre></details></div>"
    )


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]}… ({len(text):,} characters)"

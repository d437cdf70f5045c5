"""A run, or several side by side, as one HTML page: curves, and pictures through time. No script, and no request.

Pictures stand in the page itself, small; each links to its grid in `samples/`.
"""

import base64
import contextlib
import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dalle_mini.errors import UserError
from dalle_mini.reports.html_page import html_page
from dalle_mini.reports.svg import Series, chart, number
from dalle_mini.runtime import files
from dalle_mini.runtime.files import write_whole
from dalle_mini.training.records import LOG, REPORT, SAMPLES, read_log, read_samples

Row = tuple[str, Sequence[str], str | None]  # in a comparison's table: name, cells, and the error of a failed run

COLUMNS = 8  # steps whose pictures are shown: the first, the last, and some between
PROMPTS = 24
MAX_THUMB = 1 << 20  # bytes
NOT_DRAWN = ("step", "time", "tokens_per_second")

# Title, names of the curves in it, and options of `chart`. Any other number has a chart under its own name.
CHARTS: tuple[tuple[str, dict[str, str], dict[str, bool]], ...] = (
    ("Loss", {"loss": "training", "eval_loss": "evaluation"}, {}),
    ("Accuracy", {"accuracy": "training", "eval_accuracy": "evaluation"}, {"percent": True, "from_zero": True}),
    ("PSNR, dB", {"psnr": "training", "eval_psnr": "evaluation"}, {}),
    ("SSIM", {"ssim": "training", "eval_ssim": "evaluation"}, {}),
    ("Codebook use", {"eval_codebook_use": "evaluation"}, {"percent": True, "from_zero": True}),
    (
        "Captions that find their image",
        {
            "recall": "training, among the batch",
            "eval_recall": "first",
            "eval_recall_at_5": "within five",
            "eval_recall_at_10": "within ten",
        },
        {"percent": True, "from_zero": True},
    ),
    (
        "Images that find their caption",
        {
            "eval_caption_recall": "first",
            "eval_caption_recall_at_5": "within five",
            "eval_caption_recall_at_10": "within ten",
        },
        {"percent": True, "from_zero": True},
    ),
    (
        "Zero-shot classification",
        {"eval_zero_shot": "right", "eval_zero_shot_top_5": "within five"},
        {"percent": True, "from_zero": True},
    ),
    ("CLIP score of the images", {"sample_score": "mean"}, {}),
    ("Learning rate", {"learning_rate": "rate"}, {"from_zero": True}),
    ("Gradient norm", {"grad_norm": "gradients"}, {"may_be_log": True}),
    ("Parameter norm", {"param_norm": "parameters"}, {}),
    ("Images a second", {"pictures_per_second": "training"}, {"from_zero": True}),
    ("MFU", {"mfu": "training"}, {"percent": True, "from_zero": True}),
    (
        "Memory, GiB",
        {"device_memory_gib": "device", "device_memory_peak_gib": "device, peak", "host_memory_gib": "host"},
        {"from_zero": True},
    ),
)
COMPARED = ("eval_loss", "loss", "eval_accuracy", "sample_score", "grad_norm", "learning_rate", "pictures_per_second")


def write_report(out: Path, config: Mapping[str, Any], steps: int, label: str) -> None:
    """Write `report.html` of the run in `out`, beside and renamed. Raises UserError where that fails."""
    records = read_log(out / LOG)
    done = max((record["step"] for record in records), default=0)
    title = f"{label or 'training'} · {out.resolve().name}"
    body = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="lead">Step {done:,} of {steps:,}{_since(records)}</p>',
        f'<div class="progress"><i style="width:{100 * done / max(steps, 1):.1f}%"></i></div>',
        _figures(records),
        f"<h2>Curves</h2>{_charts(records, max(steps, done))}" if records else "",
        _pictures(out),
        f'<h2>Settings</h2><div class="card"><details><summary>as the run was started</summary>'
        f"<pre>{html.escape(_yaml(config))}</pre></details></div>"
        if config
        else "",
    ]
    write_whole(out / REPORT, html_page(title, body))


def write_comparison(
    path: Path,
    title: str,
    runs: Mapping[str, Path],
    header: Sequence[str] = (),
    rows: Sequence[Row] = (),
    cards: Sequence[str] = (),
) -> None:
    """Write a page with the curves of several runs in each chart, beside and renamed.

    Args:
        path: of the page.
        runs: names and folders; a name's colour is its place.
        header, rows: a table above the curves. A row is (name, one cell for each title in `header`, the error); the
            first row is set off as the best.
        cards: charts of the results, as markup, between the table and the curves.

    Raises:
        UserError: the page cannot be written.
    """
    logs = {name: read_log(folder / LOG) for name, folder in runs.items()}
    end = max((record["step"] for records in logs.values() for record in records), default=0)
    colours = {name: place for place, name in enumerate(runs)}
    charts = []
    for metric in COMPARED:
        series = [Series(name, _points(records, metric), colours[name]) for name, records in logs.items()]
        series = [one for one in series if any(y is not None for _, y in one.points)]
        name, options = _title(metric)
        charts.append(chart(name, series, end=end, legend=False, **options))
    lead = f"{len(runs)} runs" if len(runs) != 1 else "1 run"
    body = [f'<h1>{html.escape(title)}</h1><p class="lead">{lead}</p>', _table(header, rows, colours)]
    for heading, made in (("Results", cards), ("Curves", charts)):
        body.append(f'<h2>{heading}</h2><div class="charts">{"".join(made)}</div>' if any(made) else "")
    write_whole(path, html_page(title, body))


def _figures(records: Sequence[Mapping[str, Any]]) -> str:
    """The last values of the most important numbers."""
    wanted = (
        ("loss", "loss", False),
        ("eval_loss", "evaluation loss", False),
        ("pictures_per_second", "images a second", False),
        ("tokens_per_second", "tokens a second", False),
        ("mfu", "MFU", True),
        ("device_memory_peak_gib", "device memory, GiB", False),
    )
    cells = []
    for name, title, percent in wanted:
        last = next((record[name] for record in reversed(records) if record.get(name) is not None), None)
        if last is not None:
            cells.append(f"<div><dt>{title}</dt><dd>{number(last, percent)}</dd></div>")
    return f'<dl class="figures">{"".join(cells)}</dl>' if cells else ""


def _charts(records: Sequence[Mapping[str, Any]], end: int) -> str:
    groups = list(CHARTS)
    known = {name for _, names, _ in CHARTS for name in names} | set(NOT_DRAWN)
    others = dict.fromkeys(re.sub("^eval_", "", name) for record in records for name in record if name not in known)
    groups += [(_named(base), {base: "training", f"eval_{base}": "evaluation"}, {}) for base in others]
    made = []
    for title, names, options in groups:
        series = [
            Series(shown, points, place)
            for place, (name, shown) in enumerate(names.items())
            if (points := _points(records, name))
        ]
        made.append(chart(title, series, end=end, **options))
    return f'<div class="charts">{"".join(made)}</div>'


def _title(metric: str) -> tuple[str, dict[str, bool]]:
    for title, names, options in CHARTS:
        if metric in names:
            return (f"{title}, {names[metric]}" if len(names) > 1 else title), options
    return _named(metric), {}


def _named(metric: str) -> str:
    return metric.replace("_", " ").capitalize()


def _points(records: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float | None]]:
    return [(record["step"], record[name]) for record in records if name in record]


def _pictures(out: Path) -> str:
    """A row for each prompt, a column for each step. A report's pictures come from its own folder alone."""
    folders = sorted(folder for folder in (out / SAMPLES).glob("*") if folder.name.isdigit())
    reports = []
    for folder in spread(folders, COLUMNS):
        with contextlib.suppress(UserError):
            reports.append((folder, read_samples(folder)))
    if not reports:
        return ""
    prompts = dict.fromkeys(row["prompt"] for _, report in reports for row in report["prompts"])
    head = "".join(f'<th scope="col">{report["step"]:,}</th>' for _, report in reports)
    body = []
    for prompt in list(prompts)[:PROMPTS]:
        cells = "".join(_picture(folder, report, prompt) for folder, report in reports)
        body.append(f'<tr><th scope="row">{html.escape(prompt)}</th>{cells}</tr>')
    return (
        '<h2>Images through time</h2><div class="card scroll"><table class="pictures">'
        f'<tr><th scope="row">step</th>{head}</tr>{"".join(body)}</table></div>'
    )


def _picture(folder: Path, report: Mapping[str, Any], prompt: str) -> str:
    row = next((row for row in report["prompts"] if row["prompt"] == prompt), None)
    if row is None:
        return "<td></td>"
    try:
        data = files.read_bytes(folder / row["thumb"], MAX_THUMB)
        score, grid = row["pictures"][0]["score"], f"{folder.parent.name}/{folder.name}/{row['grid']}"
    except (OSError, TypeError, IndexError):
        return "<td></td>"
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":  # a link to another file, which must not be shown
        return "<td></td>"
    uri = "data:image/webp;base64," + base64.b64encode(data).decode()
    told = "" if score is None else f"{score:.1f}"
    alt = html.escape(f"{prompt} at step {report['step']}", quote=True)
    image = f'<img src="{uri}" alt="{alt}" loading="lazy">'
    return f'<td><a href="{html.escape(grid, quote=True)}">{image}{told}</a></td>'


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of them, evenly, the first and the last among them."""
    if len(items) <= count:
        return list(items)
    return [items[round(place * (len(items) - 1) / (count - 1))] for place in range(count)]


def _table(header: Sequence[str], rows: Sequence[Row], colours: Mapping[str, int]) -> str:
    if not rows:
        return ""
    head = "".join(f"<th>{html.escape(title)}</th>" for title in ("run", *header))
    body = []
    for place, (name, cells, wrong) in enumerate(rows):
        colour = f' style="--c:var(--s{colours[name] % 8})"' if name in colours else ' style="--c:transparent"'
        if wrong is None:
            rest = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
        else:
            rest = f'<td class="bad" colspan="{max(len(header), 1)}">{html.escape(wrong)}</td>'
        best = ' class="best"' if place == 0 and wrong is None else ""
        body.append(f'<tr{best}><td><span class="key"{colour}>{html.escape(name)}</span></td>{rest}</tr>')
    return f'<div class="card scroll"><table class="list"><tr>{head}</tr>{"".join(body)}</table></div>'


def _since(records: Sequence[Mapping[str, Any]]) -> str:
    from datetime import UTC, datetime

    times = [record["time"] for record in records if isinstance(record.get("time"), int | float)]
    try:
        return f", {datetime.fromtimestamp(times[-1], UTC):%d %B %Y, %H:%M} UTC" if times else ""
    except (ValueError, OverflowError, OSError):  # a year that no calendar has
        return ""


def _yaml(config: Mapping[str, Any]) -> str:
    import json

    import yaml

    plain = json.loads(json.dumps(config, default=str))
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100).strip()

"""One picture of how a run went: its curves, and what it drew of each prompt through time.

    python tools/train/show_run.py runs/emoji/seq2seq out.png --curves loss,eval_loss eval_accuracy

Reads `log.jsonl` and `samples/` of the run's folder. Curves that are named together share a panel.
"""

import io
import math
from pathlib import Path

from entry import parser, user_errors
from PIL import Image, ImageDraw

from dalle_mini.errors import UserError
from dalle_mini.imaging.decoding import load_image
from dalle_mini.imaging.lettering import drawable, load_font, wrapped
from dalle_mini.reports.svg import linear_ticks
from dalle_mini.runtime import console
from dalle_mini.runtime.files import write_whole
from dalle_mini.training.records import LOG, RESULTS, SAMPLES, SampleReport, read_log, read_samples

PANEL, HEIGHT, MARGIN, GAP = 520, 250, 46, 16
SIDE, CAPTION, ROWS = 112, 150, 8  # pixels of a picture, and of the captions beside them; prompts at most
COLORS = ("#2a6fdb", "#e07b00", "#1a9641", "#9b2fae")
INK, FAINT, PAPER = "#23201b", "#d8d4cc", "white"


def panel(log: list[dict], names: list[str]) -> Image.Image:
    """Curves over steps."""
    sheet = Image.new("RGB", (PANEL, HEIGHT), PAPER)
    draw, font = ImageDraw.Draw(sheet), load_font(12)
    series = {name: [(one["step"], one[name]) for one in log if one.get(name) is not None] for name in names}
    values = [value for points in series.values() for _, value in points]
    if not values:
        raise UserError(f"--curves {','.join(names)}: nothing of that name was logged")
    low, high, end = min(values), max(values), max(step for points in series.values() for step, _ in points)
    if low == high:
        low, high = low - 0.5, high + 0.5

    def at(step: float, value: float) -> tuple[float, float]:
        x = MARGIN + (PANEL - MARGIN - GAP) * step / end
        return x, HEIGHT - MARGIN / 2 - (HEIGHT - MARGIN - GAP) * (value - low) / (high - low)

    for tick in linear_ticks(low, high):
        if low <= tick <= high:
            y = at(0, tick)[1]
            draw.line((MARGIN, y, PANEL - GAP, y), fill=FAINT)
            draw.text((MARGIN - 6, y), f"{tick:g}", fill=INK, font=font, anchor="rm")
    for tick in linear_ticks(0, end):
        if tick <= end:
            draw.text((at(tick, low)[0], HEIGHT - MARGIN / 2 + 4), f"{tick:g}", fill=INK, font=font, anchor="ma")
    x = MARGIN
    for color, (name, points) in zip(COLORS, series.items(), strict=False):
        draw.line([at(*point) for point in points], fill=color, width=2)
        label = drawable(f"{name} {points[-1][1]:.4g}" if points else name)
        draw.text((x, 2), label, fill=color, font=load_font(13))
        x += int(font.getlength(label)) + 3 * GAP
    return sheet


def evolution(run: Path, columns: int) -> Image.Image | None:
    """A row a prompt, its first picture after more and more steps; None where the run drew nothing."""
    found = sorted((run / SAMPLES).glob(f"*/{RESULTS}"))
    if not found:
        return None
    chosen = sorted({round(i * (len(found) - 1) / max(columns - 1, 1)) for i in range(columns)})
    folders = [found[i].parent for i in chosen]
    reports = [read_samples(folder) for folder in folders]
    prompts = reports[-1]["prompts"][:ROWS]
    if not prompts:
        return None
    font, head = load_font(13), 22
    first = _thumb(folders[-1], prompts[0])
    tall = round(SIDE * first.height / first.width)  # a VQGAN's are two, one above the other
    sheet = Image.new("RGB", (CAPTION + len(reports) * (SIDE + 6), head + len(prompts) * (tall + 6)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, (folder, report) in enumerate(zip(folders, reports, strict=True)):
        x = CAPTION + column * (SIDE + 6)
        draw.text((x + SIDE / 2, 2), f"step {report['step']}", fill=INK, font=font, anchor="ma")
        for row, prompt in enumerate(report["prompts"][: len(prompts)]):
            picture = _thumb(folder, prompt).resize((SIDE, tall), Image.Resampling.LANCZOS)
            sheet.paste(picture, (x, head + row * (tall + 6)))
    for row, prompt in enumerate(prompts):
        lines = wrapped(prompt["prompt"], font, CAPTION - 10, tall // 16)
        draw.multiline_text((0, head + row * (tall + 6) + 4), "\n".join(lines), fill=INK, font=font)
    return sheet


def _thumb(folder: Path, sample: SampleReport) -> Image.Image:
    place = (folder / sample["thumb"]).resolve()
    if not place.is_relative_to(folder.resolve()):
        raise UserError(f"{folder / RESULTS}: the picture {sample['thumb']!r:.60} lies outside of the folder")
    return load_image(place)


def picture(run: Path, curves: list[str], columns: int) -> Image.Image:
    log = read_log(run / LOG)
    if not log:
        raise UserError(f"{run}: no run that logged anything ({LOG})")
    panels = [panel(log, names.split(",")) for names in curves]
    drawn = evolution(run, columns)
    width = max([PANEL * min(len(panels), 2)] + ([drawn.width] if drawn else []))
    rows = math.ceil(len(panels) / 2)
    sheet = Image.new("RGB", (width + 2 * GAP, rows * HEIGHT + 2 * GAP + (drawn.height + GAP if drawn else 0)), PAPER)
    for number, one in enumerate(panels):
        sheet.paste(one, (GAP + number % 2 * PANEL, GAP + number // 2 * HEIGHT))
    if drawn:
        sheet.paste(drawn, (GAP, 2 * GAP + rows * HEIGHT))
    return sheet


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("run", type=Path, help="the run's folder")
    options.add_argument("out", type=Path, help="the image's file, a PNG")
    options.add_argument("--curves", nargs="+", default=["loss,eval_loss"], metavar="NAME,NAME", help="a panel each")
    options.add_argument("--columns", type=int, default=6, help="of images, at most (default: 6)")
    with user_errors():
        args = options.parse_args()
        data = io.BytesIO()
        picture(args.run, args.curves, args.columns).save(data, "PNG", optimize=True)
        write_whole(args.out, data.getvalue())
        console.answer(args.out)

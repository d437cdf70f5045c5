"""One picture of what a model drew: for each prompt CLIP's pick, the next best, and what it rejected, with scores.

    dalle-mini generate "a red apple" "a snail" --candidates 16 --keep 16 --output drawn
    python tools/inference/showcase.py drawn drawn/showcase.png

Reads the folders that `dalle-mini generate` wrote, in the order in which it wrote them, or those of --prompts, as some
may be of earlier runs. Nothing is picked by hand.
"""

import argparse
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from dalle_mini.commands.terminal import Parser, exit_code
from dalle_mini.errors import UserError
from dalle_mini.imaging.decoding import load_image
from dalle_mini.imaging.lettering import load_font, wrapped
from dalle_mini.results.write import REPORT
from dalle_mini.runtime import console
from dalle_mini.runtime.files import write_whole
from dalle_mini.runtime.parsing import read_record
from dalle_mini.training.records import PromptReport

COLUMNS = 3
BEST, NEXT, REJECTED = 232, 58, 56  # pixels, the sides of the pictures
NEXT_COUNT, REJECTED_COUNT = 3, 5
GAP, PAGE, ROUND = 8, 20, 10
PAPER, CARD, EDGE, INK, FAINT = "#f3f1ec", "#ffffff", "#e4e0d8", "#23201b", "#8a847a"
TITLE_LINES, TITLE_LINE = 2, 22
FADE = 0.45  # of the rejected ones
WIDTH = BEST + NEXT + 3 * GAP
ROW = 16  # pixels that a score takes


@dataclass(frozen=True)
class Drawn:
    """One prompt's pictures with their scores, best first."""

    prompt: str
    pictures: list[Image.Image]
    scores: list[float]


def read(folder: Path, prompts: Sequence[str] | None = None) -> list[Drawn]:
    """Every prompt's pictures, or those of `prompts`, as they were drawn last.

    Raises UserError where there is nothing to show, or a folder is not whole.
    """
    reports = sorted(folder.glob(f"*/{REPORT}"), key=lambda path: (path.stat().st_mtime_ns, path))
    if not reports:
        raise UserError(f"{folder}: no folders with a {REPORT}: let `dalle-mini generate --output {folder}` draw first")
    every = [_one(path) for path in reports]
    if prompts is None:
        return every
    last = {one.prompt: one for one in every}
    if missing := [prompt for prompt in prompts if prompt not in last]:
        raise UserError(f"{folder}: nothing is drawn there of {missing[0]!r}")
    return [last[prompt] for prompt in prompts]


def _one(report: Path) -> Drawn:
    try:
        found = read_record(report, PromptReport)
        if not found["pictures"]:
            raise ValueError("it lists no image")
        if any(one["score"] is None or "file" not in one for one in found["pictures"]):
            raise ValueError("an image has no score or no file")
        pictures = [load_image(report.with_name(one["file"])) for one in found["pictures"]]
        return Drawn(found["prompt"], pictures, [one["score"] for one in found["pictures"]])
    except (UserError, ValueError) as error:  # ValueError: a name that is none, too
        raise UserError(f"{report}: it or an image beside it is damaged ({error}): draw this prompt again") from None


def showcase(drawn: Sequence[Drawn]) -> Image.Image:
    """Cards in rows of three."""
    cards = [card(one) for one in drawn]
    columns = min(COLUMNS, len(cards))
    rows = [cards[start : start + columns] for start in range(0, len(cards), columns)]
    heights = [max(one.height for one in row) for row in rows]
    width = PAGE + columns * (WIDTH + 2 * GAP + PAGE)
    page = Image.new("RGB", (width, PAGE + sum(heights) + (PAGE + 2 * GAP) * len(rows)), PAPER)
    draw, y = ImageDraw.Draw(page), PAGE
    for row, height in zip(rows, heights, strict=True):
        for column, one in enumerate(row):
            x = PAGE + column * (WIDTH + 2 * GAP + PAGE)
            draw.rounded_rectangle((x, y, x + WIDTH + 2 * GAP, y + height + 2 * GAP), ROUND, fill=CARD)
            page.paste(one, (x + GAP, y + GAP))
        y += height + 2 * GAP + PAGE
    return page


def card(one: Drawn) -> Image.Image:
    """The caption, the pick with the next best beside it, and what was rejected under them."""
    title, small = load_font(17), load_font(12)
    lines = wrapped(one.prompt, title, WIDTH - 2 * GAP, TITLE_LINES)
    top = TITLE_LINE * TITLE_LINES + GAP
    next_best = list(zip(one.pictures, one.scores, strict=True))[1 : 1 + NEXT_COUNT]
    rejected = list(zip(one.pictures, one.scores, strict=True))[1 + NEXT_COUNT :][-REJECTED_COUNT:]
    height = top + BEST + ROW + GAP + (REJECTED + ROW + GAP if rejected else 0)
    sheet = Image.new("RGB", (WIDTH, height), CARD)
    draw = ImageDraw.Draw(sheet)
    draw.multiline_text((GAP, 0), "\n".join(lines), fill=INK, font=title, spacing=4)

    _paste(sheet, one.pictures[0], (GAP, top), BEST)
    text = f"CLIP {one.scores[0]:.2f}"
    if len(one.pictures) > 1:
        text += f", the best of {len(one.pictures)}"
    draw.text((GAP, top + BEST + 3), text, fill=INK, font=small)
    for number, (picture, score) in enumerate(next_best):
        x, y = 2 * GAP + BEST, top + number * (NEXT + ROW + 2)
        _paste(sheet, picture, (x, y), NEXT)
        draw.text((x + NEXT // 2, y + NEXT + 1), f"{score:.2f}", fill=INK, font=small, anchor="ma")
    y = top + BEST + ROW + GAP
    if rejected:
        draw.text((WIDTH - GAP, y - ROW - GAP + 3), "rejected", fill=FAINT, font=small, anchor="ra")
    step = (WIDTH - 2 * GAP - REJECTED) / (REJECTED_COUNT - 1)
    for number, (picture, score) in enumerate(rejected):
        x = GAP + round(number * step)
        _paste(sheet, Image.blend(picture, Image.new("RGB", picture.size, CARD), FADE), (x, y), REJECTED)
        draw.text((x + REJECTED // 2, y + REJECTED + 2), f"{score:.2f}", fill=FAINT, font=small, anchor="ma")
    return sheet


def _paste(sheet: Image.Image, picture: Image.Image, place: tuple[int, int], side: int) -> None:
    """With round corners, which are drawn large and reduced so that they are smooth."""
    radius = ROUND * side // BEST + 2
    mask = Image.new("L", (4 * side, 4 * side))
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, 4 * side - 1, 4 * side - 1), 4 * radius, fill=255)
    kind = Image.Resampling.BICUBIC if side > picture.width else Image.Resampling.LANCZOS
    sheet.paste(picture.resize((side, side), kind), place, mask.resize((side, side), Image.Resampling.LANCZOS))
    box = (*place, place[0] + side - 1, place[1] + side - 1)
    ImageDraw.Draw(sheet).rounded_rectangle(box, radius, outline=EDGE)


def draw(argv: Sequence[str] | None) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where `dalle-mini generate` wrote: its --output")
    parser.add_argument("out", type=Path, help="the PNG to write")
    parser.add_argument("--prompts", nargs="+", metavar="PROMPT", help="show these (default: all that is there)")
    args = parser.parse_args(argv)
    if args.out.is_dir():
        raise UserError(f"{args.out}: is a folder: name the PNG to write")
    data = io.BytesIO()
    showcase(read(args.folder, args.prompts)).save(data, "PNG", optimize=True)
    write_whole(args.out, data.getvalue())
    console.answer(args.out)


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(lambda: draw(argv))


if __name__ == "__main__":
    sys.exit(main())

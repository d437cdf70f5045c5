"""A page of pictures over their captions, each framed by a verdict if there is one."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from dalle_mini.imaging.lettering import drawable, load_font

SIDE, FRAME, GAP, COLUMNS = 128, 6, 10, 10  # SIDE is the least side of a picture, pixels
FONT_SIZE, LINE, LINES, CHARACTERS = 13, 16, 3, 21
RIGHT, PARTLY, WRONG = "#1a9641", "#f0a000", "#d7191c"


@dataclass(frozen=True)
class Entry:
    """A picture, its caption, the colour of its frame (None: none), and a note in red."""

    picture: Image.Image
    caption: str
    frame: str | None = None
    note: str = ""


def contact_sheet(entries: Sequence[Entry], legend: Mapping[str, str] | None = None, lines: int = LINES) -> Image.Image:
    """The entries in rows under a legend of frame colours, meaning -> colour; captions are cut at `lines` lines."""
    legend = legend or {}
    factor = math.ceil(SIDE / entries[0].picture.width)
    side = entries[0].picture.width * factor
    columns = min(COLUMNS, len(entries))
    rows = math.ceil(len(entries) / columns)
    lines_below = lines * (1 + any(entry.note for entry in entries))
    width, height = side + 2 * FRAME + GAP, side + 2 * FRAME + lines_below * LINE + GAP
    font = load_font(FONT_SIZE)
    characters = CHARACTERS * side // SIDE
    head = 2 * LINE + GAP if legend else GAP
    sheet = Image.new("RGB", (max(columns * width + GAP, 3 * SIDE), rows * height + head), "white")
    draw = ImageDraw.Draw(sheet)
    x = GAP
    for text, color in legend.items():
        draw.rectangle((x, GAP, x + FONT_SIZE, GAP + FONT_SIZE), fill=color)
        draw.text((x + LINE + 3, GAP - 1), text, fill="black", font=font)
        x += int(font.getlength(text)) + 3 * LINE
    for index, entry in enumerate(entries):
        left, top = GAP + index % columns * width, head + index // columns * height
        # The white line within the frame tells a red frame from a red background.
        for inset, fill in ((0, entry.frame or "#dddddd"), (FRAME - 2, "white")):
            far = side + 2 * FRAME - 1 - inset
            draw.rectangle((left + inset, top + inset, left + far, top + far), fill=fill)
        enlarged = entry.picture.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
        sheet.paste(enlarged, (left + FRAME, top + FRAME))
        below = [(line, "black") for line in _wrap(entry.caption, characters, lines)]
        below += [(line, WRONG) for line in _wrap(entry.note, characters, lines)]
        for number, (line, ink) in enumerate(below):
            draw.text((left, top + side + 2 * FRAME + 2 + number * LINE), line, fill=ink, font=font)
    return sheet


def _wrap(text: str, characters: int, lines: int) -> list[str]:
    return textwrap.wrap(drawable(text), characters, max_lines=lines, placeholder=" ...")

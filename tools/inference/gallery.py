"""One picture of CLIP's picks for a list of prompts: what the README shows.

    python tools/inference/gallery.py docs/images/grid.png

Sixteen candidates a prompt, seed 0, nothing picked by hand.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from dalle_mini import DalleMini
from dalle_mini.commands.terminal import Parser
from dalle_mini.errors import UserError

PROMPTS = (
    "a red apple on a blue background",
    "a snail on a yellow background",
    "a rocket on a black background",
    "a panda on a pink background",
    "a tulip",
    "a small bus in the top left corner on an orange background",
    "a huge pizza on a green background",
    "a penguin on a light blue background",
    "a castle on a purple background",
    "a strawberry on a gray background",
    "a tiny dolphin at the bottom on a blue background",
    "a cactus on a brown background",
)
SIDE, GAP, COLUMNS, FONT_SIZE, LINE = 192, 12, 4, 14, 18


def gallery(pictures: list[Image.Image], captions: list[str]) -> Image.Image:
    """Pictures in rows of four, each above its caption."""
    font = ImageFont.load_default(FONT_SIZE)
    height = SIDE + 3 * LINE + GAP
    rows = -(-len(pictures) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (SIDE + GAP) + GAP, rows * height + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        x, y = GAP + number % COLUMNS * (SIDE + GAP), GAP + number // COLUMNS * height
        sheet.paste(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC), (x, y))
        words, lines = caption.split(), [""]
        for word in words:
            longer = f"{lines[-1]} {word}".strip()
            if font.getlength(longer) > SIDE:
                lines.append(word)
            else:
                lines[-1] = longer
        draw.multiline_text((x, y + SIDE + 2), "\n".join(lines), fill="black", font=font, spacing=2)
    return sheet


def check_writable(out: Path) -> Path:
    """The file to write first, beside `out`: tried, and the folder for it made. Raises UserError where that fails."""
    try:
        if out.is_dir():
            raise UserError(f"{out}: is a folder: name the PNG to write")
        beside = out.with_name(f"{out.name}.tmp")
        out.parent.mkdir(parents=True, exist_ok=True)
        beside.touch()
        beside.unlink()
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}): name another place") from None
    return beside


def draw(argv: Sequence[str] | None) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the PNG to write")
    parser.add_argument("prompts", nargs="*", default=PROMPTS, help="captions (default: the README's)")
    parser.add_argument("--model", help="a bundle (default: the shipped model)")
    args = parser.parse_args(argv)
    beside = check_writable(args.out)  # drawing takes a while
    results = DalleMini.from_pretrained(args.model).generate(list(args.prompts), candidates=16, keep=1)
    try:
        gallery([result.images[0] for result in results], list(args.prompts)).save(beside, format="PNG")
        os.replace(beside, args.out)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise UserError(f"{args.out}: cannot be written ({error.strerror})") from None
    print(args.out)


def main(argv: Sequence[str] | None = None) -> int:
    try:
        draw(argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

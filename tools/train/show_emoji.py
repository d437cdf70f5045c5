"""Draw a contact sheet of emoji scenes with their captions, to see what a model is trained on.

python tools/train/show_emoji.py scenes.png --count 48 --split heldout-pair
"""

import math
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path

from entry import parser, user_errors
from PIL import Image, ImageDraw, ImageFont

from dalle_mini.data.emoji_scenes import SPLITS, EmojiScenes, SceneExample
from dalle_mini.data.scene_emoji import scene_emoji
from dalle_mini.errors import UserError

SIDE, GAP, COLUMNS = 192, 12, 8  # SIDE: the least width of a column, pixels
FONT_SIZE, LINE, LINES = 13, 16, 4


def sheet(examples: Sequence[SceneExample], columns: int = COLUMNS) -> Image.Image:
    """The pictures in rows, each over its caption."""
    side = examples[0].image.shape[0] * math.ceil(SIDE / examples[0].image.shape[0])
    columns = min(columns, len(examples))
    width, height = side + GAP, side + LINES * LINE + GAP
    font = ImageFont.load_default(FONT_SIZE)
    page = Image.new("RGB", (columns * width + GAP, math.ceil(len(examples) / columns) * height + GAP), "#e8e8e8")
    ink = ImageDraw.Draw(page)
    for index, example in enumerate(examples):
        left, top = GAP + index % columns * width, GAP + index // columns * height
        page.paste(Image.fromarray(example.image).resize((side, side), Image.Resampling.NEAREST), (left, top))
        lines = textwrap.wrap(example.caption, int(side / FONT_SIZE * 1.9), max_lines=LINES, placeholder=" ...")
        for number, line in enumerate(lines):
            ink.text((left, top + side + 2 + number * LINE), line, fill="black", font=font)
    return page


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("out", type=Path, help="the picture's file, a PNG")
    options.add_argument("--count", type=int, default=48, help="(default: 48)")
    options.add_argument("--size", type=int, default=128, help="of the pictures, pixels (default: 128)")
    options.add_argument("--split", choices=SPLITS, default="train")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--people", action="store_true", help="with people in all genders and skin tones")
    with user_errors():
        args = options.parse_args()
        source = EmojiScenes(args.size, args.seed, args.count, scene_emoji(people=args.people), args.split)
        beside = args.out.with_name(f".partial.{os.getpid()}.{args.out.name}")
        try:
            sheet([source[index] for index in range(args.count)]).save(beside, format="PNG")
            beside.replace(args.out)
        except OSError as error:
            raise UserError(f"{args.out} cannot be written: {error}") from None
        finally:
            beside.unlink(missing_ok=True)
        print(args.out)

"""Draw a contact sheet of emoji scenes with their captions, to see what a model is trained on.

python tools/train/show_emoji.py scenes.png --count 50 --split heldout-pair
"""

from pathlib import Path

from entry import parser, user_errors
from PIL import Image

from dalle_mini.emoji.scenes import SPLITS, EmojiScenes
from dalle_mini.emoji.tidy import TidyScenes
from dalle_mini.emoji.vocabulary import scene_emoji
from dalle_mini.reports.contact_sheet import Entry, contact_sheet
from dalle_mini.runtime import console, files

if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("out", type=Path, help="the image's file, a PNG")
    options.add_argument("--count", type=int, default=50, help="(default: 50)")
    options.add_argument("--size", type=int, default=128, help="of the images, pixels (default: 128)")
    options.add_argument("--split", choices=SPLITS, default="train", help="(default: train)")
    options.add_argument("--seed", type=int, default=0, help="(default: 0)")
    options.add_argument("--people", action="store_true", help="with people in all genders and skin tones")
    options.add_argument("--tidy", action="store_true", help="as the shipped model learns them")
    with user_errors():
        args = options.parse_args()
        scenes = TidyScenes if args.tidy else EmojiScenes
        source = scenes(args.size, args.seed, args.count, scene_emoji(people=args.people), args.split)
        examples = (source[index] for index in range(args.count))
        sheet = contact_sheet([Entry(Image.fromarray(one.image), one.caption) for one in examples], lines=5)
        with files.blamed(args.out), files.writing_whole(args.out) as file:
            sheet.save(file, format="PNG")
        console.answer(args.out)

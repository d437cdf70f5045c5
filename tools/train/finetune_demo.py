"""Does fine-tuning work? Two hundred pictures of eight emoji that the shipped model does not know, before and after.

    python tools/train/finetune_demo.py pictures my-pictures
    dalle-mini train finetune-emoji --output runs/mine data.train=my-pictures
    python tools/train/finetune_demo.py compare runs/mine/final docs/images/finetune.png

The first line writes what anybody's folder looks like: `000.png` with its caption in `000.txt`. The last draws each
of the eight on a background on which the run has not seen it (`is_held_out`), and something that the model knew before.
Needs Debian's package fonts-noto-color-emoji.
"""

from pathlib import Path

from entry import parser, user_errors
from PIL import Image

from dalle_mini import DalleMini
from dalle_mini.emoji.art import PALETTE, is_held_out
from dalle_mini.emoji.scene_prompts import single_caption
from dalle_mini.emoji.tidy import TidyScenes
from dalle_mini.emoji.vocabulary import scene_emoji
from dalle_mini.reports.contact_sheet import Entry, contact_sheet
from dalle_mini.runtime import console, files

NEW = "🎄🦛🪞🏮🛡🥖💖🪚"  # each has a background on which training does not show it
KNOWN = ("a snail on a yellow background", "a cake on top of a piano")
COUNT, SIZE, SEED, CANDIDATES = 200, 128, 11, 8


def new_emoji():
    return [emoji for emoji in scene_emoji() if emoji.characters.replace("\ufe0f", "") in NEW]


def write_pictures(out: Path) -> None:
    """Raises UserError where the folder cannot be written."""
    source = TidyScenes(SIZE, SEED, COUNT, new_emoji(), "train")
    with files.blamed(out):
        for index in range(COUNT):
            example = source[index]
            with files.writing_whole(out / f"{index:03d}.png", sync=False) as file:
                Image.fromarray(example.image).save(file, format="PNG")
            files.write_whole(out / f"{index:03d}.txt", example.caption + "\n", sync=False)
    console.answer(f"{COUNT} images with captions are in {out}")


def compare(model: str, out: Path) -> None:
    """CLIP's pick of the shipped model and of `model`, below one another for each prompt."""
    prompts = [single_caption(emoji, unseen(emoji)) for emoji in new_emoji()] + list(KNOWN)
    entries = []
    for name, source in (("before", None), ("after", model)):
        pipe = DalleMini.from_pretrained(source, vqgan=source and "shipped", clip=source and "shipped")
        for result in pipe.generate(prompts, candidates=CANDIDATES, keep=1):
            entries.append(Entry(result.images[0], f"{name}: {result.prompt}"))
    with files.blamed(out), files.writing_whole(out) as file:
        contact_sheet(entries).save(file, format="PNG")
    console.answer(out)


def unseen(emoji) -> str:
    """The first background on which the run has not seen an emoji."""
    return next(color for color in PALETTE if is_held_out(emoji, color))


if __name__ == "__main__":
    options = parser(__doc__)
    verbs = options.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("pictures", help="write the captioned images")
    verb.add_argument("out", type=Path, help="the folder to write")
    verb = verbs.add_parser("compare", help="draw with both models")
    verb.add_argument("model", help="the fine-tuned DalleBart's folder")
    verb.add_argument("out", type=Path, help="the image's file, a PNG")
    with user_errors():
        args = options.parse_args()
        if args.verb == "pictures":
            write_pictures(args.out)
        else:
            compare(args.model, args.out)

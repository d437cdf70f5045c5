"""Encode emoji scenes into token shards with a trained VQGAN.

    python tools/train/encode_emoji.py runs/emoji/vqgan/final runs/emoji/tokens --split train --rows 32000

Run it again to continue after a kill.
"""

import time

from entry import Pictures, World, parser, user_errors
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dalle_mini.data.encode import EncodeOptions, Weights, encode
from dalle_mini.emoji.source import UNFILTERED, EmojiSource
from dalle_mini.emoji.styled import STYLED_SPLITS
from dalle_mini.runtime import console

if __name__ == "__main__":
    options = parser(__doc__, world=True)
    options.add_argument("vqgan", help="the VQGAN's folder")
    options.add_argument("out", help="the folder of the shards")
    options.add_argument("--split", choices=STYLED_SPLITS, default="train")
    options.add_argument("--rows", type=int, default=32_000, help="(default: 32000)")
    options.add_argument("--seed", type=int, default=0)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with user_errors():
        args = options.parse_args()
        pictures, started = Pictures(args.split, args.seed, World.load(args.world)), time.monotonic()
        source = EmojiSource(pictures.source(), args.rows, pictures.origin())
        # Nothing is filtered, and no picture is for validation: the held-out split is a folder of its own.
        everything = EncodeOptions(UNFILTERED, validation=0.0)
        with Progress(*columns) as progress:
            task = progress.add_task(f"encode {args.split}", total=args.rows)

            def show(stage: str, now) -> None:
                if stage == "encode":
                    progress.update(task, completed=now.images)

            encode(source, Weights(args.vqgan), args.out, everything, progress=show)
        console.answer(f"{args.out}: {args.rows} pictures in {time.monotonic() - started:.0f} s")

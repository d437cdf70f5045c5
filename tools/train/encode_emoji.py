"""Encode emoji pictures into token shards with a trained VQGAN.

    python tools/train/encode_emoji.py runs/emoji/vqgan/final runs/emoji/tokens --split train --rows 40000

Run it again to continue after a kill.
"""

import time

from entry import Pictures, parser, user_errors
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dalle_mini.data.encode import encode
from dalle_mini.models import VQGAN

if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("vqgan", help="the VQGAN's folder")
    options.add_argument("out", help="the folder of the shards")
    options.add_argument("--split", choices=("train", "heldout"), default="train")
    options.add_argument("--rows", type=int, default=40_000, help="(default: 40000)")
    options.add_argument("--seed", type=int, default=0)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with user_errors():
        args = options.parse_args()
        pictures, started = Pictures(args.split, args.seed), time.monotonic()
        with Progress(*columns) as progress:
            task = progress.add_task(f"encode {args.split}", total=args.rows)
            encode(
                pictures.source(),
                VQGAN.from_pretrained(args.vqgan),
                args.out,
                args.rows,
                origin=pictures.origin(),
                progress=lambda done, total: progress.update(task, completed=done),
            )
        print(f"{args.out}: {args.rows} pictures in {time.monotonic() - started:.0f} s")

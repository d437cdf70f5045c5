"""Encode emoji pictures into token shards with a trained VQGAN.

    python tools/train/encode_emoji.py runs/emoji/vqgan/final runs/emoji/tokens --split train --rows 30000

Run it again to continue after a kill.
"""

import argparse
import time

from entry import pictures, user_errors
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dalle_mini.data.encode import encode
from dalle_mini.models import VQGAN

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vqgan", help="the VQGAN's folder")
    parser.add_argument("out", help="the folder of the shards")
    parser.add_argument("--split", choices=("train", "heldout"), default="train")
    parser.add_argument("--rows", type=int, default=30_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with user_errors(), Progress(*columns) as progress:
        task, started = progress.add_task(f"encode {args.split}", total=args.rows), time.monotonic()
        encode(
            pictures(args.split, args.seed),
            VQGAN.from_pretrained(args.vqgan),
            args.out,
            args.rows,
            progress=lambda done, total: progress.update(task, completed=done),
        )
    print(f"{args.out}: {args.rows} pictures in {time.monotonic() - started:.0f} s")

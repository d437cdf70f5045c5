"""Draw every prompt of a file, and make one sheet of the pictures that CLIP likes best.

    python tools/inference/batch.py captions.csv drawn --candidates 8 --best 20

The first half is what `dalle-mini generate --prompts captions.csv --output drawn` does: run it again after an
interruption, and it draws what is missing. The second reads the table that it leaves; put your own there.
"""

import argparse
import sys
from pathlib import Path

import pyarrow.parquet
from PIL import Image

from dalle_mini import DalleMini
from dalle_mini.commands.terminal import Parser, exit_code
from dalle_mini.errors import UserError
from dalle_mini.imaging.decoding import load_image
from dalle_mini.reports.contact_sheet import Entry, contact_sheet
from dalle_mini.results.batch import Batch
from dalle_mini.results.prompts import read_prompts
from dalle_mini.runtime import console, files
from dalle_mini.runtime.compilation import keep_compiled
from dalle_mini.settings import GenerationSettings

SHEET = "best.png"


def draw(args: argparse.Namespace) -> Path:
    """The batch; its table."""
    batch = Batch(read_prompts(args.prompts), args.output, GenerationSettings(args.candidates, keep=1, seed=args.seed))
    keep_compiled()
    pipe = DalleMini.from_pretrained(args.model, vqgan=args.vqgan, clip=args.clip)

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "scores" and done:
            console.answer(f"{done} of {total} images")

    done = batch.run(pipe, progress=progress)
    console.answer(f"{done.drawn} drawn, {done.found} were there, {done.failed} failed: {done.table}")
    return done.table


def best(table: Path, count: int) -> Image.Image:
    """The images with the highest scores, under their captions."""
    rows = [row for row in pyarrow.parquet.read_table(table).to_pylist() if row["error"] is None]
    rows = sorted(rows, key=lambda row: -row["score"])[:count]
    if not rows:
        raise UserError(f"{table}: no prompt could be drawn; its column `error` says why")
    pictures = [load_image(table.parent / row["file"]) for row in rows]
    captions = [f"{row['prompt']} ({row['score']:.1f})" for row in rows]
    return contact_sheet([Entry(*one) for one in zip(pictures, captions, strict=True)])


def main(argv: list[str] | None = None) -> int:
    head, _, rest = __doc__.partition("\n")
    parser = Parser(description=head, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", metavar="FILE", type=Path, help=".txt, .jsonl, .csv, .tsv or .parquet")
    parser.add_argument("output", metavar="FOLDER", type=Path)
    parser.add_argument("--candidates", type=int, default=16, help="images drawn for each prompt (default: 16)")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument("--best", type=int, default=12, help=f"images on {SHEET} (default: 12)")
    parser.add_argument("--model", metavar="SOURCE", help="(default: the shipped model)")
    parser.add_argument("--vqgan", metavar="SOURCE", help="(default: the bundle's)")
    parser.add_argument("--clip", metavar="SOURCE", help="(default: the bundle's)")

    def run() -> None:
        args = parser.parse_args(argv)
        sheet = best(draw(args), args.best)
        with files.blamed(args.output / SHEET), files.writing_whole(args.output / SHEET) as file:
            sheet.save(file, format="PNG")
        console.answer(args.output / SHEET)

    return exit_code(run)


if __name__ == "__main__":
    sys.exit(main())

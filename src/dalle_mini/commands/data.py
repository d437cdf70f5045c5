"""`dalle-mini data`: looking at encoded pictures."""

import argparse
from pathlib import Path

from dalle_mini.commands.sources import add_hub_options, hub_options
from dalle_mini.commands.terminal import Help, notices, progress_bars, starting
from dalle_mini.runtime import console
from dalle_mini.runtime.paths import expanded


def add_data(verbs) -> None:
    parser = verbs.add_parser(
        "data",
        help="inspect an encoded dataset",
        description="Inspect what `dalle-mini encode` wrote.",
        epilog="example:\n  dalle-mini data report encoded",
        formatter_class=Help,
    )
    _add_report(parser.add_subparsers(metavar="VERB", required=True, title="verbs"))


def _add_report(verbs) -> None:
    parser = verbs.add_parser(
        "report",
        help="write a page about an encoded folder: counts, plots, images with their captions",
        description="Write one self-contained HTML page about an encoded folder: what was dropped and why, the\n"
        "lengths of captions, aspect ratios, codebook use, and random and worst rows with their decoded images.",
        epilog="example:\n  dalle-mini data report encoded --output encoded.html",
        formatter_class=Help,
    )
    add = parser.add_argument
    add("folder", metavar="OUT", type=_path, help="the folder that encode wrote")
    add("--output", metavar="FILE", type=_path, help="the page to write (default: report.html in OUT)")
    add(
        "--vqgan",
        metavar="SOURCE",
        type=expanded,
        help="the VQGAN's folder or repository (default: the one that OUT names)",
    )
    add("--rows", metavar="N", type=int, default=24, help="number of random rows to show")
    add("--seed", metavar="N", type=int, default=0, help="seed that chooses the rows")
    add_hub_options(add, "VQGAN")
    parser.set_defaults(run=run_report, extra="data")


def _path(text: str) -> Path:
    return Path(expanded(text))


def run_report(args: argparse.Namespace) -> None:
    with notices():
        with starting():
            from dalle_mini.reports.data_report import write_report

        with progress_bars() as progress:
            options = {"vqgan": args.vqgan, "rows": args.rows, "seed": args.seed, **hub_options(args)}
            path = write_report(args.folder, args.output, progress=progress, **options)
    console.answer(path)

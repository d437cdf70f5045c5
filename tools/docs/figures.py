"""Make the tables of the docs that quote the shipped model again: one folder, a file for each command.

    python tools/docs/figures.py                          # or `make figures`; hours
    python tools/docs/figures.py --only cores passes --output build/figures
    python tools/docs/figures.py --list

Each file begins with the command, the processor, the release of jax and the commit. A file that is there is kept, so a
run that was ended goes on; delete a file to make it again. Nothing else should run beside it. Left out is
`benchmarks/generation.py`, which draws with random weights: another edition does not change its tables.
"""

import argparse
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from dalle_mini.commands.terminal import Parser, exit_code
from dalle_mini.errors import UserError
from dalle_mini.runtime import console, files
from dalle_mini.runtime.processor import processor
from shell_lines import ROOT


@dataclass(frozen=True)
class Figure:
    """A table: its name, the page of docs/ that has it, and the words after "python" that make it."""

    name: str
    page: str
    command: tuple[str, ...]


def _figure(name: str, page: str, command: str) -> Figure:
    return Figure(name, page, tuple(command.split()))


FIGURES = (
    _figure("quality", "shipped-model.md", "benchmarks/styled_quality.py --output runs/figures/quality"),
    _figure("company", "generation.md", "benchmarks/company.py --captions 5 --guidance 3"),
    _figure("cores", "generation.md", "benchmarks/cores.py"),
    _figure("passes", "generation.md", "benchmarks/passes.py"),
    _figure("passes-hot", "generation.md", "benchmarks/passes.py --captions 8 --temperature 1.5"),
    _figure("passes-guided", "generation.md", "benchmarks/passes.py --captions 8 --guidance 3 10"),
    _figure("passes-several", "generation.md", "benchmarks/passes.py --captions 6 --candidates 2 4 8"),
    _figure("passes-bfloat16", "generation.md", "benchmarks/passes.py --captions 10 --candidates 1 8 --dtype bfloat16"),
    _figure("passes-int8", "generation.md", "benchmarks/passes.py --captions 10 --candidates 1 8 --dtype int8"),
    _figure("dtypes", "generation.md", "benchmarks/dtype_error.py"),
    _figure("cold-start", "generation.md", "benchmarks/cold_start.py"),
    _figure("order", "shipped-model.md", "benchmarks/caption_order.py --prompts 180"),
    _figure("encode", "data.md", "benchmarks/encode.py --pictures 4096"),
)
NAMES = [one.name for one in FIGURES]


def main(argv: list[str] | None = None) -> int:
    return exit_code(lambda: make_all(parse(argv)))


def parse(argv: list[str] | None) -> argparse.Namespace:
    head, _, rest = __doc__.partition("\n")
    parser = Parser(description=head, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="NAME", nargs="+", choices=NAMES, default=NAMES, help=", ".join(NAMES))
    parser.add_argument("--output", metavar="FOLDER", type=Path, default=Path("figures"), help="(default: figures)")
    parser.add_argument("--list", action="store_true", help="print the commands, and run none")
    return parser.parse_args(argv)


def make_all(args: argparse.Namespace) -> None:
    chosen = [one for one in FIGURES if one.name in args.only]
    if args.list:
        console.answer(*(f"{one.name}: docs/{one.page}: python {' '.join(one.command)}" for one in chosen))
        return
    failed = []
    for number, one in enumerate(chosen, 1):
        path = args.output / f"{one.name}.txt"
        if path.is_file():
            continue
        console.say(f"[{number}/{len(chosen)}] python {' '.join(one.command)}")
        done = subprocess.run([sys.executable, *one.command], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            failed.append(one.name)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_whole(path, heading(one) + done.stdout)
    if failed:
        raise UserError(f"{args.output}: not made: {', '.join(failed)}; mend it, then run this again")
    console.answer(f"{args.output}: {len(chosen)} files")


def heading(figure: Figure) -> str:
    """The circumstances of the figures, and the page that they are for."""
    told = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    lines = (
        f"python {' '.join(figure.command)}",
        f"docs/{figure.page}",
        f"processor: {processor()}",
        f"jax {version('jax')}, commit {told.stdout.strip() or 'unknown'}",
    )
    return "\n".join([*lines, "", ""])


if __name__ == "__main__":
    sys.exit(main())

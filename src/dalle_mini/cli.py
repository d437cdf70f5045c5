"""The `dalle-mini` command. Every verb is a parser and a function that calls the library; no logic lives here.

Exit codes: 0 done, 2 the user's input is wrong (one line on stderr that starts with `error:`), 130 interrupted, 1
anything else. Nothing heavy is imported before a verb runs, so that `--help` answers at once.
"""

import argparse
import contextlib
import logging
import sys
from collections.abc import Callable, Iterator, Sequence

from dalle_mini import __version__
from dalle_mini.errors import UserError
from dalle_mini.settings import GenerationSettings, check_prompts

DTYPES = ("float32", "bfloat16", "float16")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with `argv` (default: the process's arguments) and return its exit code."""
    try:
        args = build_parser().parse_args(argv)
        return args.run(args) or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="dalle-mini",
        description="Draw pictures from captions with DALL·E mini in JAX.",
        epilog='example:\n  dalle-mini generate "a red apple on a blue background"',
        formatter_class=_Help,
    )
    parser.add_argument("--version", action="version", version=f"dalle-mini {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True, title="verbs", description="VERB --help tells more")
    add_generate(verbs)
    return parser


def add_generate(verbs) -> None:
    parser = verbs.add_parser(
        "generate",
        help="draw pictures from captions and keep the best",
        description="Draw some candidates for each prompt, rank them with CLIP and keep the best. Each prompt\n"
        "gets a folder in OUTPUT with the pictures, a captioned grid.png and a results.json. The same seed\n"
        "gives the same pictures, whatever the other prompts and the number of candidates.",
        epilog="example:\n"
        '  dalle-mini generate "a red apple on a blue background" "a small snail" --candidates 16 --keep 4 --seed 7',
        formatter_class=_Help,
    )
    defaults = GenerationSettings()
    add = parser.add_argument
    add("prompts", nargs="+", metavar="PROMPT", help="a caption, in quotes")
    add("--candidates", metavar="N", type=int, default=defaults.candidates, help="pictures drawn for each prompt")
    add("--keep", metavar="N", type=int, help="pictures kept for each prompt (default: 4, or all of fewer)")
    add("--seed", metavar="N", type=int, default=defaults.seed, help="0 to 4294967295")
    add(
        "--guidance",
        metavar="X",
        type=float,
        help="higher follows the caption more, 1 is off (default: the model's, usually 10)",
    )
    add("--temperature", metavar="X", type=float, default=defaults.temperature, help="below 1 is safer, above 1 wilder")
    add("--top-k", metavar="K", type=int, help="sample from the K likeliest tokens (default: the model's, usually 50)")
    add(
        "--top-p",
        metavar="P",
        type=float,
        help="sample from the likeliest tokens of total probability P (default: off)",
    )
    add(
        "--model", metavar="FOLDER", help="a bundle of three models, or DalleBart's folder (default: the shipped model)"
    )
    add("--vqgan", metavar="FOLDER", help="VQGAN's folder (default: the bundle's)")
    add("--clip", metavar="FOLDER", help="CLIP's folder (default: the bundle's)")
    add("--dtype", choices=DTYPES, default="float32", help="type of the computation")
    add("--output", metavar="FOLDER", default="pictures", help="where the prompts' folders go")
    add("--overwrite", action="store_true", help="replace a prompt's earlier folder (default: number the new one)")
    parser.set_defaults(run=run_generate)


def run_generate(args: argparse.Namespace) -> None:
    prompts = check_prompts(args.prompts)
    settings = GenerationSettings(
        candidates=args.candidates,
        keep=args.keep,
        seed=args.seed,
        guidance=args.guidance,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
    )
    from dalle_mini.output import check_writable, write_result

    output = check_writable(args.output)
    with _progress() as progress:
        from dalle_mini.pipeline import DalleMini

        pipe = DalleMini.from_pretrained(args.model, vqgan=args.vqgan, clip=args.clip, dtype=args.dtype)
        written = set()
        for result in pipe.stream(prompts, settings, progress=progress):
            folder = write_result(result, output, pipe.provenance(), args.overwrite, written)
            seconds = sum(result.timings.values())
            print(f"{folder}  best score {result.scores[0]:.2f}  {seconds:.1f} s", flush=True)
    print(f"pictures of {len(prompts)} prompt{'s' * (len(prompts) > 1)} are in {output.resolve()}")


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar a stage on stderr where that is a terminal, and the library's notices as `note:` lines."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("note: %(message)s"))
    logger = logging.getLogger("dalle_mini")
    console = Console(stderr=True, soft_wrap=True)  # a path that is broken over two lines cannot be copied
    columns = (TextColumn("{task.description:<8}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bars = Progress(
        *columns,
        console=console,
        disable=not console.is_terminal,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),  # rich would send piped output to the terminal
    )
    with bars:
        # Made within the bars' life: rich has replaced stderr by then, and lines appear above the bars.
        handler.setStream(sys.stderr)
        logger.addHandler(handler)
        tasks = {}
        waiting = bars.add_task("loading", total=None)

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                bars.update(waiting, visible=False)
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done)

        try:
            yield show
        finally:
            logger.removeHandler(handler)


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults beside every option that has one, and descriptions and examples as they are typed."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False or "(default" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line, like every other mistake's."""

    def error(self, message: str):
        raise UserError(f"{message} (see {self.prog} --help)")


if __name__ == "__main__":
    sys.exit(main())

"""The `dalle-mini` command. Every verb is a parser and a function that calls the library; no logic lives here.

Exit codes: 0 done, 2 the user's input is wrong (one line on stderr that starts with `error:`), 130 interrupted, 1
anything else. Nothing heavy is imported before a verb runs, so that `--help` answers at once.
"""

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
import threading
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
    add_convert(verbs)
    add_info(verbs)
    return parser


def add_generate(verbs) -> None:
    parser = verbs.add_parser(
        "generate",
        help="draw pictures from captions and keep the best",
        description="Draw some candidates for each prompt, rank them with CLIP and keep the best. Each prompt\n"
        "gets a folder in OUTPUT with the pictures, a captioned grid.png and a results.json. The same seed\n"
        "gives the same pictures, whatever the other prompts and the number of candidates.",
        epilog="example:\n"
        '  dalle-mini generate "a red apple on a blue background" "a small snail" --candidates 16 --keep 4 --seed 7\n'
        "with the published model, from Hugging Face (private repositories want HF_TOKEN in the environment):\n"
        '  dalle-mini generate "an avocado armchair" --model dalle-mini/dalle-mini \\\n'
        "      --vqgan dalle-mini/vqgan_imagenet_f16_16384 --clip openai/clip-vit-base-patch32",
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
    add(
        "--temperature",
        metavar="X",
        type=float,
        help="below 1 is safer, above 1 wilder (default: the model's, usually 1)",
    )
    add("--top-k", metavar="K", type=int, help="sample from the K likeliest tokens (default: the model's, usually 50)")
    add(
        "--top-p",
        metavar="P",
        type=float,
        help="sample from the likeliest tokens of total probability P (default: off)",
    )
    add(
        "--model",
        metavar="SOURCE",
        help="a bundle of three models, or DalleBart alone: a folder, a Hugging Face repository (owner/name, "
        "owner/name@revision) or a wandb artifact (default: the shipped model)",
    )
    add("--vqgan", metavar="SOURCE", help="VQGAN's source (default: the bundle's)")
    add("--clip", metavar="SOURCE", help="CLIP's source (default: the bundle's)")
    add_hub_options(add, "--model")
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
    with _starting():
        from dalle_mini.output import check_writable, write_result
        from dalle_mini.weights.bundle import find_parts

    output = check_writable(args.output)
    with _notices():
        # Before the bars: downloads show those of the Hub's client.
        parts = find_parts(args.model, args.vqgan, args.clip, **hub_options(args))
        with _progress() as progress:
            with _starting():
                from dalle_mini.pipeline import DalleMini

            pipe = DalleMini.from_parts(parts, dtype=args.dtype)
            written = set()
            for result in pipe.generate_each(prompts, settings, progress=progress):
                folder = write_result(result, output, pipe.provenance(), args.overwrite, written)
                seconds = sum(result.timings.values())
                print(f"{folder}  best score {result.scores[0]:.2f}  {seconds:.1f} s", flush=True)
    print(f"pictures of {len(prompts)} prompt{'s' * (len(prompts) > 1)} are in {output.resolve()}")


def add_convert(verbs) -> None:
    parser = verbs.add_parser(
        "convert",
        help="turn published weights into our folder, or into a bundle",
        description="Write DalleBart, VQGAN or CLIP as config.json and model.safetensors, whatever they came as:\n"
        "Flax msgpack, torch, taming-transformers' .ckpt with its .yaml, sharded or not, from a folder, Hugging\n"
        "Face or wandb. With --vqgan and --clip the result is a bundle of all three, with tokenizers and word\n"
        "list, that `generate --model` takes. One tensor at a time is in memory.",
        epilog="example:\n"
        "  dalle-mini convert dalle-mini/dalle-mini mini --vqgan dalle-mini/vqgan_imagenet_f16_16384 \\\n"
        "      --clip openai/clip-vit-base-patch32 --dtype float16",
        formatter_class=_Help,
    )
    add = parser.add_argument
    add("source", metavar="SOURCE", help="a network or a bundle: a folder, a .ckpt, owner/name, or a wandb artifact")
    add("target", metavar="TARGET", help="the folder to make; it must not be there yet")
    add("--vqgan", metavar="SOURCE", help="VQGAN's source, for a bundle")
    add("--clip", metavar="SOURCE", help="CLIP's source, for a bundle")
    add("--dtype", choices=DTYPES, help="type to store in (default: as stored in SOURCE)")
    add_hub_options(add, "SOURCE")
    parser.set_defaults(run=run_convert)


def run_convert(args: argparse.Namespace) -> None:
    with _notices():
        with _starting():
            from dalle_mini.weights.convert import convert

        options = hub_options(args)
        for folder in convert(args.source, args.target, args.vqgan, args.clip, dtype=args.dtype, **options):
            print(folder)


def add_info(verbs) -> None:
    parser = verbs.add_parser(
        "info",
        help="tell what weights are: architecture, sizes, and what is missing",
        description="Print architecture, parameter counts, stored types, tokens and file sizes of a network or a\n"
        "bundle, and what is missing. Only configs and headers are read.",
        epilog="example:\n  dalle-mini info mini",
        formatter_class=_Help,
    )
    add = parser.add_argument
    add("source", metavar="PATH", nargs="?", help="as of convert (default: the shipped model)")
    add("--json", action="store_true", help="print JSON")
    add_hub_options(add, "PATH")
    parser.set_defaults(run=run_info)


def run_info(args: argparse.Namespace) -> None:
    with _notices():
        with _starting():
            from dalle_mini.weights.describe import describe

        described = describe(args.source, **hub_options(args))
    if args.json:
        print(json.dumps([one.to_dict() for one in described]))
    else:
        print(*described, sep="\n")


def add_hub_options(add: Callable, source: str) -> None:
    add("--revision", metavar="NAME", help=f"branch, tag or commit of {source}'s repository (default: main)")
    add("--cache-dir", metavar="FOLDER", help="where downloads are kept (default: Hugging Face's cache)")
    add("--offline", action="store_true", help="use what is on this machine and make no request")


def hub_options(args: argparse.Namespace) -> dict:
    return {"revision": args.revision, "cache_dir": args.cache_dir, "local_files_only": args.offline}


@contextlib.contextmanager
def _starting() -> Iterator[None]:
    """Around imports: Ctrl-C ends the command on the spot.

    An exception raised amid an import may be swallowed by it, or leave a traceback; nothing is written yet that
    would have to be tidied away.
    """

    def stop(*_) -> None:
        os.write(2, b"\x1b[?25hinterrupted\n" if os.isatty(2) else b"interrupted\n")  # a bar has hidden the cursor
        os._exit(130)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, earlier)


class _Notes(logging.Handler):
    """Prints what the library logs, on whatever stderr is at the time: rich replaces it while bars are shown."""

    def emit(self, record: logging.LogRecord) -> None:
        print(f"note: {self.format(record)}", file=sys.stderr)


@contextlib.contextmanager
def _notices() -> Iterator[None]:
    """The library's notices as `note:` lines."""
    handler, logger = _Notes(), logging.getLogger("dalle_mini")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar a stage on stderr where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

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
        tasks = {}
        waiting = bars.add_task("loading", total=None)

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                bars.update(waiting, visible=False)
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done)

        yield show


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

"""The `dalle-mini` command. Every verb is a parser and a function that calls the library; no logic lives here.

Exit codes: 0 done, 2 the user's input is wrong (one line on stderr that starts with `error:`), 130 interrupted, 75
asked to stop (a training run can be continued), 143 and 129 asked to stop by SIGTERM and SIGHUP (other verbs), 1
anything else. Nothing heavy is imported before a verb runs, so that `--help` answers at once.
"""

import argparse
import contextlib
import gc
import sys
from collections.abc import Sequence

from dalle_mini.runtime.huge_pages import start_again_with_huge_pages
from dalle_mini.runtime.libtpu import quiet_libtpu
from dalle_mini.training.run.preemption import held_back
from dalle_mini.version import __version__

COMPUTING = ("generate", "serve", "encode", "train")  # the verbs that run networks
# Objects that Python makes until it looks for garbage. Imports and tracing make many that stay: by Python's own 700 the
# search takes a twentieth of the time that `generate` takes from the command to the images.
GARBAGE_AFTER = 50_000


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with `argv` (default: the process's arguments) and return its exit code."""
    until_heard = contextlib.ExitStack()
    until_heard.enter_context(held_back())
    if argv is None:
        if sys.argv[1:2] and sys.argv[1] in COMPUTING:
            start_again_with_huge_pages()  # ahead of the imports, which would be made twice
        gc.set_threshold(GARBAGE_AFTER, *gc.get_threshold()[1:])
    from dalle_mini.commands.terminal import exit_code, needing

    def run() -> int | None:
        with contextlib.ExitStack() as meanwhile:
            with until_heard:
                args = build_parser().parse_args(argv)
                quiet_libtpu()
                meanwhile.enter_context(args.meanwhile())
            if argv is None:
                meanwhile.pop_all()  # a process of its own listens to its last moment
            with needing(args.extra):
                return args.run(args)

    return exit_code(run)


def build_parser() -> argparse.ArgumentParser:
    from dalle_mini.commands.completion import add_completion
    from dalle_mini.commands.data import add_data
    from dalle_mini.commands.doctor import add_doctor
    from dalle_mini.commands.encode import add_encode
    from dalle_mini.commands.generate import add_generate
    from dalle_mini.commands.plan import add_plan
    from dalle_mini.commands.serve import add_serve
    from dalle_mini.commands.terminal import Help, Parser
    from dalle_mini.commands.train import add_train
    from dalle_mini.commands.weights import add_convert, add_info

    parser = Parser(
        prog="dalle-mini",
        description="Draw images from captions with DALL·E mini in JAX.",
        epilog='example:\n  dalle-mini generate "a red apple on a blue background"',
        formatter_class=Help,
    )
    parser.add_argument("--version", action="version", version=f"dalle-mini {__version__}")
    # `meanwhile()`: the context that the verb runs in; `extra`: what it may need.
    parser.set_defaults(meanwhile=contextlib.nullcontext, extra="train")
    verbs = parser.add_subparsers(
        metavar="VERB", required=True, title="verbs", description="dalle-mini VERB --help lists the options of a verb"
    )
    add_generate(verbs)
    add_encode(verbs)
    add_data(verbs)
    add_train(verbs)
    add_serve(verbs)
    add_plan(verbs)
    add_convert(verbs)
    add_info(verbs)
    add_doctor(verbs)
    add_completion(verbs, parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())

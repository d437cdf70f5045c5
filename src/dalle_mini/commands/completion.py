"""`dalle-mini completion`: verbs, options and files at the press of Tab, as the parser has them."""

import argparse
import functools

from dalle_mini.commands.terminal import Help
from dalle_mini.errors import UserError
from dalle_mini.runtime import console
from dalle_mini.runtime.installing import install_line

SHELLS = ("bash", "zsh", "fish")
FILES = ("FILE", "FOLDER", "CONFIG", "SOURCE", "OUT", "TARGET", "PATH")  # what stands for a file or a folder in a help


def add_completion(verbs, whole: argparse.ArgumentParser) -> None:
    parser = verbs.add_parser(
        "completion",
        help="print a script that completes verbs, options and files in a shell",
        description="Print a script with which a shell completes the verbs, options and files of this command.",
        epilog="examples: a line for ~/.bashrc, a line for ~/.zshrc after compinit, and a file for fish:\n"
        '  eval "$(dalle-mini completion bash)"\n'
        '  eval "$(dalle-mini completion zsh)"\n'
        "  dalle-mini completion fish > ~/.config/fish/completions/dalle-mini.fish",
        formatter_class=Help,
    )
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help=", ".join(SHELLS))
    parser.set_defaults(run=functools.partial(run_completion, whole))


def run_completion(whole: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    try:
        import shtab
    except ImportError:
        raise UserError(f"the Python package shtab is not installed: {install_line()}") from None
    _mark_files(whole, shtab.FILE)
    console.answer(*shtab.complete(whole, args.shell).splitlines(), limit=None)


def _mark_files(parser: argparse.ArgumentParser, files: object) -> None:
    """Tell shtab which arguments name files: it looks for `complete` of an action."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                _mark_files(inner, files)
        elif action.metavar in FILES:
            action.complete = files  # type: ignore[attr-defined]

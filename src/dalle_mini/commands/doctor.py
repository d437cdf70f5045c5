"""`dalle-mini doctor`: what this machine and this installation are."""

import argparse

from dalle_mini.commands.terminal import Help
from dalle_mini.runtime import console


def add_doctor(verbs) -> None:
    parser = verbs.add_parser(
        "doctor",
        help="tell devices, versions, caches, and what is not installed, for an issue",
        description="Print devices, versions, caches with their sizes, and the extras that are missing with the line\n"
        "that installs each, as markdown to paste into an issue. Nothing is sent anywhere.",
        epilog="example:\n  dalle-mini doctor > doctor.md",
        formatter_class=Help,
    )
    parser.set_defaults(run=run_doctor)


def run_doctor(args: argparse.Namespace) -> None:
    from dalle_mini.runtime.doctor import report

    for line in report():
        console.answer(line)

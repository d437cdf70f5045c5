"""`dalle-mini doctor`: what this machine and this installation are."""

import argparse

from dalle_mini.commands.terminal import Help
from dalle_mini.runtime import console


def add_doctor(verbs) -> None:
    parser = verbs.add_parser(
        "doctor",
        help="print devices, versions, caches and missing extras, to paste into an issue",
        description="Print the devices, the versions, the sizes of the caches, and the command that installs each\n"
        "missing extra, as markdown to paste into an issue. Nothing is sent anywhere.",
        epilog="example:\n  dalle-mini doctor > doctor.md",
        formatter_class=Help,
    )
    parser.set_defaults(run=run_doctor)


def run_doctor(args: argparse.Namespace) -> None:
    from dalle_mini.runtime.doctor import report

    for line in report():
        console.answer(line)

"""The options that the benchmarks of the shipped model's pictures share, and the settings that they make."""

from __future__ import annotations

import argparse

from dalle_mini.commands.terminal import Parser
from dalle_mini.settings import GenerationSettings


def quality_parser(description: str, output: str) -> Parser:
    """A parser with the options of both; `output` is the default of --output."""
    head, _, rest = description.partition("\n")
    parser = Parser(description=head, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", metavar="FOLDER", help="a bundle (default: the shipped model)")
    add("--baseline", metavar="FOLDER", help="another bundle, asked for the same pictures")
    add("--candidates", metavar="N", type=int, default=16, help="pictures drawn for each prompt (default: 16)")
    add("--seed", metavar="N", type=int, default=0, help="of the choice of prompts and of the pictures (default: 0)")
    add("--guidance", metavar="X", type=float, help="(default: the model's)")
    add("--temperature", metavar="X", type=float, help="(default: the model's)")
    add("--top-k", metavar="K", type=int, help="(default: the model's)")
    add("--top-p", metavar="P", type=float, help="(default: off)")
    add("--output", metavar="FOLDER", default=output, help=f"(default: {output})")
    add("--json", action="store_true", help="end with one line of JSON")
    return parser


def generation_settings(args: argparse.Namespace) -> GenerationSettings:
    """All candidates are kept. Raises UserError where a number does not fit."""
    return GenerationSettings(
        candidates=args.candidates,
        keep=args.candidates,
        seed=args.seed,
        guidance=args.guidance,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
    )

"""`dalle-mini convert` and `dalle-mini info`."""

import argparse
import json

from dalle_mini.commands.sources import add_hub_options, hub_options
from dalle_mini.commands.terminal import Help, notices, starting
from dalle_mini.errors import UserError
from dalle_mini.runtime import console
from dalle_mini.runtime.paths import expanded

DTYPES = ("float32", "bfloat16", "float16")


def add_convert(verbs) -> None:
    parser = verbs.add_parser(
        "convert",
        help="convert weights to this package's format, or put three networks into a bundle",
        description="Write DalleBart, VQGAN or CLIP as config.json and model.safetensors. SOURCE can hold Flax\n"
        "msgpack, PyTorch files, or taming-transformers' .ckpt with its .yaml, sharded or not, in a folder, on\n"
        "Hugging Face or in wandb. It can also be a checkpoint of a training run (RUN/checkpoints/STEP). With\n"
        "--vqgan and --clip, TARGET is a bundle for `generate --model`: all three networks, their tokenizers and\n"
        "the word list. Only one tensor at a time is in memory.",
        epilog="example:\n"
        "  dalle-mini convert dalle-mini/dalle-mini mini --vqgan dalle-mini/vqgan_imagenet_f16_16384 \\\n"
        "      --clip openai/clip-vit-base-patch32 --dtype float16\n"
        "  dalle-mini convert runs/mine/checkpoints/4000 best",
        formatter_class=Help,
    )
    add = parser.add_argument
    add(
        "source",
        metavar="SOURCE",
        type=expanded,
        help="a network or a bundle: a folder, a .ckpt, owner/name, or a wandb artifact; or a run's checkpoint",
    )
    add("target", metavar="TARGET", type=expanded, help="the folder to write; it must not exist yet")
    add("--vqgan", metavar="SOURCE", type=expanded, help="VQGAN's source, for a bundle")
    add("--clip", metavar="SOURCE", type=expanded, help="CLIP's source, for a bundle")
    add("--dtype", choices=DTYPES, help="data type to store (default: as in SOURCE)")
    add_hub_options(add, "SOURCE")
    parser.set_defaults(run=run_convert)


def run_convert(args: argparse.Namespace) -> None:
    with notices():
        with starting():
            from dalle_mini.conversion.convert import convert

        options = hub_options(args)
        for folder in convert(args.source, args.target, args.vqgan, args.clip, dtype=args.dtype, **options):
            console.answer(folder)


def add_info(verbs) -> None:
    parser = verbs.add_parser(
        "info",
        help="describe weights: architecture, sizes, and what is missing",
        description="Print the architecture, parameter counts, stored types, tokens and file sizes of a network or a\n"
        "bundle, and what is missing. Only configs and headers are read.",
        epilog="example:\n  dalle-mini info mini",
        formatter_class=Help,
    )
    add = parser.add_argument
    add(
        "source",
        metavar="PATH",
        nargs="?",
        type=expanded,
        help="a source as for `convert` (default: the shipped model)",
    )
    add("--json", action="store_true", help="print JSON")
    add("--words", action="store_true", help="print the words that the model has seen, if it carries a vocabulary")
    add_hub_options(add, "PATH")
    parser.set_defaults(run=run_info)


def run_info(args: argparse.Namespace) -> None:
    with notices():
        with starting():
            from dalle_mini.conversion.describe import describe

        described = describe(args.source, **hub_options(args))
    if args.words:
        from dalle_mini.text.known_words import KnownWords

        found = [words for one in described if (words := KnownWords.load(one.folder)) is not None]
        if not found:
            raise UserError(f"{args.source or 'the shipped model'}: carries no vocabulary")
        console.answer(*found[0].words)
    elif args.json:
        console.answer(json.dumps([one.to_dict() for one in described]), limit=None)
    else:
        console.answer(*(line for one in described for line in str(one).split("\n")))

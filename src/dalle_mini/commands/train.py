"""`dalle-mini train`: a run from a config, started or continued."""

import argparse
import contextlib
from pathlib import Path

from dalle_mini.commands.distributed import add_distributed_option, join
from dalle_mini.commands.terminal import Help, notices, out_of_memory
from dalle_mini.runtime import console
from dalle_mini.runtime.paths import expanded
from dalle_mini.training.config import recipes

RESUME = ("auto", "never")
ADVICE = (
    "use more microbatches (loop.accumulation), keep less for the gradient (training.remat=full), split layers "
    "over devices (mesh.model), or ask `dalle-mini plan CONFIG --topology ... --max-batch` what fits"
)


def add_train(verbs) -> None:
    parser = verbs.add_parser(
        "train",
        help="train or fine-tune the model that draws, a VQGAN or CLIP",
        description="Train the network that a config describes, and write the run into the folder OUTPUT. The network\n"
        "is DalleBart, which learns from encoded images, a VQGAN (network: vqgan), which learns from images, or\n"
        "CLIP (network: clip), which learns from images and captions. If the folder holds a run, it is continued\n"
        "exactly from its last good checkpoint, and CONFIG can be left out. On SIGTERM or a cloud's notice,\n"
        "the run finishes the step, saves, and ends with exit code 75.",
        epilog="example:\n"
        "  dalle-mini train mini --output runs/mini data.train=data/tokens\n"
        "continue the run after a kill:\n"
        "  dalle-mini train --output runs/mini\n"
        "fine-tune the shipped model on your own images (FOLDER: images, each with a .txt beside it):\n"
        "  dalle-mini train finetune-emoji --output runs/mine data.train=FOLDER\n"
        "fine-tune the shipped VQGAN on your own images (without the last two settings: the published one):\n"
        "  dalle-mini train vqgan-f16-256 --output runs/vqgan data.train=FOLDER training.init_from=shipped \\\n"
        "      training.perceptual.clip=shipped\n"
        "fine-tune the shipped CLIP on your own images and captions (without the last setting: a published one):\n"
        "  dalle-mini train clip-finetune --output runs/clip data.train=FOLDER training.init_from=shipped",
        formatter_class=Help,
    )
    parser.intermixed = True
    add = parser.add_argument
    add("config", nargs="?", metavar="CONFIG", type=expanded, help="a recipe, such as mini, or the path of a YAML file")
    add("--list", action=ListRecipes, nargs=0, help="list the recipes and exit")
    add(
        "settings",
        nargs="*",
        metavar="key=value",
        help="settings that replace those of the config, such as loop.steps=100",
    )
    add("--output", metavar="FOLDER", type=expanded, required=True, help="the folder of the run")
    add("--resume", choices=RESUME, default="auto", help="auto continues a run in the folder; never refuses to")
    add("--allow-changes", action="store_true", help="continue the run although new settings change what it learns")
    add_distributed_option(add)
    parser.set_defaults(run=run_train, meanwhile=_listening)


class ListRecipes(argparse.Action):
    """Lists the recipes and ends, as --version does: nothing else has to be given."""

    def __call__(self, parser, *_) -> None:
        for name in recipes.names():
            console.answer(f"{name:<15} {recipes.summary(name)}")
        console.answer(f"each is a file of {recipes.FOLDER}: copy one to change more than key=value does")
        parser.exit()


def _listening() -> contextlib.AbstractContextManager:
    """The handler of signals from the command's start: before the first step there is nothing to save, so it ends."""
    from dalle_mini.training.run.preemption import Preemption

    return Preemption(grace_without_work=0.0)


def run_train(args: argparse.Namespace) -> int:
    assignments = list(args.settings)
    if args.config is not None and "=" in args.config and not Path(args.config).exists():
        assignments, args.config = [args.config, *assignments], None
    with notices():
        from dalle_mini.runtime.compilation import keep_compiled
        from dalle_mini.training.run.folder import check_here
        from dalle_mini.training.run.peers import ended_with_the_others
        from dalle_mini.training.tasks import load_run, recorded_run, train

        check_here(args.output)
        out = Path(args.output)
        with ended_with_the_others(), out_of_memory(ADVICE):
            run = load_run(args.config, assignments) if args.config else recorded_run(out, assignments)
            writes = join(args.distributed)
            keep_compiled()
            final = train(run, out, resume=args.resume, allow_changes=args.allow_changes)
    if writes:
        console.answer(f"the weights are in {final.resolve()}")
    return 0

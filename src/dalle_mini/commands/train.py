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
        help="train or fine-tune the model that draws, its VQGAN, or CLIP",
        description="Train DalleBart on encoded pictures, a VQGAN on pictures (network: vqgan), or CLIP on pictures\n"
        "and captions (network: clip), as a config says, into the folder OUTPUT. A run that is there is continued\n"
        "from its last good checkpoint, to the bit; without CONFIG, with the one it was started with. On SIGTERM or\n"
        "a cloud's notice the step is finished and saved, and the exit code is 75.",
        epilog="example:\n"
        "  dalle-mini train mini --output runs/mini data.train=data/tokens\n"
        "again, after a kill:\n"
        "  dalle-mini train --output runs/mini\n"
        "the shipped model, on pictures of one's own (FOLDER: pictures, each with a .txt beside it):\n"
        "  dalle-mini train finetune-emoji --output runs/mine data.train=FOLDER\n"
        "the shipped VQGAN, on pictures of one's own (without the last two settings: the published one):\n"
        "  dalle-mini train vqgan-f16-256 --output runs/vqgan data.train=FOLDER training.init_from=shipped \\\n"
        "      training.perceptual.clip=shipped\n"
        "the shipped CLIP, on pictures and captions of one's own (without the last setting: a published one):\n"
        "  dalle-mini train clip-finetune --output runs/clip data.train=FOLDER training.init_from=shipped",
        formatter_class=Help,
    )
    parser.intermixed = True
    add = parser.add_argument
    add("config", nargs="?", metavar="CONFIG", type=expanded, help="a recipe, such as mini, or the path of a YAML file")
    add("--list", action=ListRecipes, nargs=0, help="list the recipes, and end")
    add("settings", nargs="*", metavar="key=value", help="settings in place of the file's, e.g. loop.steps=100")
    add("--output", metavar="FOLDER", type=expanded, required=True, help="the run's folder")
    add("--resume", choices=RESUME, default="auto", help="auto continues a run that is there, never refuses to")
    add("--allow-changes", action="store_true", help="continue even with settings that change what is learned")
    add_distributed_option(add)
    parser.set_defaults(run=run_train, computes=True, meanwhile=_listening)


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

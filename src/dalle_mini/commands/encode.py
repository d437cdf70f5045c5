"""`dalle-mini encode`: a dataset of captioned pictures into shards of tokens."""

import argparse
import contextlib
import os
import time
from collections.abc import Callable, Iterator

from dalle_mini.commands.data_options import (
    SOURCES,
    add_filter_options,
    add_source_options,
    filter_options,
    source_options,
)
from dalle_mini.commands.sources import add_hub_options, hub_options
from dalle_mini.commands.terminal import Help, notices, starting
from dalle_mini.runtime import console
from dalle_mini.runtime.paths import expanded, source

EVERY = 30  # seconds from one line to the next where no bar can be shown


def add_encode(verbs) -> None:
    parser = verbs.add_parser(
        "encode",
        help="encode captioned images as tokens to train on",
        description="Read a dataset of captioned images, filter it, and write its VQGAN tokens as Parquet\n"
        "shards with a manifest.json. Images that cannot be used are counted, and listed in dropped.parquet. After\n"
        "an interruption, run the same command again: it continues, and ends with the same files.",
        epilog="examples:\n"
        "  dalle-mini encode photos encoded\n"
        "  dalle-mini encode 'gs://bucket/laion/*.tar' gs://bucket/encoded --english --duplicates near \\\n"
        "      --vqgan dalle-mini/vqgan_imagenet_f16_16384 --clip openai/clip-vit-base-patch32 --clip-scores\n"
        "on one of 64 machines (under SLURM, Kubernetes and jax.distributed the two options are not needed):\n"
        "  dalle-mini encode SOURCE OUT --shard-index 7 --shard-count 64",
        formatter_class=Help,
    )
    add = parser.add_argument
    add("source", metavar="SOURCE", type=expanded, help=SOURCES)
    add("out", metavar="OUT", type=expanded, help="the folder to write: local, gs:// or s3://")
    add_source_options(parser)
    add_filter_options(parser)

    add = parser.add_argument_group("encoding").add_argument
    add("--crops", metavar="HOW", default="center", help="center, or random:N for N random crops of each image")
    add("--seed", metavar="N", type=int, default=0, help="seed of the random crops")
    add(
        "--quick-jpeg",
        action="store_true",
        help="decode large JPEG files at a fraction of their size; a few tokens in 100 change",
    )
    add("--clip-scores", action="store_true", help="store CLIP's score of each image and its caption")
    add(
        "--validation",
        metavar="SHARE",
        type=float,
        default=0.01,
        help="share of images kept for validation, chosen by their keys",
    )
    add("--shard-rows", metavar="N", type=int, default=2**16, help="rows in a shard")
    add("--batch-size", metavar="N", type=int, default=16, help="images in one call of the VQGAN on one device")

    add = parser.add_argument_group("networks").add_argument
    add(
        "--vqgan",
        metavar="SOURCE",
        type=source,
        help="VQGAN's folder or Hugging Face repository (default: the shipped model's)",
    )
    add(
        "--clip",
        metavar="SOURCE",
        type=source,
        help="CLIP's folder or repository, for --clip-scores (default: the shipped model's)",
    )
    add_hub_options(add, "VQGAN")

    add = parser.add_argument_group("work").add_argument
    add(
        "--workers",
        metavar="N",
        type=int,
        help="processes that read and decode (default: one per core); with Ray, its actors",
    )
    add("--engine", choices=("local", "ray"), default="local", help="use this machine, or a Ray cluster (RAY_ADDRESS)")
    add("--shard-index", metavar="I", type=int, help="do part I of the work, counted from 0 ...")
    add(
        "--shard-count",
        metavar="N",
        type=int,
        help="... of N parts (default: read from the environment of an array job)",
    )
    parser.set_defaults(run=run_encode, extra="data")


def run_encode(args: argparse.Namespace) -> int:
    from dalle_mini.data.encode.launchers import find_share
    from dalle_mini.errors import UserError

    # Under Ray this process does not encode: that it is task 0 of some SLURM job means nothing.
    with_ray = args.engine == "ray"
    share = find_share(args.shard_index, args.shard_count, {} if with_ray else os.environ)
    if args.workers is not None and args.workers < 0:
        raise UserError(f"--workers is {args.workers}: it must be at least 0")
    if args.clip is not None and not args.clip_scores:
        raise UserError("--clip would do nothing without --clip-scores")
    filters = filter_options(args)
    with notices():
        with starting():
            from dalle_mini.data.encode import EncodeOptions, Weights, encode
            from dalle_mini.data.encode.filters import check_where
            from dalle_mini.data.sources import open_source
            from dalle_mini.runtime.compilation import keep_compiled
            from dalle_mini.weights.bundle import SHIPPED_NAME
        names = ("crops", "seed", "clip_scores", "validation", "shard_rows", "batch_size", "quick_jpeg")
        options = EncodeOptions(filters, **{name: getattr(args, name) for name in names})
        source = open_source(args.source, **source_options(args))
        check_where(filters, source)
        keep_compiled()
        weights = Weights(args.vqgan or SHIPPED_NAME, args.clip or SHIPPED_NAME, tuple(hub_options(args).items()))
        if with_ray:
            import jax

            jax.config.update("jax_platforms", "cpu")  # the accelerator here, if there is one, is an actor's
        else:
            share = _of_jax(share)
        if share.count > 1:
            console.say(f"shard {share.index} of {share.count}, as {share.said_by} say")
        with _shown() as progress:
            outcome = encode(
                source, weights, args.out, options, engine=args.engine, workers=args.workers, share=share,
                progress=progress,
            )  # fmt: skip
    _tell(args.out, outcome)
    return 0


def _of_jax(share):
    """On a TPU pod JAX itself knows that there are others."""
    if share.count > 1:
        return share
    import jax

    from dalle_mini.data.encode.launchers import Share

    return Share(jax.process_index(), jax.process_count(), "jax.distributed or the TPU pod")


@contextlib.contextmanager
def _shown() -> Iterator[Callable]:
    """A bar on stderr where that is a terminal, else a line now and then."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    screen = Console(stderr=True, soft_wrap=True)
    bar = Progress(TextColumn("{task.description:<8}"), BarColumn(), TextColumn("{task.fields[text]}"),
                   console=screen, disable=not screen.is_terminal, transient=True)  # fmt: skip
    begun: dict[str, float] = {}
    told = time.monotonic()
    with bar:
        task = bar.add_task("reading", total=None, text="")

        def show(stage: str, now) -> None:
            nonlocal told
            seconds = time.monotonic() - begun.setdefault(stage, time.monotonic())
            text = describe(stage, now, seconds)
            if stage == "encode" and now.total:
                done, total = now.images, now.total
            else:
                done, total = now.parts_done, now.parts
            bar.update(task, description=stage, completed=done, total=total, text=text)
            if not screen.is_terminal and time.monotonic() - told > EVERY:
                told = time.monotonic()
                console.say(f"{stage}: {text}")

        yield show


def describe(stage: str, now, seconds: float) -> str:
    """How far a run is, how fast it goes and when it will be done: "1,200 pictures, 310 a second, 0:01:20 left"."""
    if stage == "finish":
        return f"shards {now.parts_done / max(1, now.parts):.0%}"
    rate = now.images / seconds if seconds > 0 else 0.0
    text = f"{now.images:,} images, {rate:,.{0 if rate >= 10 else 1}f} a second, part {now.parts_done} of {now.parts}"
    if not now.total or not rate:
        return text
    left = max(0, round((now.total - now.images) / rate))
    return f"{text}, {left // 3600}:{left // 60 % 60:02}:{left % 60:02} left"


def _tell(out: str, outcome) -> None:
    manifest = outcome.manifest
    if manifest is None:
        others = f"{outcome.parts_left:,} parts are left to other shards; the one that does the last makes the shards"
        console.answer(f"{out}: {others if outcome.parts_left else 'another shard is making the shards'}")
        console.answer("if none is at work any more, run the same command again")
        return
    if outcome.was_finished:
        console.answer(f"{out} is finished already: nothing to do")
    sizes = ", ".join(f"{split.rows:,} {name}" for name, split in manifest.splits.items())
    console.answer(f"{out}: {manifest.rows:,} rows ({sizes}) of {manifest.kept:,} of {manifest.seen:,} images")
    for reason, count in sorted(manifest.dropped.items(), key=lambda item: -item[1]):
        console.answer(f"  {count:>12,} dropped: {reason}")
    if manifest.crops_dropped:
        console.answer(f"  {manifest.crops_dropped:>12,} crops dropped by their CLIP score, of images that have others")
    used = sum(count > 0 for count in manifest.codebook_use)
    console.answer(f"  {used:,} of {len(manifest.codebook_use):,} codes are used")

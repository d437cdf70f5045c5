"""`dalle-mini generate`: pictures for a few prompts, for a file of prompts, or one picture again."""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dalle_mini.commands.distributed import add_distributed_option, join
from dalle_mini.commands.sources import add_hub_options, hub_options
from dalle_mini.commands.terminal import Help, notices, out_of_memory, progress_bars, starting
from dalle_mini.errors import UserError
from dalle_mini.runtime import console
from dalle_mini.runtime.paths import expanded
from dalle_mini.settings import DECODE, DTYPES, PER_PROMPT, GenerationSettings, check_prompts

SHOWN = 5  # failures of a batch that are told; its table has all; and prompts with words that were never seen
LOOKED_AT = 1000  # prompts of a batch whose words are looked up
ADVICE = "draw fewer images at once (--batch-size) or with smaller weights (--dtype bfloat16, --dtype int8)"


def add_generate(verbs) -> None:
    parser = verbs.add_parser(
        "generate",
        help="draw images from captions and keep the best",
        description="Draw several candidates for each prompt, rank them with CLIP and keep the best. Each prompt\n"
        "gets a folder in OUTPUT with its images, a captioned grid.png and results.json. The same seed gives the\n"
        "same images, whatever the other prompts and the number of candidates. (On a CPU they are\n"
        "identical. On other hardware, rounding can depend on the number of candidates.)",
        epilog="example:\n"
        '  dalle-mini generate "a red apple on a blue background" "a small snail" --candidates 16 --keep 4 --seed 7\n'
        "draw with the published model from Hugging Face (private repositories need HF_TOKEN in the environment):\n"
        '  dalle-mini generate "an avocado armchair" --model dalle-mini/dalle-mini \\\n'
        "      --vqgan dalle-mini/vqgan_imagenet_f16_16384 --clip openai/clip-vit-base-patch32\n"
        "draw thousands of prompts; after an interruption, run the same command again:\n"
        "  dalle-mini generate --prompts captions.csv --output drawn --candidates 8 --keep 1\n"
        "draw one image again; redraw the lower half of an image; redraw the white parts of a mask:\n"
        "  dalle-mini generate --replay pictures/a-red-apple/results.json --index 3\n"
        '  dalle-mini generate "a red apple" --picture photo.jpg --keep-top 0.5\n'
        '  dalle-mini generate "a red apple" --picture photo.jpg --mask mask.png',
        formatter_class=Help,
    )
    defaults = GenerationSettings()  # told in the help; None tells what was not given from what was
    add = parser.add_argument
    add("prompt", nargs="*", metavar="PROMPT", help="a caption, in quotes")
    add("--candidates", metavar="N", type=int, help=f"images drawn for each prompt (default: {defaults.candidates})")
    add("--keep", metavar="N", type=int, help="images kept for each prompt (default: 4, or all if there are fewer)")

    add = parser.add_argument_group("sampling").add_argument
    add("--seed", metavar="N", type=int, help=f"seed of all random choices, 0 to 4294967295 (default: {defaults.seed})")
    add("--guidance", metavar="X", type=float, help="higher follows the caption more; 1 is off (default: the model's)")
    add("--last-guidance", metavar="X", type=float, help="guidance changes linearly to X (default: no change)")
    add("--negative-prompt", metavar="TEXT", help="what not to draw; needs a guidance other than 1")
    add("--temperature", metavar="X", type=float, help="below 1 is safer, above 1 more varied (default: the model's)")
    add("--top-k", metavar="K", type=int, help="sample from the K likeliest tokens (default: the model's)")
    add("--top-p", metavar="P", type=float, help="sample from the likeliest tokens with a total probability of P")

    add = parser.add_argument_group("start from an image and keep a part of it").add_argument
    add("--picture", metavar="FILE", type=expanded, help="the image; its central square is used")
    add("--keep-top", metavar="X", type=float, help="keep this share of its height, such as 0.5, and redraw the rest")
    add("--mask", metavar="FILE", type=expanded, help="an image of the same size; its white parts are redrawn")
    add("--vary", metavar="X", type=float, help="redraw this share of the image, at random places")

    add = parser.add_argument_group("models").add_argument
    add(
        "--model",
        metavar="SOURCE",
        type=expanded,
        help="a bundle of the three networks, or DalleBart alone: a folder, a Hugging Face repository (owner/name, "
        "owner/name@revision) or a wandb artifact (default: the shipped model)",
    )
    add("--vqgan", metavar="SOURCE", type=expanded, help="VQGAN's source (default: the bundle's)")
    add("--clip", metavar="SOURCE", type=expanded, help="CLIP's source (default: the bundle's)")
    add_hub_options(add, "--model")
    add("--dtype", choices=DTYPES, help=f"of the computation; int8: decoder weights in 8 bits (default: {DTYPES[0]})")
    add(
        "--decode",
        choices=DECODE,
        help="decode one token per pass of the decoder, or a window of tokens per pass; the images are the same "
        f"(default: {DECODE[0]}, the faster one by a table of measurements)",
    )
    add("--batch-size", metavar="N", type=int, help="images drawn together (default: as many as fit in memory)")
    add_distributed_option(add)

    add = parser.add_argument_group("files").add_argument
    add("--output", metavar="FOLDER", type=expanded, default="pictures", help="where each prompt gets its folder")
    add("--overwrite", action="store_true", help="replace the earlier folder of a prompt (default: number the new one)")
    add("--progress-images", action="store_true", help="also write unfinished images, and an animated GIF at the end")
    add(
        "--prompts",
        metavar="FILE",
        type=expanded,
        help="draw all prompts of a file: .txt (one per line), .jsonl, .csv, .tsv or .parquet (column prompt; optional "
        f"columns id, {', '.join(PER_PROMPT)}); continues after an interruption, and writes results.parquet at the end "
        "(results.csv without pyarrow)",
    )
    add("--replay", metavar="FILE", type=expanded, help="draw one image of this results.json again")
    add("--index", metavar="N", type=int, help="the number of that image: 3 is 03.png (default: 1)")
    parser.set_defaults(run=run_generate)


def run_generate(args: argparse.Namespace) -> int:
    asked = [bool(args.prompt), args.prompts is not None, args.replay is not None].count(True)
    if not asked:
        raise UserError(
            'say what to draw: dalle-mini generate "a red apple on a blue background", or --prompts FILE, or '
            "--replay FILE (see dalle-mini generate --help)"
        )
    if asked > 1:
        raise UserError("give either captions, or --prompts FILE, or --replay FILE (see dalle-mini generate --help)")
    if args.batch_size is not None and args.batch_size < 1:
        raise UserError(f"--batch-size is {args.batch_size}: it must be at least 1")
    _check_idle(args)
    if args.picture is None and (args.keep_top is not None or args.mask is not None or args.vary is not None):
        raise UserError("--keep-top, --mask and --vary need a --picture")
    args.dtype = _or(args.dtype, DTYPES[0])
    with notices(), out_of_memory(ADVICE):
        if args.prompts is not None:
            return _run_file(args)
        if args.replay is not None:
            return _run_replay(args)
        return _run_prompts(args)


def _run_prompts(args: argparse.Namespace) -> int:
    prompts, settings = check_prompts(args.prompt), _settings(args)
    if len(prompts) > 1 and not any(len(prompt.split()) > 1 for prompt in prompts):
        console.say(
            f"note: {len(prompts)} prompts of one word each are drawn; if they are one caption, put it in quotes: "
            f'dalle-mini generate "{" ".join(prompts)}"'
        )
    with starting():
        from dalle_mini.results.write import Previews, check_writable, write_result

    output, picture = check_writable(args.output), _read_picture(args)
    parts = _find_parts(args)
    _read_mask(picture, parts)
    writes = join(args.distributed)
    if writes:
        _tell_unknown_words(prompts, parts)
    with progress_bars(writes) as progress, Previews(output) as previews:
        pipe = _load(args, parts, prompts, settings)
        canvas = pipe.canvas(**picture) if picture else None
        written: set[Path] = set()
        for result in _drawn(pipe, args, prompts, settings, canvas, progress, previews if writes else None):
            if writes:
                folder = write_result(result, output, pipe.provenance(), args.overwrite, written, previews.take())
                seconds = sum(result.timings.values())
                console.answer(f"{folder}  best score {result.scores[0]:.2f}  {seconds:.1f} s")
    if writes:
        console.answer(f"images of {len(prompts)} prompt{'s' * (len(prompts) > 1)} are in {output.resolve()}")
    return 0


def _tell_unknown_words(prompts: Iterable[str], parts: dict[str, Path], shown: int | None = None) -> None:
    """Say which words the model has never seen, of all prompts or the first `shown` that have some."""
    with starting():
        from dalle_mini.text.known_words import KnownWords

    if (words := KnownWords.load(parts["dalle"])) is None:
        return
    notes = (". ".join(map(str, unknown)) for prompt in prompts if (unknown := words.unknown(prompt)))
    for number, note in enumerate(notes):
        console.say("..." if number == shown else f"note: {note}")
        if number == shown:
            break


def _drawn(pipe, args, prompts, settings, canvas, progress, previews):
    """The results of the prompts, and their previews on the way into `previews`."""
    if not args.progress_images:
        yield from pipe.generate_each(prompts, settings, canvas, batch_size=args.batch_size, progress=progress)
        return
    from dalle_mini.pipeline import Preview

    stream = pipe.stream(prompts, settings, canvas, previews=4, batch_size=args.batch_size, progress=progress)
    for seen in stream:
        if not isinstance(seen, Preview):
            yield seen
        elif previews is not None:
            previews.add(seen)


def _run_file(args: argparse.Namespace) -> int:
    with starting():
        from dalle_mini.results.batch import Batch
        from dalle_mini.results.prompts import read_prompts
        from dalle_mini.results.write import check_writable

    entries = read_prompts(args.prompts)
    batch = Batch(entries, check_writable(args.output), _settings(args), overwrite=args.overwrite)
    picture = _read_picture(args)
    parts = _find_parts(args)
    _read_mask(picture, parts)
    writes = join(args.distributed)
    if writes:
        _tell_unknown_words((entry.prompt for entry in entries[:LOOKED_AT]), parts, SHOWN)
    with progress_bars(writes) as progress:
        pipe = _load(args, parts)
        canvas = pipe.canvas(**picture) if picture else None
        done = batch.run(pipe, canvas, batch_size=args.batch_size, progress=progress)
    if writes:
        for number, message in enumerate(batch.failures.values()):
            console.say(message if number < SHOWN else "...")
            if number == SHOWN:
                break
        console.answer(f"{done.drawn} prompts drawn, {done.found} were there, {done.failed} failed: {done.table}")
    return 1 if done.failed else 0


def _run_replay(args: argparse.Namespace) -> int:
    with starting():
        from dalle_mini.results.replay import DIFFERS, read_entry
        from dalle_mini.results.write import check_writable, write_result

    entry, output = read_entry(Path(args.replay), _or(args.index, 1)), check_writable(args.output)
    if args.model is None:
        for part, source in entry.sources.items():
            setattr(args, part, getattr(args, part) or source)
    args.dtype = entry.dtype
    parts = _find_parts(args)
    with progress_bars() as progress:
        pipe = _load(args, parts)
        entry.check_models(pipe.provenance())
        result = pipe.redraw(entry.prompt, entry.candidate, entry.settings, entry.canvas, progress=progress)
        verdict = entry.compare(result.images[0])
        original = entry.file.parent.resolve()
        folder = write_result(result, output, pipe.provenance(), args.overwrite, {original})
    console.answer(f"{folder}  score {result.scores[0]:.2f}  {verdict}")
    return int(verdict.startswith(DIFFERS))


def _check_idle(args: argparse.Namespace) -> None:
    """Refuse options that would do nothing.

    Raises:
        UserError: there is one; the message names it.
    """
    if args.replay is not None:
        drawing = ("candidates", "keep", *PER_PROMPT, "picture", "keep_top", "mask", "vary")
        idle = (*drawing, "dtype", "decode", "batch_size", "distributed", "progress_images")
        way, reason = "--replay", "its file says how the image is drawn"
    elif args.prompts is not None:
        idle, way, reason = ("index", "progress_images"), "--prompts", "leave it out"
    else:
        idle, way, reason = ("index",), "captions", "it is for --replay"
    asked = [name for name in idle if not (getattr(args, name) is None or getattr(args, name) is False)]
    if asked:
        names = " and ".join(f"--{name.replace('_', '-')}" for name in asked)
        raise UserError(f"{names} would do nothing with {way}: {reason}")


def _settings(args: argparse.Namespace) -> GenerationSettings:
    given = {name: getattr(args, name) for name in ("candidates", "keep", "decode", *PER_PROMPT)}
    return GenerationSettings(**{name: value for name, value in given.items() if value is not None})


def _or(value, default):
    return default if value is None else value


def _find_parts(args: argparse.Namespace) -> dict[str, Path]:
    # Before the bars: downloads show those of the Hub's client.
    from dalle_mini.weights.bundle import find_parts

    return find_parts(args.model, args.vqgan, args.clip, **hub_options(args))


def _load(args: argparse.Namespace, parts: dict[str, Path], prompts=None, settings=None):
    with starting():
        from dalle_mini.pipeline import Ahead, DalleMini
        from dalle_mini.runtime.compilation import keep_compiled

    keep_compiled()
    foreseen = prompts is not None and args.picture is None and not args.distributed
    together = 1 if args.progress_images else None  # prompts in a call: previews are of one at a time
    ahead = Ahead(prompts[:together], settings, args.batch_size) if foreseen else None
    return DalleMini.from_parts(parts, dtype=args.dtype, ahead=ahead)


def _read_picture(args: argparse.Namespace) -> dict[str, Any] | None:
    """The arguments of `DalleMini.canvas`: mistakes show before anything is fetched."""
    if args.picture is None:
        return None
    with starting():
        from dalle_mini.generation.canvas import check_kept
        from dalle_mini.imaging.decoding import load_image

    vary = _or(args.vary, 0.0)
    check_kept(args.keep_top, args.mask is not None, vary, ("--keep-top", "--mask", "--vary"))
    mask = None if args.mask is None else load_image(args.mask, background="black")
    return {"picture": load_image(args.picture), "top": args.keep_top, "mask": mask, "vary": vary}


def _read_mask(picture: dict[str, Any] | None, parts: dict[str, Path]) -> None:
    """Make a mask one value a token, as the VQGAN in `parts` cuts images, before the weights are read."""
    if picture is None or picture["mask"] is None:
        return
    from dalle_mini.generation.canvas import cells_to_draw
    from dalle_mini.models.image_tokenizer import token_grid

    sizes = token_grid(parts["vqgan"])
    picture["mask"] = cells_to_draw(picture["mask"], picture["picture"].size, sizes.resolution, sizes.grid)

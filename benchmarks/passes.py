"""How many passes of the decoder does an image take in parallel decoding, and how many milliseconds?

    python benchmarks/passes.py                   # the shipped model: 200 held-out captions, the window of `auto`
    python benchmarks/passes.py --captions 20 --candidates 1 4 16 --windows 8 16 32 --temperature 0.8 1.5
    python benchmarks/passes.py --size mini --captions 1 --windows 2 4 8     # random weights: the worst case
    python benchmarks/passes.py --table           # the quickest window by the number of rows

Each caption is a call of its own, drawn by sequential decoding and with each window in turn, in a process that has
compiled both. Milliseconds are those of an image's tokens, prefill included: medians over the captions. "differ" are
the images that have another token than sequential decoding gives them.
"""

import argparse
import dataclasses
import itertools
import json
import statistics
import sys
import time
from collections.abc import Sequence

import jax
import numpy as np

from candidates import random_engine, request_of
from dalle_mini.generation.decode import decode_tokens
from dalle_mini.generation.engine import Engine
from dalle_mini.generation.scheduling import Group, Request, decoding_arguments
from dalle_mini.runtime.huge_pages import start_again_with_huge_pages
from dalle_mini.settings import DTYPES, GenerationSettings
from generation import SIZES

SHIPPED = "shipped"
TRIED = {
    1: (16, 24, 32, 48, 64),
    2: (12, 16, 24, 32),
    4: (8, 12, 16, 24),
    8: (4, 6, 8, 12),
    16: (2, 3, 4, 6, 8),
    32: (2, 3, 4),
}
HEAD = (
    "| model | dtype | temperature | guidance | candidates | window | passes | most | ms | sequential ms | "
    "times as fast | differ |"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--size", choices=(SHIPPED, *SIZES), default=SHIPPED, help="all but the shipped model have random weights")
    add("--dtype", choices=DTYPES, default="float32")
    add("--captions", type=int, default=200, help="of the shipped model: held-out scenes (default: 200)")
    add("--candidates", type=int, nargs="+", default=[1])
    add("--windows", type=int, nargs="+", help="(default: that of `auto`)")
    add("--temperature", type=float, nargs="+", help="(default: the model's)")
    add("--guidance", type=float, nargs="+", help="(default: the model's)")
    add("--font", metavar="FILE", help="NotoColorEmoji.ttf, for the captions (default: where Debian puts it)")
    add("--top-k", type=int, help="(default: the model's)")
    add("--top-p", type=float, help="(default: off)")
    add("--table", action="store_true", help="try several windows for each number of candidates")
    args = parser.parse_args()
    start_again_with_huge_pages()
    print(HEAD + "\n|" + "---|" * 12)
    draw = opened(args.size, args.dtype, args.font)
    candidates: Sequence[int] = list(TRIED) if args.table else args.candidates
    for temperature, guidance, count in itertools.product(
        args.temperature or [None], args.guidance or [None], candidates
    ):
        settings = GenerationSettings(
            count, 1, guidance=guidance, temperature=temperature, top_k=args.top_k, top_p=args.top_p
        )
        engine, requests = draw(settings, args.captions)
        windows = TRIED[count] if args.table else args.windows or [auto(engine, requests[0])]
        for row in measured(engine, requests, windows):
            print(f"| {args.size} | {args.dtype} | {row} |", flush=True)


def opened(size: str, dtype: str, font: str | None):
    """A function from settings and a number of captions to the engine and the requests."""
    if size != SHIPPED:
        engine = random_engine(size, dtype)
        return lambda settings, captions: (
            engine,
            [_asked(request_of(engine, settings.candidates), settings)] * captions,
        )
    from dalle_mini import DalleMini
    from dalle_mini.emoji.art import all_emoji, find_font
    from dalle_mini.emoji.scene_prompts import held_out_scenes
    from dalle_mini.weights.bundle import SHIPPED as BUNDLE

    pipe, names = DalleMini.from_pretrained(dtype=dtype), json.loads((BUNDLE / "emoji.json").read_text())
    emoji = [one for one in all_emoji(find_font(font)) if one.name in names]

    def requests(settings: GenerationSettings, captions: int) -> tuple[Engine, list[Request]]:
        return pipe.engine, pipe.requests([one.caption for one in held_out_scenes(captions, emoji)], settings)

    return requests


def _asked(request: Request, settings: GenerationSettings) -> Request:
    given = {
        name: getattr(settings, name)
        for name in ("temperature", "guidance", "top_k", "top_p")
        if getattr(settings, name)
    }
    return dataclasses.replace(request, settings=dataclasses.replace(request.settings, **given))


def auto(engine: Engine, request: Request) -> int:
    group = Group([request], 0, request.settings.candidates, [(0, request.settings.candidates)])
    return group.window(engine.model.config, engine.devices[:1])


def measured(engine: Engine, requests: Sequence[Request], windows: Sequence[int]) -> list[str]:
    drawn: dict[int, list] = {window: [] for window in (1, *windows)}
    for number, request in enumerate([requests[0], *requests]):
        for window, found in drawn.items():
            result = once(engine, request, window)
            if number:  # the first compiles
                found.append(result)
    return [row(requests[0].settings, window, drawn[window], drawn[1]) for window in windows]


def once(engine: Engine, request: Request, window: int) -> tuple[float, np.ndarray, np.ndarray]:
    """Seconds, tokens and passes of a caption's images."""
    count = request.settings.candidates
    arguments = decoding_arguments([request], 0, count, window, engine.tokenizer.codebook_size, engine.devices[:1])
    start = time.perf_counter()
    *_, decoded = decode_tokens(engine.model, every=engine.model.image_length, **arguments)
    jax.block_until_ready(decoded)
    return time.perf_counter() - start, np.asarray(decoded.tokens)[0, :count], np.asarray(decoded.passes)[0, :count]


def row(settings: GenerationSettings, window: int, drawn: list, sequential: list) -> str:
    passes = np.stack([passes for _, _, passes in drawn])
    differ = sum((ours != theirs).any(-1).sum() for (_, ours, _), (_, theirs, _) in zip(drawn, sequential, strict=True))
    ms, before = (1e3 * statistics.median(one[0] for one in runs) / settings.candidates for runs in (drawn, sequential))
    cells = [settings.temperature, settings.guidance, settings.candidates, window, f"{passes.mean():.1f}", passes.max()]
    cells += [f"{ms:.0f}", f"{before:.0f}", f"{before / ms:.2f}", f"{differ} of {passes.size}"]
    return " | ".join(map(str, cells))


if __name__ == "__main__":
    sys.exit(main())

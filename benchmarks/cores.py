"""How many cores does drawing keep busy?

    python benchmarks/cores.py
    python benchmarks/cores.py --cores 1 2 --candidates 16    # as on one core, and on two

The shipped model and its own settings. Each row is one stage on so many of the machine's cores: wall seconds, processor
seconds, and how many cores these kept busy. "1" is how a single thread calls the programs. Encoding is of random images
in memory, so reading and filters are left out. The least of the repetitions is shown.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial

import jax
import numpy as np

from dalle_mini import DalleMini
from dalle_mini.data.encode.encoders import Networks
from dalle_mini.data.encode.run import EncodeOptions
from dalle_mini.data.encode.stage import WAITING
from dalle_mini.generation.engine import Engine
from dalle_mini.runtime import cores
from dalle_mini.runtime.compilation import keep_compiled
from dalle_mini.settings import DTYPES, GenerationSettings

PROMPT = "a red apple on a blue background"
ENCODED = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", type=int, nargs="+", default=sorted({1, cores.usable_cores()}))
    parser.add_argument("--candidates", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0])
    parser.add_argument("--times", type=int, default=3, help="repetitions; the first, which compiles, is left out")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    args = parser.parse_args()
    keep_compiled()
    pipe, rows = DalleMini.from_pretrained(dtype=args.dtype), []
    print("| stage | images | cores | wall s | processor s | cores busy |\n|---|---|---|---|---|---|")
    for stage, images, work in stages(pipe, args.candidates):
        for count in args.cores:
            cores.usable_cores = lambda count=count: count
            wall, processor = best(work(), args.times)
            rows.append({"stage": stage, "images": images, "cores": count, "wall": wall, "processor": processor})
            print(
                f"| {stage} | {images} | {count} | {wall:.2f} | {processor:.2f} | {processor / wall:.2f} |", flush=True
            )
    if args.json:
        print(json.dumps(rows))


def stages(pipe: DalleMini, candidates: list[int]):
    """(name, images, a function that returns what is to be measured) of each stage."""
    for count in candidates:
        (request,) = pipe.requests([PROMPT], GenerationSettings(candidates=count, keep=count))
        results = list(pipe.engine.run([request]))
        tokens = results[0].tokens
        images = np.stack([np.asarray(image) for image in results[0].images])
        yield "all of drawing", count, lambda request=request: drawing(pipe, request)
        yield "pixels", count, lambda tokens=tokens: partial(engine(pipe).pixels, tokens)
        yield "scores", count, lambda images=images: partial(pipe.ranker.scores, images, PROMPT)
    yield "encode", ENCODED, lambda: encoding(pipe)


def engine(pipe: DalleMini) -> Engine:
    return Engine(pipe.model, pipe.vqgan, pipe.ranker, jax.local_devices()[:1])


def drawing(pipe: DalleMini, request) -> Callable[[], object]:
    ready = engine(pipe)
    return lambda: list(ready.run([request]))


def encoding(pipe: DalleMini) -> Callable[[], object]:
    batch_size, side = EncodeOptions().batch_size, pipe.vqgan.resolution
    networks = Networks(pipe.vqgan, None, batch_size, jax.local_devices()[:1])
    images = np.random.default_rng(0).integers(0, 256, (batch_size, side, side, 3), np.uint8)

    def encode() -> None:
        waiting = []
        for _ in range(ENCODED // batch_size):
            waiting.append(networks.start(images, [""] * batch_size))
            if len(waiting) > WAITING * len(networks.devices):
                waiting.pop(0)()
        for finish in waiting:
            finish()

    return encode


def best(work: Callable[[], object], times: int) -> tuple[float, float]:
    """Wall and processor seconds of the quickest of so many repetitions."""
    found = []
    for _ in range(1 + times):
        wall, processor = time.perf_counter(), time.process_time()
        work()
        found.append((time.perf_counter() - wall, time.process_time() - processor))
    return min(found[1:])


if __name__ == "__main__":
    sys.exit(main())

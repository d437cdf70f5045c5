"""How much time do previews of growing pictures cost?

    python benchmarks/streaming.py                                   # mini, 1 and 9 guided candidates, float32
    python benchmarks/streaming.py --candidates 4 --dtype bfloat16

Random weights of the published shapes through the engine that `generate` and `stream` use: a prompt without previews,
then the same with a preview of one candidate at every eighth, in turn. Seconds are medians, of a process that has
drawn both before.
"""

import argparse
import statistics
import sys
import time

import numpy as np

from candidates import random_engine, request_of
from dalle_mini.generation.engine import Engine
from dalle_mini.runtime.huge_pages import start_again_with_huge_pages
from generation import SIZES

PREVIEWS, TIMES = 8, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="mini")
    parser.add_argument("--candidates", type=int, nargs="+", default=[1, 9])
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "int8"), nargs="+", default=["float32"])
    args = parser.parse_args()
    start_again_with_huge_pages()
    print("| size | candidates | dtype | plain s | watched s | watched / plain |\n|---|---|---|---|---|---|")
    for dtype in args.dtype:
        engine = random_engine(args.size, dtype)
        for candidates in args.candidates:
            watching = {"every": engine.model.config.image_length // PREVIEWS}
            runs = [(drawn(engine, candidates), drawn(engine, candidates, **watching)) for _ in range(TIMES + 1)]
            for (_, tokens), (_, watched) in runs:
                np.testing.assert_array_equal(watched, tokens)
            plain, watched = (statistics.median(pair[which][0] for pair in runs[1:]) for which in (0, 1))
            row = [args.size, candidates, dtype, f"{plain:.1f}", f"{watched:.1f}", f"{watched / plain:.2f}"]
            print("| " + " | ".join(map(str, row)) + " |", flush=True)


def drawn(engine: Engine, candidates: int, **options) -> tuple[float, np.ndarray]:
    start = time.perf_counter()
    *_, result = engine.run([request_of(engine, candidates)], **options)
    return time.perf_counter() - start, result.tokens


if __name__ == "__main__":
    sys.exit(main())

"""Which tiles of float32 weights does this processor read fastest?

    python benchmarks/tiles.py
    python benchmarks/tiles.py --size tiny --candidates 1

Milliseconds a token step of guided images, with random weights, for each width of `generation/cpu/tiles.py`: the median
over the stretches between pauses, in turn over all widths, so that a slow minute is not one width's alone. The last
line is the entry of this kind of processor in TILES: the width with the least geometric mean.
"""

import argparse
import math
import statistics
from functools import partial

import jax.numpy as jnp
import numpy as np

from dalle_mini.generation import optimize
from dalle_mini.generation.cpu.tiles import WHOLE, TiledLinear
from dalle_mini.models import DalleBart
from dalle_mini.runtime.huge_pages import start_again_with_huge_pages
from dalle_mini.runtime.processor import kind, processor
from generation import SIZES, random_model, time_steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="mini")
    parser.add_argument("--candidates", type=int, nargs="+", default=[1, 9])
    parser.add_argument("--widths", type=int, nargs="+", default=[96, 128, 512, WHOLE], help="0 is all outputs")
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    start_again_with_huge_pages()
    found: dict[int, list[list[float]]] = {width: [[] for _ in args.candidates] for width in args.widths}
    for _ in range(args.rounds):
        for width in args.widths:
            model = with_tiles(args.size, width)
            for times, candidates in zip(found[width], args.candidates, strict=True):
                times.append(1e3 * float(np.median(time_steps(model, candidates)[0])))
    print(f"{processor()}, {args.size}, float32, ms a step\n")
    print(f"| width | {' | '.join(map(str, args.candidates))} |\n|---{'|---' * len(args.candidates)}|")
    for width, rows in found.items():
        print(f"| {width or 'whole'} | {' | '.join(f'{min(times):.1f}' for times in rows)} |")
    means = {width: statistics.fmean(math.log(min(times)) for times in rows) for width, rows in found.items()}
    print(f'\n"{kind()}": {min(means, key=means.__getitem__)},')


def with_tiles(size: str, width: int) -> DalleBart:
    usual, optimize.TiledLinear = optimize.TiledLinear, partial(TiledLinear, tile=width)
    try:
        return optimize.optimize_for_decoding(random_model(DalleBart, SIZES[size], jnp.float32), consume=True)
    finally:
        optimize.TiledLinear = usual


if __name__ == "__main__":
    main()

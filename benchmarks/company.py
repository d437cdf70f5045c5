"""The share of images that come out otherwise alone than among others.

    python benchmarks/company.py
    python benchmarks/company.py --dtype bfloat16 --captions 5 --guidance 3 --decode auto

Captions of the shipped model with 8 images each, by its own temperature and top_k. A column is a company: the images of
one call of the decoder, in which each image is drawn once more. Tokens are compared, and pixels follow from them.
"""

import argparse
import json
import sys
from collections.abc import Sequence

import numpy as np

from dalle_mini import DalleMini
from dalle_mini.generation import generate_tokens
from dalle_mini.generation.scheduling import Group, Request, decoding_arguments
from dalle_mini.pipeline import SHIPPED
from dalle_mini.settings import GenerationSettings

IMAGES = 8  # of each caption
COLORS = ("red", "blue", "green", "yellow")
# Captions in a call, and images of each.
COMPANIES = {"2": (1, 2), "9": (1, 9), "16": (1, 16), "5 captions of 1": (5, 1), "4 captions of 8": (4, 8)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16", "int8"])
    parser.add_argument("--captions", type=int, default=25)
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0])
    parser.add_argument("--decode", choices=["auto", "sequential", "parallel"], nargs="+", default=["sequential"])
    args = parser.parse_args()
    captions = some_captions(args.captions)
    print(f"| dtype | guidance | decode | {' | '.join(COMPANIES)} |")
    print("|---|---|---|" + "---|" * len(COMPANIES), flush=True)
    for dtype in args.dtype:
        pipe = DalleMini.from_pretrained(dtype=dtype)
        for guidance in args.guidance:
            for decode in args.decode:
                settings = GenerationSettings(candidates=IMAGES, guidance=guidance, decode=decode)
                shares = differing(pipe, pipe.requests(captions, settings))
                print(f"| {dtype} | {guidance:g} | {decode} | {' | '.join(shares)} |", flush=True)


def some_captions(count: int) -> list[str]:
    """The same ones each time, of as many different emoji."""
    names = json.loads((SHIPPED / "emoji.json").read_text())
    chosen = names[:: max(1, len(names) // count)][:count]
    return [f"{name} on a {COLORS[at % len(COLORS)]} background" for at, name in enumerate(chosen)]


def differing(pipe: DalleMini, requests: Sequence[Request]) -> list[str]:
    """For each company the number of images that differ from those drawn alone."""
    alone = drawn(pipe, requests, 1, 1)
    companies = (drawn(pipe, requests, *size) for size in COMPANIES.values())
    count = alone.shape[0] * alone.shape[1]
    return [f"{(tokens != alone).any(axis=-1).sum()} of {count}" for tokens in companies]


def drawn(pipe: DalleMini, requests: Sequence[Request], captions: int, images: int) -> np.ndarray:
    """int32 [captions, IMAGES, image_length]; a call draws `images` of each of so many captions.

    All calls are full: the last ones draw some images once more, or images that are left out here.
    """
    length = pipe.model.image_length
    tokens = np.empty((len(requests), IMAGES, length), np.int32)
    for at in range(0, len(requests), captions):
        start = max(0, min(at, len(requests) - captions))
        group = requests[start : start + captions]
        for first in range(0, IMAGES, images):
            devices = pipe.engine.devices[:1]
            window = Group(group, 0, images, [(first, images)]).window(pipe.model.config, devices)
            options = decoding_arguments(group, first, images, window, pipe.vqgan.codebook_size, devices)
            found = generate_tokens(pipe.model, **options)
            tokens[start : start + captions, first : first + images] = found[:, :images][:, : IMAGES - first]
    return tokens


if __name__ == "__main__":
    sys.exit(main())

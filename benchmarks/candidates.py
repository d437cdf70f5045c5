"""How much memory do many candidates of one prompt take, from the caption to ranked pictures?

    python benchmarks/candidates.py                                  # 128 guided candidates of mini
    python benchmarks/candidates.py --dtype bfloat16 --candidates 32 --json

Random weights of the published shapes (mini, VQGAN f16-16384, CLIP ViT-B/32) through the engine that `generate` uses:
the candidates in as many calls as it chooses for the memory that is free, decoded, scored and sorted. Prints the peak
of the process and the seconds of each stage.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import numpy as np

from dalle_mini.generation.engine import Engine
from dalle_mini.generation.memory import batch_that_fits
from dalle_mini.generation.optimize import compute_dtypes, optimize_for_decoding
from dalle_mini.generation.ranking import PREPROCESSING, ClipRanker
from dalle_mini.generation.scheduling import Request
from dalle_mini.models import CLIP, VQGAN, DalleBart
from dalle_mini.models.config import CLIPConfig
from dalle_mini.settings import GenerationSettings
from dalle_mini.text import CaptionTokenizer
from generation import F16, SIZES, peak_bytes, random_model

TOKENIZER = Path(__file__).resolve().parents[1] / "tests" / "golden" / "clip"
PROMPT = "a red apple"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="mini")
    parser.add_argument("--candidates", type=int, default=128)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "int8"), default="float32")
    parser.add_argument("--batch-size", type=int, help="candidates in a call (default: what fits)")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    args = parser.parse_args()
    engine = random_engine(args.size, args.dtype)
    together = args.batch_size or batch_that_fits(
        engine.model.config, compute_dtypes(args.dtype)[0], F16, engine.devices
    )
    (result,) = engine.run([request_of(engine, args.candidates)], batch_size=together)
    assert len(result.images) == args.candidates
    figures = {"candidates": args.candidates, "dtype": args.dtype, "at_once": together, "peak_gb": peak_bytes() / 1e9}
    print(
        f"{args.size}, {args.dtype}: {args.candidates} candidates, {together} at once: peak "
        f"{figures['peak_gb']:.1f} GB; "
        + ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in result.timings.items())
    )
    if args.json:
        print(json.dumps(figures | {"seconds": result.timings}))


def random_engine(size: str, dtype: str) -> Engine:
    """Random weights of a published shape, with the f16 VQGAN and ViT-B/32."""
    seq2seq, others = compute_dtypes(dtype)
    model = optimize_for_decoding(random_model(DalleBart, SIZES[size], seq2seq), int8=dtype == "int8", consume=True)
    tokenizer = CaptionTokenizer.from_pretrained(TOKENIZER)
    clip = random_model(CLIP, with_end_of(tokenizer), others)
    sizes = {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}}
    return Engine(model, random_model(VQGAN, F16, others), ClipRanker(clip, tokenizer, PREPROCESSING | sizes))


def request_of(engine: Engine, candidates: int) -> Request:
    """So many guided candidates of one caption, all of them kept."""
    config = engine.model.config
    text = np.ones((2, config.text_length), np.int32)
    settings = GenerationSettings(
        candidates=candidates, keep=candidates, guidance=10.0, temperature=1.0, top_k=config.top_k
    )
    return Request(PROMPT, PROMPT, settings, text, text)


def with_end_of(tokenizer: CaptionTokenizer) -> CLIPConfig:
    """ViT-B/32, whose texts end as this tokenizer's do."""
    config = CLIPConfig()
    return dataclasses.replace(config, text=dataclasses.replace(config.text, eos_token_id=tokenizer.end_id))


if __name__ == "__main__":
    sys.exit(main())

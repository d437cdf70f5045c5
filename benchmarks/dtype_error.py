"""The loss of quality in smaller types.

    python benchmarks/dtype_error.py
    python benchmarks/dtype_error.py --dtype int8 bfloat16 --prompts 50 --candidates 8
    python benchmarks/dtype_error.py --model runs/emoji/bundle

Against the float32 model, with the same prompts, seeds and keys:

- greedy: the share of likeliest tokens that stay the likeliest. float32's own tokens stand before each, so that one
  difference does not count again in the tokens after it. One place of each picture is compared, each in turn.
- drawn: the same for tokens that are drawn by chance, with the model's own temperature and top_k.
- CLIP score, mean over all candidates and of the best, and the judged emoji and background of CLIP's pick.

The prompts ask for things on a colour that training never showed them on.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from dalle_mini import DalleMini
from dalle_mini.emoji.packages import default_folder
from dalle_mini.emoji.styled_prompts import GROUND, StyledPrompt
from dalle_mini.generation import generate_tokens
from dalle_mini.generation.scheduling import image_keys
from styled_stages import Bundle, held_out, judged_parts

TOGETHER = 4  # captions in a call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", metavar="FOLDER", help="a bundle (default: the shipped model)")
    parser.add_argument("--art", metavar="FOLDER", type=Path, help="of the drawn styles (default: the user's cache)")
    parser.add_argument("--dtype", nargs="+", default=["int8", "bfloat16"], choices=["int8", "bfloat16", "float16"])
    parser.add_argument("--prompts", type=int, default=25)
    parser.add_argument("--candidates", type=int, default=8)
    args = parser.parse_args()
    world = Bundle.load(args.model, args.art or default_folder())
    exact, asked = world.pipe, held_out(GROUND, args.prompts, world)
    expected = {greedy: tokens_of(exact, asked, args.candidates, greedy) for greedy in (True, False)}
    print(
        "| dtype | greedy tokens kept | drawn tokens kept | CLIP score, mean | of the pick | right emoji | background |"
    )
    print("|---|---|---|---|---|---|---|")
    for dtype in ["float32", *args.dtype]:
        pipe = exact if dtype == "float32" else DalleMini.from_pretrained(args.model, dtype=dtype)
        kept = [agreement(pipe, asked, expected[greedy], greedy) for greedy in (True, False)]
        quality = pictures(pipe, asked, args.candidates, world.judge)
        print(f"| {dtype} | {kept[0]:.2%} | {kept[1]:.2%} | {quality} |", flush=True)


def text(pipe, asked):
    requests = pipe.requests([one.caption for one in asked])
    return (
        np.stack([request.ids[0] for request in requests]),
        np.stack([request.mask[0] for request in requests]),
        requests[0].settings,
    )


def tokens_of(pipe, asked, candidates: int, greedy: bool, forced=None) -> np.ndarray:
    """int32 [prompts, candidates, image_length], drawn without guidance, as the shipped model does."""
    ids, mask, settings = text(pipe, asked)
    keys = image_keys([(0, one.caption) for one in asked], np.arange(candidates))
    chance = {"temperature": settings.temperature, "top_k": 1 if greedy else settings.top_k}
    codebook = pipe.vqgan.codebook_size
    parts = []
    for start in range(0, len(asked), TOGETHER):
        part = slice(start, start + TOGETHER)
        fixed = None if forced is None else forced[part]
        parts.append(
            generate_tokens(
                pipe.model, ids[part], mask[part], keys[part],
                guidance=1.0, codebook_size=codebook, forced=fixed, **chance,
            )
        )  # fmt: skip
    return np.concatenate(parts)


def agreement(pipe, asked, expected: np.ndarray, greedy: bool) -> float:
    """Candidate c of C gets its tokens up to place (c + 1/2) / C of the image; is the one there the same?"""
    candidates, length = expected.shape[1:]
    places = (np.arange(candidates) + 0.5) * length // candidates
    forced = np.where(np.arange(length) < places[:, None], expected, -1)
    drawn = tokens_of(pipe, asked, candidates, greedy, forced)
    at = places.astype(int)[None, :, None]
    return float(np.mean(np.take_along_axis(drawn, at, 2) == np.take_along_axis(expected, at, 2)))


def pictures(pipe, asked: list[StyledPrompt], candidates: int, judge) -> str:
    results = pipe.generate([one.caption for one in asked], candidates=candidates, keep=candidates)
    scores = np.array([result.scores for result in results])
    judged = judge(np.stack([np.asarray(result.images[0]) for result in results]))
    parts = [judged_parts(one, found) for one, found in zip(asked, judged, strict=True)]
    emoji, color = (np.mean([one[part] for one in parts]) for part in ("things", "ground"))
    return f"{scores.mean():.2f} | {scores.max(axis=1).mean():.2f} | {emoji:.0%} | {color:.0%}"


if __name__ == "__main__":
    sys.exit(main())

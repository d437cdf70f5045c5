"""How far can the judge of scenes be trusted? Its verdicts on pictures whose content is known.

    python benchmarks/scene_judge.py --size 64 --vqgan src/dalle_mini/assets/emoji/vqgan --json

Draws the right pictures of held-out scene prompts, a third of them with size words, and judges them as they are, at
half resolution with noise, and after a VQGAN; and each of them for two other emoji, for one right and one wrong, and
for the one that looks most like the right one. Prints the table that stands in `emoji/scene_judge.py`.
"""

import argparse
import json
import random
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from dalle_mini.commands.terminal import Parser, exit_code
from dalle_mini.emoji.art import GRID, Emoji, find_font
from dalle_mini.emoji.scene_judge import SceneJudge
from dalle_mini.emoji.scene_prompts import ScenePrompt, held_out_scenes, is_right
from dalle_mini.emoji.scenes import SIZES, TWO, Background, Scene, arrange, draw
from dalle_mini.emoji.vocabulary import pixel_distances, scene_emoji
from dalle_mini.errors import UserError

NOISE = 20  # standard deviation, of 255
COLUMNS = {
    "pair_accuracy": "both present",
    "relation_accuracy": "and related",
    "two_others": "two others",
    "one_other": "one other",
    "look_alike": "look-alike",
    "others_related": "others related",
}


def main() -> int:
    head, _, rest = __doc__.partition("\n")
    parser = Parser(description=head, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", metavar="N", type=int, default=90, help="(default: 90)")
    parser.add_argument("--size", metavar="N", type=int, default=64, help="of the pictures, pixels (default: 64)")
    parser.add_argument("--vqgan", metavar="FOLDER", help="of that resolution (default: none)")
    parser.add_argument("--seed", metavar="N", type=int, default=1, help="(default: 1)")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")

    def run() -> None:
        args = parser.parse_args()
        figures = measure(args.prompts, args.size, args.vqgan, args.seed)
        if args.json:
            print(json.dumps({"prompts": args.prompts, "size": args.size, "seed": args.seed, **figures}))

    return exit_code(run)


def measure(count: int, size: int, vqgan: str | None, seed: int) -> dict[str, dict[str, float]]:
    if size < GRID or size % GRID:
        raise UserError(f"picture size {size} is not a multiple of {GRID} pixels")
    emoji = scene_emoji()
    prompts = held_out_scenes(count, emoji, seed)
    exact = np.stack([known_picture(prompt, number, size) for number, prompt in enumerate(prompts)])
    shown = {"exact": exact, "soft and noisy": damaged(exact, seed)}
    if vqgan:
        shown["VQGAN"] = copied(exact, vqgan)
    judge = SceneJudge(size)
    print(f"{'':<16}" + "".join(f"{title:>16}" for title in COLUMNS.values()))
    figures = {}
    for name, images in shown.items():
        figures[name] = verdicts(judge, images, prompts, look_alikes(emoji))
        print(f"{name:<16}" + "".join(f"{figures[name][key]:>16.1%}" for key in COLUMNS), flush=True)
    return figures


def known_picture(prompt: ScenePrompt, number: int, size: int) -> np.ndarray:
    rng = random.Random(f"dalle-mini scene judge {number}")
    sizes = SIZES[number // 3 % len(SIZES)] if number % 3 == 0 else (None, None)
    things = arrange(rng, prompt.relation, [(prompt.first, sizes[0])], [(prompt.second, sizes[1])])
    return draw(Scene(prompt.caption, things, Background((prompt.color or "white",)), TWO), size)


def damaged(images: np.ndarray, seed: int) -> np.ndarray:
    side = images.shape[1]
    halves = (Image.fromarray(image).resize((side // 2, side // 2), Image.Resampling.BOX) for image in images)
    soft = np.stack([np.asarray(half.resize((side, side), Image.Resampling.BICUBIC)) for half in halves])
    return np.clip(soft + np.random.default_rng(seed).normal(0, NOISE, soft.shape), 0, 255).astype(np.uint8)


def copied(images: np.ndarray, folder: str | Path) -> np.ndarray:
    from dalle_mini.evaluation.reconstruction import psnr, reconstruct
    from dalle_mini.imaging.pixels import to_uint8
    from dalle_mini.models import VQGAN

    pictures = reconstruct(VQGAN.from_pretrained(folder), images)[0]
    print(f"the VQGAN copies these pictures with a PSNR of {psnr(images, pictures):.1f} dB")
    return to_uint8(pictures)


def look_alikes(emoji: list[Emoji]) -> dict[Emoji, Emoji]:
    distances = pixel_distances(find_font(), emoji)
    np.fill_diagonal(distances, np.inf)
    return {one: emoji[int(np.argmin(row))] for one, row in zip(emoji, distances, strict=True)}


def verdicts(
    judge: SceneJudge, images: np.ndarray, prompts: list[ScenePrompt], alike: dict[Emoji, Emoji]
) -> dict[str, float]:
    others = [*prompts[1:], prompts[0]]
    started = time.process_time()
    right = judge(images, [(one.first, one.second) for one in prompts])
    seconds = (time.process_time() - started) / len(images)
    wrong = judge(images, [(other.first, other.second) for other in others])
    half = judge(images, [(one.first, other.second) for one, other in zip(prompts, others, strict=True)])
    twins = judge(images, [(one.first, alike[one.second]) for one in prompts])
    return {
        "pair_accuracy": float(np.mean([one.both_present for one in right])),
        "relation_accuracy": float(
            np.mean([is_right(one, prompt) for one, prompt in zip(right, prompts, strict=True)])
        ),
        "two_others": float(np.mean([one.both_present for one in wrong])),
        "one_other": float(np.mean([one.both_present for one in half])),
        "look_alike": float(np.mean([one.second.present for one in twins])),
        "others_related": float(
            np.mean([one.is_related(prompt.relation) for one, prompt in zip(wrong, others, strict=True)])
        ),
        "cpu_seconds": round(seconds, 3),
    }


if __name__ == "__main__":
    sys.exit(main())

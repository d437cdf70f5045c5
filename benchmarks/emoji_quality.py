"""How often does the model draw the emoji that was asked for, on the colour that was asked for?

    python benchmarks/emoji_quality.py
    python benchmarks/emoji_quality.py --model runs/emoji/bundle --prompts 20 --json

Asks for pairs of emoji and background colour that training never showed together ("a snail on a yellow background"),
and for scenes of two emoji that it never showed together ("a snail to the left of a red apple"), draws some candidates
each, ranks them with CLIP, and judges them by the nearest of all the emoji that the font draws. Prints the shares that
were right and what was mistaken for what, and writes `contact_sheet.png`, `scenes.png` and `quality.json`, with every
judgement, into the output folder. Also measured: what the VQGAN loses on held-out pictures, and the same figures of
another model, such as the first edition, with `--baseline`.
"""

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dalle_mini.commands.terminal import exit_code
from dalle_mini.emoji.art import MEDIUM, Emoji, EmojiImages, all_emoji, everyday_emoji, find_font, render
from dalle_mini.emoji.judge import (
    EmojiJudge,
    EmojiPrompt,
    Judgement,
    held_out_prompts,
    mistakes,
    pick_gain,
    plain_caption,
    score,
)
from dalle_mini.emoji.layout import SCENE_SCALES
from dalle_mini.emoji.scene_judge import SceneJudge, SceneJudgement
from dalle_mini.emoji.scene_prompts import (
    ScenePrompt,
    held_out_scenes,
    is_right,
    right_image,
    score_scenes,
    single_caption,
)
from dalle_mini.emoji.tidy import WIDTH, TidyScenes
from dalle_mini.errors import UserError
from dalle_mini.reports.contact_sheet import PARTLY, RIGHT, WRONG, Entry, contact_sheet
from dalle_mini.results.write import check_writable
from dalle_mini.settings import GenerationSettings
from quality_options import generation_settings, quality_parser

EMOJI_LIST = "emoji.json"  # in a bundle: the names of the emoji that the model was trained on
SCENES = "scenes.json"  # in a bundle: {"tidy": true} where it was trained on `TidyScenes`
MISTAKES_SHOWN = 40
PAIRS = 256  # held-out captions and pictures that CLIP has to match


def main(argv: list[str] | None = None) -> int:
    return exit_code(lambda: measure(parse(argv)))


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = quality_parser(__doc__, "runs/emoji_quality")
    add = parser.add_argument
    add("--vqgan", metavar="FOLDER", help="VQGAN's folder (default: the bundle's)")
    add("--clip", metavar="FOLDER", help="CLIP's folder (default: the bundle's)")
    add("--prompts", metavar="N", type=int, default=100, help="held-out pairs (default: 100)")
    add("--scene-prompts", metavar="N", type=int, default=100, help="held-out scenes of two; 0: none (default: 100)")
    add("--reconstructions", metavar="N", type=int, default=1024, help="pictures for the VQGAN (default: 1024)")
    add("--font", metavar="FILE", help="NotoColorEmoji.ttf (default: where Debian puts it)")
    return parser.parse_args(argv)


def measure(args: argparse.Namespace) -> None:
    started = time.perf_counter()
    settings = generation_settings(args)
    if args.reconstructions < 1:
        raise UserError(f"reconstructions {args.reconstructions}: at least 1 picture is needed")
    if args.scene_prompts < 0:
        raise UserError(f"scene prompts {args.scene_prompts}: at least 0")
    output = check_writable(args.output)
    font = find_font(args.font)

    from dalle_mini.pipeline import DalleMini  # after the checks: jax and the weights take seconds

    say("loading the model")
    pipe = DalleMini.from_pretrained(args.model, vqgan=args.vqgan, clip=args.clip)
    baseline = DalleMini.from_pretrained(args.baseline) if args.baseline else None
    known = known_emoji(pipe.folders["dalle"], font)
    words = single_caption if is_tidy(pipe.folders["dalle"]) else plain_caption
    prompts = held_out_prompts(args.prompts, known, args.seed, words)
    scenes = held_out_scenes(args.scene_prompts, known, args.seed) if args.scene_prompts else []
    judges = draw_judges(pipe, font, bool(scenes))

    vqgan = measure_vqgan(pipe, judges, prompts, scenes, known, args.reconstructions, font)
    clip = measure_clip(pipe, known, font)
    drawn = draw_and_judge(pipe, judges, prompts, scenes, settings)
    gain, error = pick_gain(
        [[one.is_emoji(prompt) for one in row] for prompt, row in zip(prompts, drawn.judged, strict=True)]
    )

    figures = {**drawn.shares(), "pick_gain": gain, "pick_gain_error": error, **vqgan, **clip}
    figures |= {"prompts": args.prompts, "scene_prompts": args.scene_prompts, "candidates": args.candidates}
    figures |= {"emoji_known": len(known), "reconstructions": args.reconstructions}
    figures |= {name: getattr(settings, name) for name in ("seed", "top_p")}
    figures |= {name: getattr(drawn.results[0].settings, name) for name in ("guidance", "temperature", "top_k")}
    figures |= pipe.provenance()
    if baseline is not None:
        say(f"the same of {args.baseline}")
        shares = draw_and_judge(baseline, draw_judges(baseline, font, bool(scenes)), prompts, scenes, settings).shares()
        figures |= {f"baseline_{name}": share for name, share in shares.items()}
        figures["baseline"] = baseline.provenance()
    figures["seconds"] = round(time.perf_counter() - started, 1)
    write(output, figures, drawn)
    print_report(figures, drawn)
    print(f"\n{output / 'contact_sheet.png'}\n{output / 'quality.json'}\n{figures['seconds']:.0f} seconds")
    if args.json:
        print(json.dumps(figures))


@dataclasses.dataclass(frozen=True)
class Judges:
    """For one model's pictures; `pairs` is None where no scenes are asked for."""

    single: EmojiJudge
    pairs: SceneJudge | None


def draw_judges(pipe, font: Path, scenes: bool) -> Judges:
    """They look for emoji of the widths in which the model learned to draw them."""
    size, tidy = pipe.vqgan.config.resolution, is_tidy(pipe.folders["dalle"])
    single = EmojiJudge(
        size, font=font, scales=(WIDTH if tidy else MEDIUM,), progress=every(1000, "emoji drawn to judge by")
    )
    if not scenes:
        return Judges(single, None)
    scales = (WIDTH,) if tidy else SCENE_SCALES
    return Judges(
        single, SceneJudge(size, font=font, scales=scales, progress=every(1000, "emoji drawn to judge scenes by"))
    )


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A model's drawings: the judgements of each prompt's candidates, best first, and the pipeline's results."""

    prompts: list[EmojiPrompt]
    judged: list[list[Judgement]]
    results: list[Any]
    scenes: list[ScenePrompt]
    scenes_judged: list[list[SceneJudgement]]
    scene_results: list[Any]

    def shares(self) -> dict[str, float]:
        shares = dataclasses.asdict(score(self.prompts, self.judged))
        return shares | (dataclasses.asdict(score_scenes(self.scenes, self.scenes_judged)) if self.scenes else {})


def known_emoji(dalle: Path, font: Path) -> list[Emoji]:
    """The emoji that the model was trained on: those of the bundle's `emoji.json`, or the everyday ones."""
    path = next((path for path in (dalle.parent / EMOJI_LIST, dalle / EMOJI_LIST) if path.is_file()), None)
    if path is None:
        return everyday_emoji(font)
    try:
        names = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); a list of emoji names is expected") from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f'{path}: a list of emoji names is expected, such as ["snail", "red apple"]')
    by_name = {one.name: one for one in all_emoji(font)}
    if unknown := [name for name in names if name not in by_name]:
        raise UserError(f"{path}: no emoji of {font.name} has the name {unknown[0]!r}")
    return [by_name[name] for name in dict.fromkeys(names)]


def is_tidy(dalle: Path) -> bool:
    """Whether the model was trained on tidy scenes: its bundle's `scenes.json` says so."""
    path = next((path for path in (dalle.parent / SCENES, dalle / SCENES) if path.is_file()), None)
    if path is None:
        return False
    try:
        return bool(json.loads(path.read_text("utf-8"))["tidy"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f'{path}: {{"tidy": true}} or false is expected ({error})') from None


def measure_vqgan(pipe, judges: Judges, prompts, scenes, known, count: int, font: Path) -> dict[str, float]:
    """Losses on held-out pictures, and how the judge does on the prompts' own pictures after the VQGAN: the ceiling.

    On pictures of two also before it: where one hides nothing of the other, no picture shows who is in front.
    """
    from dalle_mini.evaluation.reconstruction import codebook_use, psnr, reconstruct
    from dalle_mini.imaging.pixels import to_uint8

    vqgan, tidy = pipe.vqgan, is_tidy(pipe.folders["dalle"])
    size = vqgan.config.resolution
    options = {"length": count, "emoji": known, "split": "heldout", "font": font}
    source = TidyScenes(size, **options) if tidy else EmojiImages(size, jitter=1, **options)
    images, _ = source.batch(range(count))
    pictures, tokens = reconstruct(vqgan, images, every(256, "pictures through the VQGAN"))
    scale = WIDTH if tidy else MEDIUM
    asked = np.stack([render(prompt.emoji, prompt.color, size, scale, font=font) for prompt in prompts])
    ceiling = score(prompts, [[one] for one in judges.single(to_uint8(reconstruct(vqgan, asked)[0]))])
    figures = {
        "vqgan_psnr": psnr(images, pictures),
        "codebook_use": codebook_use(tokens, vqgan.config.n_embed),
        "reconstructed_single_accuracy": ceiling.single_accuracy,
        "reconstructed_background_accuracy": ceiling.background_accuracy,
    }
    if scenes:
        asked = np.stack([right_image(prompt, size, font, tidy=tidy) for prompt in scenes])
        for kind, drawn in (("exact", asked), ("reconstructed", to_uint8(reconstruct(vqgan, asked)[0]))):
            seen = judges.pairs(drawn, [(one.first, one.second) for one in scenes])
            best = score_scenes(scenes, [[one] for one in seen])
            figures[f"{kind}_pair_accuracy"] = best.pair_accuracy
            figures[f"{kind}_relation_accuracy"] = best.relation_accuracy
    return figures


def measure_clip(pipe, known: list[Emoji], font: Path) -> dict[str, float]:
    """The shares of held-out captions that find their picture, and of pictures that find their caption."""
    import jax

    from dalle_mini.evaluation.retrieval import recalls
    from dalle_mini.imaging.clip_pixels import clip_pixels

    source = TidyScenes if is_tidy(pipe.folders["dalle"]) else EmojiImages
    options = {"length": PAIRS, "emoji": known, "split": "heldout", "font": font}
    images, captions = source(pipe.vqgan.config.resolution, **options).batch(range(PAIRS))
    clip, ranker = pipe.ranker.clip, pipe.ranker
    pixels = clip_pixels(images, ranker.preprocessor_config)
    ids, mask = ranker.tokenizer(captions, clip.config.text.max_position_embeddings)
    pictures = np.concatenate([clip.image_embeds(pixels[start : start + 32]) for start in range(0, PAIRS, 32)])
    found = recalls(unit(pictures), unit(np.asarray(jax.device_get(clip.text_embeds(ids, mask)))), captions)
    return {"clip_recall": found["recall"], "clip_caption_recall": found["caption_recall"]}


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def draw_and_judge(
    pipe, judges: Judges, prompts: list[EmojiPrompt], scenes: list[ScenePrompt], settings: GenerationSettings
) -> Drawn:
    """Both kinds of prompts, drawn and judged one after the other, with a line for each on stderr."""

    def is_wanted(prompt: EmojiPrompt, judgement: Judgement) -> bool:
        return judgement.is_emoji(prompt)

    def both(prompt: ScenePrompt, judgement: SceneJudgement) -> bool:
        return judgement.both_present

    def look_for_two(images: np.ndarray, prompt: ScenePrompt) -> list[SceneJudgement]:
        return judges.pairs(images, [(prompt.first, prompt.second)] * len(images))

    singles = draw_each(pipe, prompts, settings, lambda images, _: judges.single(images), is_wanted, single_verdict)
    pairs = draw_each(pipe, scenes, settings, look_for_two, both, scene_verdict) if scenes else ([], [])
    return Drawn(prompts, *singles, scenes, *pairs)


def draw_each(
    pipe, prompts: Sequence[Any], settings: GenerationSettings, judge: Callable, is_hit: Callable, verdict: Callable
) -> tuple[list[list[Any]], list[Any]]:
    """Judgements of each prompt's candidates, best first, and the pipeline's results."""
    judged, results = [], []
    started = time.perf_counter()
    right = 0
    stream = pipe.generate_each([prompt.caption for prompt in prompts], settings)
    for number, (prompt, result) in enumerate(zip(prompts, stream, strict=True), 1):
        row = judge(np.stack([np.asarray(image) for image in result.images]), prompt)
        judged.append(row)
        results.append(result)
        right += is_hit(prompt, row[0])
        hits = sum(is_hit(prompt, one) for one in row)
        left = (time.perf_counter() - started) / number * (len(prompts) - number)
        say(
            f"[{number}/{len(prompts)}] {prompt.caption}: {verdict(prompt, row[0])[1] or 'right'}; "
            f"{hits} of {len(row)} candidates right, {right} of {number} picks so far, {left / 60:.1f} min left"
        )
    return judged, results


def single_verdict(prompt: EmojiPrompt, seen: Judgement) -> tuple[str, str]:
    """The frame's colour, and what was seen instead."""
    color = WRONG if not seen.is_emoji(prompt) else RIGHT if seen.is_color(prompt) else PARTLY
    return color, "" if color == RIGHT else f"judged: {seen.name} on {seen.color}"


def scene_verdict(prompt: ScenePrompt, seen: SceneJudgement) -> tuple[str, str]:
    if is_right(seen, prompt):
        return RIGHT, ""
    if seen.both_present:
        return PARTLY, f"not {prompt.relation}"
    missing = [one for one in (seen.first, seen.second) if not one.present]
    instead = [one.names[0] if one.names else "nothing" for one in missing]
    return WRONG, "; ".join(f"{one.emoji.name}: judged {other}" for one, other in zip(missing, instead, strict=True))


def print_report(figures: dict, drawn: Drawn) -> None:
    rows = {
        f"CLIP's pick of {figures['candidates']}": "",
        "a random candidate (the mean over all)": "random_",
        "any candidate (a perfect ranking)": "any_",
        "the VQGAN's copy of the right picture": "reconstructed_",
    }
    if "baseline" in figures:
        rows |= {"the baseline's pick": "baseline_", "a random candidate of the baseline": "baseline_random_"}
    print(f"\n{figures['prompts']} held-out prompts{'':22}right emoji   right background")
    for label, kind in rows.items():
        emoji, color = figures[f"{kind}single_accuracy"], figures[f"{kind}background_accuracy"]
        print(f"{label:<40} {emoji:>11.1%} {color:>18.1%}")
    error = figures["pick_gain_error"]
    spread = "" if error is None else f" ± {error:.1%} (standard error over prompts)"
    print(f"{'the pick minus a random candidate':<40} {figures['pick_gain']:>+11.1%}{spread}")
    if drawn.scenes:
        print(f"\n{figures['scene_prompts']} scenes of two never seen together{'':6}both emoji   and their relation")
        for label, kind in rows.items():
            pair, relation = figures[f"{kind}pair_accuracy"], figures[f"{kind}relation_accuracy"]
            print(f"{label:<40} {pair:>11.1%} {relation:>20.1%}")
    print(f"\nVQGAN on {figures['reconstructions']} held-out pictures: ", end="")
    print(f"PSNR {figures['vqgan_psnr']:.2f} dB, codebook use {figures['codebook_use']:.1%}")
    print(f"CLIP among {PAIRS} held-out pairs: recall@1 {figures['clip_recall']:.1%} of captions, ", end="")
    print(f"{figures['clip_caption_recall']:.1%} of pictures")
    for what, background in (("emoji", False), ("background", True)):
        found = mistakes(drawn.prompts, drawn.judged, background)
        total = sum(one.count for one in found)
        print(f"\nwrong {what}: {total} of {sum(map(len, drawn.judged))} candidates (* CLIP's pick)")
        width = max((len(one.caption) for one in found[:MISTAKES_SHOWN]), default=0)
        for one in found[:MISTAKES_SHOWN]:
            print(f"{one.count:>5} {'*' if one.picked else ' '} {one.caption:<{width}}  judged {one.judged}")
        if len(found) > MISTAKES_SHOWN:
            rest = found[MISTAKES_SHOWN:]
            print(f"{sum(one.count for one in rest):>5}   in {len(rest)} more rows: see quality.json")


def sheets(drawn: Drawn) -> dict[str, Image.Image]:
    """CLIP's pick for each prompt, framed by the verdict, with what the judge saw where it is wrong."""
    pages = {
        "contact_sheet.png": (
            {"right": RIGHT, "wrong background": PARTLY, "wrong emoji": WRONG},
            [drawn.prompts, drawn.judged, drawn.results],
            single_verdict,
        ),
        "scenes.png": (
            {"right": RIGHT, "wrong relation": PARTLY, "an emoji is missing": WRONG},
            [drawn.scenes, drawn.scenes_judged, drawn.scene_results],
            scene_verdict,
        ),
    }
    return {
        name: contact_sheet(
            [
                Entry(result.images[0], prompt.caption, *verdict(prompt, row[0]))
                for prompt, row, result in zip(*rows, strict=True)
            ],
            legend,
        )
        for name, (legend, rows, verdict) in pages.items()
        if rows[0]
    }


def write(output: Path, figures: dict, drawn: Drawn) -> None:
    """The contact sheets, and the figures with every judgement; each file whole or not at all."""
    details, scenes = (
        [
            {**dataclasses.asdict(prompt), "judged": [dataclasses.asdict(one) for one in row]}
            for prompt, row in zip(prompts, judged, strict=True)
        ]
        for prompts, judged in ((drawn.prompts, drawn.judged), (drawn.scenes, drawn.scenes_judged))
    )
    text = json.dumps({**figures, "details": details, "scenes": scenes}, indent=1, ensure_ascii=False)
    partial = output / f".partial.{os.getpid()}"
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name, sheet in sheets(drawn).items():
            sheet.save(partial, format="PNG")
            partial.rename(output / name)
        partial.write_text(text + "\n", "utf-8")
        partial.rename(output / "quality.json")
    except OSError as error:
        raise UserError(f"--output {output} cannot be written: {error}") from None
    finally:
        partial.unlink(missing_ok=True)


def every(count: int, what: str):
    """A progress callback that says a line each `count` steps and at the end."""

    def report(done: int, total: int) -> None:
        if done % count == 0 or done == total:
            say(f"{done} of {total} {what}")

    return report


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

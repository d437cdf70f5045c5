"""How often does a model of several styles draw what was asked for, in the style that was asked for?

    python benchmarks/styled_quality.py --model runs/emoji/bundle
    python benchmarks/styled_quality.py --model runs/emoji/bundle --prompts 20 --candidates 4 --json
    python benchmarks/styled_quality.py --judge 200 --vqgan runs/emoji/codebook

Asks for what training never showed: things on a ground, things in a style, two things together, a thing with an
unknown word; and for what new users type (everyday_prompts.txt). Draws candidates of each, ranks them with CLIP, and
judges CLIP's pick and some of the others without a network, against all things in all styles. Also measured: copies of
held-out scenes in each style, CLIP's recall, and how much candidates differ where a caption leaves things open. Writes
`quality.json` and a contact sheet for each kind into the output folder. A run that was ended goes on.

--judge and --vqgan take no model. --judge tells how often the judge is right about that many scenes whose content is
known. --vqgan measures copies of held-out scenes in each style, and lets the judge see copies too. The VQGAN that
make_codebook.py writes decodes as plain k-means patches: its figures are the bound that a trained decoder should pass.
"""

import argparse
import dataclasses
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dalle_mini.commands.terminal import Parser, exit_code
from dalle_mini.emoji.art import Emoji
from dalle_mini.emoji.everyday import EverydayPrompt, read_everyday_prompts
from dalle_mini.emoji.judge import pick_gain, shares
from dalle_mini.emoji.packages import default_folder
from dalle_mini.emoji.scenes import Scene
from dalle_mini.emoji.styled import StyledScenes, draw_styled
from dalle_mini.emoji.styled_judge import StyledJudge, StyledJudgement
from dalle_mini.emoji.styled_prompts import KINDS, Verdict, held_out_prompts, right_scene, verdict
from dalle_mini.emoji.styles import SHIPPED_STYLES, open_style
from dalle_mini.emoji.things import drawn_things, things
from dalle_mini.emoji.words import Lexicon, read_annotations
from dalle_mini.errors import UserError
from dalle_mini.reports.contact_sheet import PARTLY, RIGHT, WRONG, Entry, contact_sheet
from dalle_mini.results.write import check_writable
from dalle_mini.runtime import files, parsing
from dalle_mini.settings import GenerationSettings

EVERYDAY, OPEN = "everyday", "open"
PARTIAL = "partial.json"  # in the output folder: what a run that was ended had measured
PROMPTS = Path(__file__).with_name("everyday_prompts.txt")
PARTS = [field.name for field in dataclasses.fields(Verdict)]
SIZE, PAIRS, COPIES = 256, 256, 64  # pixels; held-out pairs for CLIP; copied scenes of each style


def main(argv: list[str] | None = None) -> int:
    return exit_code(lambda: measure(parse(argv)))


def parse(argv: list[str] | None) -> argparse.Namespace:
    head, _, rest = __doc__.partition("\n")
    parser = Parser(description=head, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", metavar="FOLDER", help="a bundle (default: the shipped model)")
    add("--judge", metavar="N", type=int, help="judge N scenes whose content is known, and draw nothing")
    add("--vqgan", metavar="FOLDER", help="measure what it copies, and draw nothing")
    add("--art", metavar="FOLDER", type=Path, help="of the drawn styles (default: the user's cache)")
    add("--prompts", metavar="N", type=int, default=100, help="of each kind, at most (default: 100)")
    add("--everyday", metavar="N", type=int, default=200, help="prompts in everyday words (default: 200)")
    add("--open", metavar="N", type=int, default=50, help="captions that leave things open (default: 50)")
    add("--candidates", metavar="N", type=int, default=16, help="pictures drawn for each prompt (default: 16)")
    add("--judged", metavar="N", type=int, default=4, help="of them, CLIP's pick and others by lot (default: 4)")
    add("--seed", metavar="N", type=int, default=0, help="of the choice of prompts and of the pictures (default: 0)")
    add("--guidance", metavar="X", type=float, help="(default: the model's)")
    add("--temperature", metavar="X", type=float, help="(default: the model's)")
    add("--top-k", metavar="K", type=int, help="(default: the model's)")
    add("--output", metavar="FOLDER", default="runs/styled_quality", help="(default: runs/styled_quality)")
    add("--json", action="store_true", help="end with one line of JSON")
    return parser.parse_args(argv)


def measure(args: argparse.Namespace) -> None:
    for name in ("prompts", "candidates", "judged"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: at least 1")
    folder = args.art or default_folder()
    parts = args.judge is not None or args.vqgan is not None
    figures = measure_parts(args, folder) if parts else measure_model(args, folder)
    for name, value in figures.items():
        if isinstance(value, dict):
            value.pop("rows", None)
        print(f"{name}: {json.dumps(value)}")
    if args.json:
        print(json.dumps(figures))


def measure_parts(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """A VQGAN's copies, and the judge on true pictures and on copies."""
    from dalle_mini.models import VQGAN

    figures: dict[str, Any] = {}
    vqgan = VQGAN.from_pretrained(args.vqgan) if args.vqgan else None
    if vqgan is not None:
        figures["copies"] = measure_copies(vqgan, things(), SHIPPED_STYLES, folder)
    if args.judge is not None:
        figures |= judge_the_judge(args.judge, folder, args.seed, vqgan)
    return figures


def judge_the_judge(count: int, folder: Path, seed: int, vqgan: Any = None) -> dict[str, Any]:
    """How often the judge is right about true pictures, and about what a VQGAN makes of them."""
    source = StyledScenes(SIZE, seed, 10**6, folder=folder)
    scenes = [source.scene(index) for index in range(count)]
    painted = [(thing.emoji.characters, thing.color) for one in scenes for thing in one.things if thing.color]
    judge = StyledJudge(folder=folder, painted=painted)
    images, _ = source.batch(range(count))
    figures: dict[str, Any] = {
        "scenes": count,
        "drawings": len(judge.drawings),
        "exact": seen_of(judge, scenes, images),
    }
    if vqgan is not None:
        figures["copied"] = seen_of(judge, scenes, copies(vqgan, images))
    return figures


def seen_of(judge: StyledJudge, scenes: Sequence[Scene], images: np.ndarray) -> dict[str, float]:
    """The shares of the things that are seen, in their boxes, and of the pictures with a false speck."""
    started = time.process_time()
    judged = judge(images)
    seconds = (time.process_time() - started) / len(images)
    seen = []
    for scene, found in zip(scenes, judged, strict=True):
        boxes = {one.box: one for one in found.seen}
        seen += [(boxes.get(thing.box), thing) for thing in scene.things]
    return {
        "thing": share(one is not None and one.shows(thing.emoji) for one, thing in seen),
        "style": share(one is not None and one.has_style(thing.style) for one, thing in seen),
        "thing_and_style": share(one is not None and one.shows(thing.emoji, thing.style) for one, thing in seen),
        "ground": share(found.ground == scene.background for scene, found in zip(scenes, judged, strict=True)),
        "false_specks": share(found.specks > 0 for found in judged),
        "processor_seconds": round(seconds, 3),
    }


def share(values) -> float:
    return round(float(np.mean(list(values))), 4)


def measure_model(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    settings = GenerationSettings(
        candidates=args.candidates,
        keep=args.candidates,
        seed=args.seed,
        guidance=args.guidance,
        temperature=args.temperature,
        top_k=args.top_k,
    )
    output = check_writable(args.output)

    from dalle_mini.pipeline import DalleMini  # after the checks: jax and the weights take seconds

    pipe = DalleMini.from_pretrained(args.model)
    known, styles = known_world(pipe.folders["dalle"].parent)
    say(f"drawing {len(drawn_things())} things in {len(styles)} styles to judge by")
    judge = StyledJudge(styles, folder)

    def measure_kind(kind: str) -> dict[str, Any]:
        prompts = held_out_prompts(kind, count_of(kind, args.prompts, known, styles), known, styles, args.seed)
        exact = [draw_styled(right_scene(one, styles), SIZE, art(styles, folder)) for one in prompts]
        ceiling = judge(copies(pipe.vqgan, np.stack(exact)))
        right = [dataclasses.asdict(verdict(*both)) for both in zip(prompts, ceiling, strict=True)]
        found = draw_and_judge(pipe, judge, prompts, settings, args.judged, output / f"{kind.replace(' ', '_')}.png")
        return found | {"copied": {part: share(one[part] for one in right) for part in PARTS}}

    there = {one.characters.replace("\ufe0f", "") for one in known}
    everyday = [
        one for one in read_everyday_prompts(PROMPTS) if all(there >= {*wanted.things} for wanted in one.wanted)
    ][: args.everyday]
    stages: dict[str, Callable[[], Any]] = {
        "copies": lambda: measure_copies(pipe.vqgan, known, styles, folder),
        "clip": lambda: measure_clip(pipe, known, styles, folder),
        **{kind: partial(measure_kind, kind) for kind in KINDS},
    }
    if everyday:
        sheet = output / f"{EVERYDAY}.png"
        stages[EVERYDAY] = lambda: draw_and_judge(pipe, judge, everyday, settings, args.judged, sheet)
    if chosen := known[:: max(1, len(known) // max(1, args.open))][: args.open]:
        stages[OPEN] = lambda: measure_variety(pipe, judge, chosen, settings)
    asked = {name: value for name, value in vars(args).items() if name not in ("output", "json", "art")}
    about = json.loads(json.dumps({"asked": asked, "models": pipe.provenance()["models"]}))
    figures = measured_before(output / PARTIAL, about)
    for name, stage in stages.items():
        if name not in figures:
            figures[name] = stage()
            files.write_whole(output / PARTIAL, json.dumps({"about": about, "figures": figures}) + "\n")
    figures |= {"things": len(known), "styles": styles, "candidates": args.candidates, "seed": args.seed}
    files.write_whole(output / "quality.json", json.dumps(figures, ensure_ascii=False) + "\n")
    (output / PARTIAL).unlink(missing_ok=True)
    return figures


def measured_before(path: Path, about: dict[str, Any]) -> dict[str, Any]:
    """The figures of a run that was ended, if it asked the same of the same model."""
    try:
        found = parsing.read_object(path)
        return found["figures"] if found["about"] == about else {}
    except (UserError, OSError, ValueError, KeyError):
        return {}


def known_world(bundle: Path) -> tuple[list[Emoji], list[str]]:
    """The things and styles that a bundle was trained on: its emoji.json and scenes.json."""
    try:
        names, scenes = parsing.read_json(bundle / "emoji.json"), parsing.read_object(bundle / "scenes.json")
        by_name = {one.name: one for one in things()}
        return [by_name[name] for name in names], [*scenes["styles"]]
    except (OSError, KeyError, TypeError) as error:
        raise UserError(f"{bundle}: not a model of several styles ({error})") from None


def count_of(kind: str, most: int, known: Sequence[Emoji], styles: Sequence[str]) -> int:
    """As many prompts as there are, where these are fewer than asked for."""
    for count in (most, most // 2, most // 4, most // 8):
        try:
            return len(held_out_prompts(kind, max(1, count), known, styles))
        except UserError:
            continue
    return 1


def art(styles: Sequence[str], folder: Path) -> dict[str, Any]:
    return {style: open_style(style, folder) for style in styles}


def scenes_of(known: Sequence[Emoji], styles: Sequence[str], folder: Path, count: int, split: str = "heldout"):
    words = Lexicon(read_annotations(folder), known)
    source = StyledScenes(SIZE, 7, 10**6, styles, known, split, folder, words)
    return source.batch(range(count))


def copies(vqgan: Any, images: np.ndarray) -> np.ndarray:
    from dalle_mini.evaluation.reconstruction import reconstruct
    from dalle_mini.imaging.pixels import to_uint8

    return to_uint8(reconstruct(vqgan, images)[0])


def measure_copies(vqgan: Any, known: Sequence[Emoji], styles: Sequence[str], folder: Path) -> dict[str, Any]:
    """PSNR and SSIM of copied held-out scenes, by style."""
    from dalle_mini.evaluation.reconstruction import psnr, reconstruct, ssim

    found = {}
    for style in styles:
        images, _ = scenes_of(known, [style], folder, COPIES)
        made, tokens = reconstruct(vqgan, images)
        found[style] = {"psnr": psnr(images, made), "ssim": ssim(images, made), "codes": len(np.unique(tokens))}
    return found


def measure_clip(pipe, known: Sequence[Emoji], styles: Sequence[str], folder: Path) -> dict[str, Any]:
    """The shares of held-out captions that find their picture, and of pictures that find their caption."""
    from dalle_mini.evaluation.retrieval import recalls
    from dalle_mini.imaging.clip_pixels import clip_pixels

    images, captions = scenes_of(known, styles, folder, PAIRS)
    ranker = pipe.ranker
    pixels = clip_pixels(images, ranker.preprocessor_config)
    ids, mask = ranker.tokenizer(captions, ranker.clip.config.text.max_position_embeddings)
    pictures = np.concatenate([ranker.clip.image_embeds(pixels[start : start + 32]) for start in range(0, PAIRS, 32)])
    found = recalls(unit(pictures), unit(np.asarray(ranker.clip.text_embeds(ids, mask))), captions)
    return {"recall": found["recall"], "caption_recall": found["caption_recall"]}


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def judged_parts(prompt: Any, found: StyledJudgement) -> dict[str, bool]:
    """Which parts of its prompt a picture gets right."""
    if isinstance(prompt, EverydayPrompt):
        return {"things": prompt.is_right(found.characters()), "clean": found.specks == 0}
    parts = dataclasses.asdict(verdict(prompt, found))
    unasked = [name for name in ("style", "ground", "relation") if getattr(prompt, name) is None]
    return {part: value for part, value in parts.items() if part not in unasked}


def draw_and_judge(
    pipe, judge: StyledJudge, prompts: Sequence[Any], settings: GenerationSettings, most: int, sheet: Path
) -> dict[str, Any]:
    """The scores, and under "rows" what of each prompt CLIP's pick and some of the other candidates have."""
    rows, entries = [], []
    captions = [getattr(one, "caption", None) or one.text for one in prompts]
    for number, (prompt, result) in enumerate(zip(prompts, pipe.generate_each(captions, settings), strict=True)):
        others = random.Random(number).sample(range(1, len(result.images)), min(most, len(result.images)) - 1)
        images = [np.asarray(result.images[index]) for index in (0, *others)]
        judged = judge(np.stack(images))
        parts = [judged_parts(prompt, one) for one in judged]
        rows.append({"caption": captions[number], "parts": parts, "seen": "".join(judged[0].characters())})
        best = parts[0]
        right = all(value for part, value in best.items() if part != "clean")
        frame = RIGHT if right else PARTLY if best["things"] else WRONG
        wrong = ", ".join(part for part, value in best.items() if not value)
        entries.append(Entry(Image.fromarray(images[0]).resize((128, 128)), captions[number], frame, wrong))
        say(f"[{number + 1}/{len(prompts)}] {captions[number]}: {wrong or 'right'}")
    page = contact_sheet(entries, {"right": RIGHT, "the right things": PARTLY, "wrong": WRONG})
    sheet.parent.mkdir(parents=True, exist_ok=True)
    with files.blamed(sheet), files.writing_whole(sheet) as file:
        page.save(file, format="PNG")
    return scores(rows) | {"rows": rows}


def scores(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Shares of CLIP's picks, of random candidates, and of prompts with any; how much the pick gains."""
    found: dict[str, Any] = {"prompts": len(rows)}
    for part in PARTS:
        right = [[one[part] for one in row["parts"]] for row in rows if part in row["parts"][0]]
        if right:
            pick, mean, some = shares(right)
            gain, error = pick_gain(right)
            found[part] = {"pick": pick, "random": mean, "any": some, "gain": gain, "gain_error": error}
    if styled := [row["parts"][0] for row in rows if "style" in row["parts"][0]]:
        found["things_and_style"] = share(best["things"] and best["style"] for best in styled)
    return found


def measure_variety(pipe, judge: StyledJudge, chosen: Sequence[Emoji], settings: GenerationSettings) -> dict[str, Any]:
    """How many styles, places, sizes and grounds the candidates of "a fox" have, and how often all are a fox."""
    from dalle_mini.emoji.nouns import noun_phrase, spoken

    rows = []
    captions = [noun_phrase(spoken(one.name)) for one in chosen]
    for emoji, result in zip(chosen, pipe.generate_each(captions, settings), strict=True):
        judged = judge(np.stack([np.asarray(image) for image in result.images]))
        first = [(found, found.seen[0]) for found in judged if found.seen and found.seen[0].drawings]
        rows.append(
            {
                "styles": len({one.drawings[0].style for _, one in first}),
                "places": len({(one.box.x, one.box.y) for _, one in first}),
                "sizes": len({one.box.scale for _, one in first}),
                "grounds": len({found.ground for found, _ in first}),
                "right": float(np.mean([len(one.seen) == 1 and one.seen[0].shows(emoji) for one in judged])),
            }
        )
    return {name: round(float(np.mean([row[name] for row in rows])), 3) for name in rows[0]} | {"captions": len(rows)}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

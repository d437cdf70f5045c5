"""The measurements that `styled_quality.py` makes of one bundle, each a stage with a name and figures."""

import dataclasses
import random
import sys
import time
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dalle_mini.emoji.art import Emoji
from dalle_mini.emoji.everyday import CaptionReader, EverydayPrompt, read_everyday_prompts
from dalle_mini.emoji.fidelity import SIZE, right_render
from dalle_mini.emoji.judge import pick_gain, shares
from dalle_mini.emoji.nouns import noun_phrase, spoken
from dalle_mini.emoji.styled import StyledScenes, draw_styled
from dalle_mini.emoji.styled_judge import StyledJudge, StyledJudgement
from dalle_mini.emoji.styled_prompts import (
    KINDS,
    STYLE,
    StyledPrompt,
    Verdict,
    held_out_prompts,
    right_everyday_scene,
    right_scene,
    verdict,
    without_style,
)
from dalle_mini.emoji.styles import open_style
from dalle_mini.emoji.things import drawn_things, things
from dalle_mini.emoji.words import Lexicon, read_annotations
from dalle_mini.errors import UserError
from dalle_mini.reports.contact_sheet import PARTLY, RIGHT, WRONG, Entry, contact_sheet
from dalle_mini.runtime import files, parsing
from dalle_mini.settings import GenerationSettings
from font_art import FontArt

EVERYDAY, OPEN, PRINTED = "everyday", "open", "printed"
COPIED, CLIP = "copies", "clip"
EVERYDAY_PROMPTS = Path(__file__).with_name("everyday_prompts.txt")
PARTS = [field.name for field in dataclasses.fields(Verdict)]
PAIRS, COPIES = 256, 64  # held-out pairs for CLIP; copied scenes of each style
SHEET = {"right": RIGHT, "the right things": PARTLY, "wrong": WRONG}


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A model, and the world that it was trained on.

    Attributes:
        emoji: the things that it knows.
        styles: keys of `STYLES`.
        says_styles: whether its captions tell the style. The second edition knows Noto's alone.
        folder: of the drawn styles.
    """

    pipe: Any
    emoji: Sequence[Emoji]
    styles: Sequence[str]
    says_styles: bool
    folder: Path

    @classmethod
    def load(cls, source: str | None, folder: Path) -> "Bundle":
        from dalle_mini.pipeline import DalleMini  # after the checks: jax and the weights take seconds

        pipe = DalleMini.from_pretrained(source)
        return cls(pipe, *known_world(pipe.folders["dalle"].parent), folder)

    @cached_property
    def art(self) -> dict[str, Any]:
        """Its styles, drawn: the font's for the second edition, which learned them."""
        return {style: open_style(style, self.folder) if self.says_styles else FontArt() for style in self.styles}

    @cached_property
    def judge(self) -> StyledJudge:
        say(f"drawing {len(drawn_things())} things in {len(self.styles)} styles to judge by")
        return StyledJudge(self.art)

    def knows(self, characters: Sequence[str]) -> bool:
        """Whether these things, characters without variation selectors, are all among its own."""
        return {one.characters.replace("\ufe0f", "") for one in self.emoji} >= {*characters}


def known_world(bundle: Path) -> tuple[list[Emoji], list[str], bool]:
    """The things and styles of a bundle, from its emoji.json and scenes.json, and whether captions tell the style."""
    try:
        names, scenes = parsing.read_json(bundle / "emoji.json"), parsing.read_object(bundle / "scenes.json")
        by_name = {one.name: one for one in things()}
        return [by_name[name] for name in names], [*scenes.get("styles", ["noto"])], "styles" in scenes
    except (OSError, KeyError, TypeError) as error:
        raise UserError(f"{bundle}: not a model of emoji that this measures ({error})") from None


@dataclasses.dataclass(frozen=True)
class Stages:
    """The questions to a bundle, and how its answers are judged.

    Attributes:
        world: the bundle whose things, held-out pairs and styles the prompts are about.
        sheets: where contact sheets go.
        judged: pictures of each prompt, CLIP's pick first.
        prompts, everyday, open: how many.
    """

    world: Bundle
    sheets: Path
    settings: GenerationSettings
    judged: int
    prompts: int
    everyday: int
    open: int

    def of(self, bundle: Bundle, name: str = "") -> dict[str, Callable[[], dict[str, Any]]]:
        """The stages of a bundle: name -> a function that measures. `name` distinguishes its contact sheets."""
        found: dict[str, Callable[[], dict[str, Any]]] = {
            COPIED: lambda: measure_copies(bundle.pipe.vqgan, bundle.emoji, bundle.styles, bundle.folder)
        }
        if bundle.says_styles:
            found[CLIP] = lambda: measure_clip(bundle.pipe, bundle.emoji, bundle.styles, bundle.folder)
        asked: dict[str, Sequence[Any]] = {kind: self.held_out(kind, bundle) for kind in KINDS}
        everyday = read_everyday_prompts(EVERYDAY_PROMPTS)
        asked[EVERYDAY] = self.known_to(bundle, everyday)[: self.everyday]
        for kind, prompts in asked.items():
            if prompts:
                found[kind] = partial(self.draw, bundle, prompts, f"{name}{kind.replace(' ', '_')}")
        found[PRINTED] = lambda: self.printed(bundle, f"{name}{PRINTED}")
        emoji = [one for one in self.world.emoji if bundle.knows([one.characters.replace("\ufe0f", "")])]
        if chosen := emoji[:: max(1, len(emoji) // max(1, self.open))][: self.open]:
            found[OPEN] = lambda: measure_variety(bundle.pipe, bundle.judge, chosen, self.settings)
        return found

    def held_out(self, kind: str, bundle: Bundle) -> list[StyledPrompt]:
        """Those prompts of a kind that the bundle can answer, without styles for one that knows none."""
        world = self.world
        if kind == STYLE and not (bundle.says_styles and world.says_styles):
            return []
        prompts = most_prompts(kind, self.prompts, world.emoji, world.styles, self.settings.seed)
        there = set(bundle.emoji)
        prompts = [one for one in prompts if there.issuperset(one.things)]
        return prompts if bundle.says_styles else [without_style(one) for one in prompts]

    def known_to(self, bundle: Bundle, prompts: Sequence[EverydayPrompt]) -> list[EverydayPrompt]:
        return [one for one in prompts if one.wanted and all(bundle.knows(wanted.things) for wanted in one.wanted)]

    def draw(self, bundle: Bundle, prompts: Sequence[Any], sheet: str) -> dict[str, Any]:
        """The shares that are right, and what the VQGAN leaves of right scenes."""
        found = draw_and_judge(bundle, prompts, self.settings, self.judged)
        save_sheet(found.pop("entries"), self.sheets / f"{sheet}.png")
        if bundle.says_styles:
            found["copied"] = ceiling(bundle, prompts)
        return found

    def printed(self, bundle: Bundle, sheet: str) -> dict[str, Any]:
        """The prompts that README, docs, notebook, demo and page print: which of them fail. All should be right."""
        places = printed_places()
        # A general word may ask for things that a pilot lacks.
        read = CaptionReader(Lexicon(read_annotations(bundle.folder)))
        known = CaptionReader(Lexicon(read_annotations(bundle.folder), bundle.emoji))
        prompts = [known(text) for text in places if len(known(text).wanted) == len(read(text).wanted) > 0]
        if not prompts:
            return {"prompts": 0, "not_known": len(places), "failed": []}
        found = draw_and_judge(bundle, prompts, self.settings, self.judged)
        entries = found.pop("entries")
        wrong = [number for number, row in enumerate(found["rows"]) if not row["parts"][0]["things"]]
        failed = [
            {"prompt": prompts[number].text, "seen": found["rows"][number]["seen"], "in": places[prompts[number].text]}
            for number in wrong
        ]
        for one in failed:
            say(f"FAILED: {one['prompt']}: seen {one['seen'] or 'nothing'} ({', '.join(one['in'])})")
        save_sheet([entries[number] for number in wrong] or entries, self.sheets / f"{sheet}.png")
        if bundle.says_styles:
            found["copied"] = ceiling(bundle, prompts)
        return found | {"not_known": len(places) - len(prompts), "failed": failed}


def ceiling(bundle: Bundle, prompts: Sequence[Any]) -> dict[str, Any]:
    """How right the VQGAN's copies of right scenes are, one scene for each prompt that has one."""
    scenes = [
        right_scene(one, bundle.styles)
        if isinstance(one, StyledPrompt)
        else right_everyday_scene(one, bundle.emoji, bundle.styles[number % len(bundle.styles)])
        for number, one in enumerate(prompts)
    ]
    both = [(one, scene) for one, scene in zip(prompts, scenes, strict=True) if scene is not None]
    if not both:
        return {"prompts": 0}
    images = np.stack([draw_styled(scene, SIZE, bundle.art) for _, scene in both])
    judged = bundle.judge(copies(bundle.pipe.vqgan, images))
    right = [judged_parts(one, found) for (one, _), found in zip(both, judged, strict=True)]
    return {"prompts": len(both)} | {
        part: share(one[part] for one in right if part in one) for part in PARTS if any(part in one for one in right)
    }


def printed_places() -> dict[str, list[str]]:
    """Each prompt that a text prints for the shipped model -> where it stands."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tools" / "docs"))
    from printed_prompts import printed_prompts

    places: dict[str, list[str]] = {}
    for one in printed_prompts():
        if one.left_out is None:
            places.setdefault(one.prompt, []).append(one.place)
    return places


def most_prompts(
    kind: str, most: int, known: Sequence[Emoji], styles: Sequence[str], seed: int = 0
) -> list[StyledPrompt]:
    """As many prompts as there are, where these are fewer than asked for."""
    for count in (most, most // 2, most // 4, most // 8, 1):
        try:
            return held_out_prompts(kind, max(1, count), known, styles, seed)
        except UserError:
            continue
    return []


def held_out(kind: str, most: int, bundle: Bundle, seed: int = 0) -> list[StyledPrompt]:
    """At most so many prompts of a kind for the bundle, without styles for one that knows none."""
    prompts = most_prompts(kind, most, bundle.emoji, bundle.styles, seed)
    return prompts if bundle.says_styles else [without_style(one) for one in prompts]


def scenes_of(known: Sequence[Emoji], styles: Sequence[str], folder: Path, count: int, split: str = "heldout"):
    words = Lexicon(read_annotations(folder), known)
    source = StyledScenes(SIZE, 7, 10**6, styles, known, split, folder, words)
    return source.batch(range(count))


def copies(vqgan: Any, images: np.ndarray) -> np.ndarray:
    from dalle_mini.evaluation.reconstruction import reconstruct
    from dalle_mini.imaging.pixels import to_uint8

    return to_uint8(reconstruct(vqgan, images)[0])


def measure_copies(vqgan: Any, known: Sequence[Emoji], styles: Sequence[str], folder: Path) -> dict[str, Any]:
    """PSNR and SSIM of copied held-out scenes at 256 pixels, by style.

    A VQGAN of smaller images copies them in its own size, and its copies are brought to 256 pixels by Lanczos.
    """
    from dalle_mini.evaluation.reconstruction import psnr, reconstruct, ssim

    side, found = vqgan.resolution, {}
    for style in styles:
        images, _ = scenes_of(known, [style], folder, COPIES)
        made, tokens = reconstruct(vqgan, resized(images, side))
        if side != SIZE:
            made = resized((made * 255).round().astype(np.uint8), SIZE).astype(np.float32) / 255
        found[style] = {"psnr": psnr(images, made), "ssim": ssim(images, made), "codes": len(np.unique(tokens))}
    return found


def resized(images: np.ndarray, side: int) -> np.ndarray:
    """Images, uint8 [n, H, W, 3], of `side` x `side` pixels."""
    if images.shape[1] == side:
        return images
    return np.stack(
        [np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS)) for image in images]
    )


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


def draw_and_judge(bundle: Bundle, prompts: Sequence[Any], settings: GenerationSettings, most: int) -> dict[str, Any]:
    """The scores; under "rows" what of each prompt CLIP's pick and some of the other candidates have.

    `most` pictures of each are judged. Under "entries" are the picks for a contact sheet.
    """
    rows, entries = [], []
    captions = [one.caption if isinstance(one, StyledPrompt) else one.text for one in prompts]
    drawn, seconds = bundle.pipe.generate_each(captions, settings), 0.0
    for number, prompt in enumerate(prompts):
        started = time.process_time()
        result = next(drawn)
        seconds += time.process_time() - started
        others = random.Random(number).sample(range(1, len(result.images)), min(most, len(result.images)) - 1)
        images = [np.asarray(result.images[index]) for index in (0, *others)]
        judged = bundle.judge(np.stack(images))
        parts = [judged_parts(prompt, one) for one in judged]
        row: dict[str, Any] = {"caption": captions[number], "parts": parts, "seen": "".join(judged[0].characters())}
        if isinstance(prompt, StyledPrompt) and len(prompt.things) == 1:
            row |= likeness(images[0], judged[0], prompt, bundle.art)
        rows.append(row)
        best = parts[0]
        right = all(value for part, value in best.items() if part != "clean")
        frame = RIGHT if right else PARTLY if best["things"] else WRONG
        wrong = ", ".join(part for part, value in best.items() if not value)
        entries.append(Entry(Image.fromarray(images[0]).resize((128, 128)), captions[number], frame, wrong))
        say(f"[{number + 1}/{len(prompts)}] {captions[number]}: {wrong or 'right'}")
    return scores(rows) | {"processor_seconds": round(seconds / len(rows), 2), "rows": rows, "entries": entries}


def likeness(image: np.ndarray, found: StyledJudgement, prompt: StyledPrompt, art: dict[str, Any]) -> dict[str, float]:
    """PSNR and SSIM of a picture of one thing beside the right render in the right place, at 256 pixels."""
    from dalle_mini.evaluation.reconstruction import psnr, ssim

    large = resized(image[None], SIZE)[0]
    styles = [prompt.style] if prompt.style else [*art]
    render = right_render(large, found, prompt.things[0], styles, prompt.ground, art)
    made = large[None].astype(np.float32) / 255
    return {"psnr": psnr(render[None], made), "ssim": ssim(render[None], made)}


def save_sheet(entries: list[Entry], path: Path) -> None:
    page = contact_sheet(entries, SHEET)
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.blamed(path), files.writing_whole(path) as file:
        page.save(file, format="PNG")


def scores(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Shares of CLIP's picks; where others were judged, of random candidates and of prompts with any, and the gain.

    "gain_interval" is the 95 % interval of how much oftener the pick is right, paired within prompts.
    """
    found: dict[str, Any] = {"prompts": len(rows)}
    for part in PARTS:
        right = [[one[part] for one in row["parts"]] for row in rows if part in row["parts"][0]]
        if right:
            pick, mean, some = shares(right)
            found[part] = {"prompts": len(right), "pick": pick}
            if len(right[0]) > 1:
                gain, error = pick_gain(right)
                found[part] |= {"random": mean, "any": some, "gain": gain, "gain_error": error}
                if error is not None:
                    found[part]["gain_interval"] = [gain - 1.96 * error, gain + 1.96 * error]
    if styled := [row["parts"][0] for row in rows if "style" in row["parts"][0]]:
        found["things_and_style"] = share(best["things"] and best["style"] for best in styled)
    for name in ("psnr", "ssim"):
        if values := [row[name] for row in rows if name in row]:
            found[f"median_{name}"] = round(float(np.median(values)), 3)
    return found


def measure_variety(pipe, judge: StyledJudge, chosen: Sequence[Emoji], settings: GenerationSettings) -> dict[str, Any]:
    """How many styles, places, sizes and grounds the candidates of "a fox" have, and how often all are a fox."""
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


def share(values) -> float:
    return round(float(np.mean(list(values))), 4)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

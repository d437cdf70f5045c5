"""Scenes in several styles, captioned as people ask: a small world whose pictures differ in all that is left unsaid.

"a 3d fox", "3 cats", "please draw a red car next to a tree, flat drawing", "halloween". The words are found by
`styled_captions.py`, the places by `styled_layout.py`, the art by `styles.py`; `splits.py` decides what training
never shows.
"""

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dalle_mini.emoji.art import GRID, PALETTE, Emoji, is_held_out
from dalle_mini.emoji.captions import pick
from dalle_mini.emoji.layout import ABOVE, IN_FRONT_OF, LEFT_OF, Box
from dalle_mini.emoji.nouns import is_counted, spoken
from dalle_mini.emoji.recolor import COLORS
from dalle_mini.emoji.scene_captions import DOWN, NAMED_GRADIENTS, RELATIONS
from dalle_mini.emoji.scenes import (
    COUNTED,
    SINGLE,
    THREE,
    TRIES,
    TWO,
    Background,
    Scene,
    SceneExample,
    SceneSource,
    Thing,
    paint,
)
from dalle_mini.emoji.splits import (
    COLOR,
    PAINT,
    PAIR,
    RELATION,
    STYLE,
    STYLED_KINDS,
    is_fact_held_out,
    is_paint_held_out,
    is_pair_held_out,
    is_style_held_out,
)
from dalle_mini.emoji.styled_captions import Captioner, Said
from dalle_mini.emoji.styled_layout import SCALES, SMALL, USUAL, alone, grid, most_scale, pair, pair_with_one, row
from dalle_mini.emoji.styles import SHIPPED_STYLES, StyleArt, open_style
from dalle_mini.emoji.things import FACING, is_person
from dalle_mini.emoji.words import Lexicon, lexicon
from dalle_mini.errors import UserError

COLLAGE = "collage"  # beside the kinds of `scenes`
STYLED_SPLITS = ("train", "heldout", *(f"heldout-{kind}" for kind in STYLED_KINDS))


@dataclass(frozen=True)
class Shares:
    """How often scenes have what. The rest of each choice is as usual."""

    single: float = 0.44
    counted: float = 0.12
    two: float = 0.35  # the rest are scenes of three
    collage: float = 0.0  # different things fill the picture: a decoder learns more from each
    style_said: float = 0.5
    styles_mixed: float = 0.06  # of the scenes of two
    size_said: float = 0.25  # of the single things
    large: float = 0.12  # of the single things whose size is not said
    small: float = 0.12
    place_said: float = 0.25
    places: float = 0.3  # of the single things whose place is not said: in any of nine
    ground_said: float = 0.5
    grounds: float = 0.5  # of the pictures whose ground is not said: of any colour, not white
    gradients: float = 0.10
    painted: float = 0.08  # of the things that can be painted
    flipped: float = 0.3  # of the things that face one way
    two_small: float = 0.2  # of the scenes of two
    two_sizes: float = 0.1
    two_of_three: float = 0.2  # of the scenes of three: two of the same, over or under the third


class StyledScenes(SceneSource):
    """A map-style source of captioned scenes: `len(source)`, `source[i]` -> `SceneExample`, as `EmojiScenes` is one.

    Example i is a pure function of (seed, i, split), the styles' files and the things; it is the same scene at every
    picture size.

    `split="train"` shows nothing that `splits` holds out for styled scenes. "heldout-style", "heldout-color",
    "heldout-pair", "heldout-relation" and "heldout-paint" show just what their name says, each nothing of the others;
    "heldout" mixes them.

    Args:
        size: side of the pictures, pixels, a multiple of 16.
        styles: keys of `styles.STYLES`.
        emoji: the things; all that the lexicon has if None.
        folder: where the styles' files are; the user's cache if None.
        words: the things' words; those in `folder` if None.
        shares: how often scenes have what.

    Raises:
        UserError: an argument makes no sense, or a file is missing.
    """

    def __init__(
        self,
        size: int = 256,
        seed: int = 0,
        length: int = 100_000,
        styles: Sequence[str] = SHIPPED_STYLES,
        emoji: Sequence[Emoji] | None = None,
        split: str = "train",
        folder: str | Path | None = None,
        words: Lexicon | None = None,
        shares: Shares = Shares(),
    ) -> None:
        if size < GRID or size % GRID:
            raise UserError(f"image size {size} is not a multiple of {GRID} pixels")
        if split not in STYLED_SPLITS:
            raise UserError(f"unknown split {split!r}: one of {', '.join(STYLED_SPLITS)}")
        if length < 1:
            raise UserError(f"length {length}: a source holds at least one image")
        if not styles:
            raise UserError("no style to draw in")
        self.size, self.seed, self.length, self.split, self.shares = size, seed, length, split, shares
        self.words = lexicon(folder) if words is None else words
        self.art = {name: open_style(name, folder) for name in styles}
        self.emoji = list(self.words.emoji if emoji is None else emoji)
        self._styles = tuple(styles)
        self._shown = {name: _Shown(self.emoji, self.art[name]) for name in styles}
        self._captions = Captioner(self.words)

    def __getitem__(self, index: int) -> SceneExample:
        scene = self.scene(index)
        return SceneExample(draw_styled(scene, self.size, self.art), scene.caption, scene)

    def scene(self, index: int) -> Scene:
        """The scene of example `index`, without drawing it."""
        if not 0 <= index < self.length:
            raise IndexError(f"example {index} of {self.length}")
        rng = random.Random(f"dalle-mini styles {self.seed} {self.split} {index}")
        held_out = None
        if self.split != "train":
            held_out = pick(rng, STYLED_KINDS) if self.split == "heldout" else self.split.removeprefix("heldout-")
        kind, style = self._kind(rng, held_out), pick(rng, self._styles)
        wanted = frozenset({held_out} if held_out else ())
        # Kind and style are decided before, so that what is held out does not change their shares.
        for _ in range(TRIES):
            scene = self._make_up(rng, kind, style, held_out)
            if scene is not None and held_out_kinds(scene) == wanted:
                return scene
        raise UserError(f"split {self.split!r}: {len(self.emoji)} things make no such scene; give more things")

    def _kind(self, rng: random.Random, held_out: str | None) -> str:
        shares = self.shares
        rest = 1 - shares.single - shares.counted - shares.two - shares.collage
        kinds = {SINGLE: shares.single, COUNTED: shares.counted, TWO: shares.two, THREE: rest, COLLAGE: shares.collage}
        if held_out in (PAIR, RELATION):
            kinds = {kind: kinds[kind] for kind in (TWO, THREE)}
        lot = rng.random() * sum(kinds.values())
        for kind, share in kinds.items():
            lot -= share
            if lot < 0:
                return kind
        return kind

    def _make_up(self, rng: random.Random, kind: str, style: str, held_out: str | None) -> Scene | None:
        """A scene of a kind, held out or not; None where the style has too few things for it."""
        ground, said = self._ground(rng, held_out)
        style_said = held_out == STYLE or rng.random() < self.shares.style_said
        told = Said(ground if said else None, style if style_said else None)
        make = {SINGLE: self._single, COUNTED: self._counted, TWO: self._two, THREE: self._three}
        made = (make | {COLLAGE: self._collage})[kind](rng, style, told, held_out)
        return None if made is None else Scene(made[1], made[0], ground, kind)

    def _ground(self, rng: random.Random, held_out: str | None) -> tuple[Background, bool]:
        """The ground, and whether the caption says it."""
        said = held_out == COLOR or rng.random() < self.shares.ground_said
        if not said and rng.random() >= self.shares.grounds:
            return Background(("white",)), False
        if rng.random() < self.shares.gradients:
            return Background(pick(rng, tuple(NAMED_GRADIENTS)), DOWN), said
        return Background((pick(rng, tuple(PALETTE)),)), said

    def _pick(self, rng: random.Random, style: str, count: int, held_out: str | None) -> list[Emoji]:
        """Different things; one that is held out in the style where that is wanted, and none otherwise."""
        shown = self._shown[style]
        found: list[Emoji] = []
        if held_out == STYLE and shown.held_out:
            found.append(pick(rng, shown.held_out))
        while len(found) < count and len(shown.seen) > count:
            if (one := pick(rng, shown.seen)) not in found:
                found.append(one)
        if held_out == STYLE and rng.random() < 0.5:
            found.reverse()
        return found

    def _thing(self, rng: random.Random, emoji: Emoji, style: str, painted: bool = False) -> Thing:
        """A thing without a place yet."""
        color = None
        if self._shown[style].is_paintable(emoji) and (painted or rng.random() < self.shares.painted):
            color = pick(rng, tuple(COLORS))
        flipped = emoji.characters[0] in FACING and rng.random() < self.shares.flipped
        return Thing(emoji, Box(0, 0, 0), None, style, color, flipped)

    def _single(self, rng, style, told, held_out):
        emoji = self._pick(rng, style, 1, held_out)
        if not emoji:
            return None
        thing = self._thing(rng, emoji[0], style, held_out == PAINT)
        size = scale = None
        if rng.random() < self.shares.size_said:
            size = pick(rng, ("large", "small", "tiny"))
        else:
            lot = rng.random()
            scale = SCALES["large" if lot < self.shares.large else "small" if lot > 1 - self.shares.small else None]
        placed = rng.random() < self.shares.place_said
        anywhere = placed or rng.random() < self.shares.places
        place = (pick(rng, (0, 1, 2)), pick(rng, (0, 1, 2))) if anywhere else (1, 1)
        box = alone(rng, SCALES[size] if scale is None else scale, place)
        thing = _at(thing, box, size)
        return (thing,), self._captions.single(rng, thing, told, place if placed else None)

    def _counted(self, rng, style, told, held_out):
        emoji = self._pick(rng, style, 1, held_out)
        if not emoji or not is_counted(spoken(emoji[0].name)):
            return None
        thing = self._thing(rng, emoji[0], style, held_out == PAINT)
        count = pick(rng, (2, 2, 2, 3, 3, 3, 4, 4, 5, 5, 6, 7, 8, 9))
        size = pick(rng, ("small", "tiny")) if rng.random() < self.shares.size_said / 3 else None
        scale = SCALES[size] if size else SMALL if rng.random() < 0.25 else most_scale(count)
        things = tuple(_at(thing, box, size) for box in grid(rng, count, scale))
        return things, self._captions.counted(rng, thing, size, count, told)

    def _two(self, rng, style, told, held_out):
        emoji = self._pick(rng, style, 2, held_out)
        if len(emoji) < 2:
            return None
        styles = [style, style]
        mixed = len(self._styles) > 1 and held_out != STYLE and rng.random() < self.shares.styles_mixed
        if mixed:
            styles[1] = pick(rng, [one for one in self._styles if one != style])
            if emoji[1] not in self._shown[styles[1]]:
                return None
        first, second = (self._thing(rng, *one, held_out == PAINT) for one in zip(emoji, styles, strict=True))
        open_relation = rng.random() < 0.2  # "a cat and a dog"
        name = pick(rng, tuple(RELATIONS))
        relation = RELATIONS[name]
        fact = pick(rng, (LEFT_OF, LEFT_OF, ABOVE)) if open_relation else relation.fact
        sizes, scales = self._two_sizes(rng, fact)
        forward = rng.random() < 0.5 if open_relation or relation.forward is None else relation.forward
        touching = rng.random() < 0.5 if open_relation or relation.touching is None else relation.touching
        boxes = pair(rng, fact, scales if forward else scales[::-1], touching)
        first, second = (
            _at(one, box, size)
            for one, box, size in zip((first, second), boxes if forward else boxes[::-1], sizes, strict=True)
        )
        caption = self._captions.two(rng, first, None if open_relation else name, second, told, mixed)
        behind_first = (second, first) if forward else (first, second)
        return behind_first, caption

    def _two_sizes(self, rng: random.Random, fact: str) -> tuple[tuple[str | None, str | None], tuple[int, int]]:
        """Size words and widths of two things."""
        lot = rng.random()
        if lot < self.shares.two_sizes and fact != IN_FRONT_OF:
            return pick(rng, (((None, "small"), (USUAL, SMALL)), (("small", None), (SMALL, USUAL))))
        if lot > 1 - self.shares.two_small:
            return (None, None), (SMALL, SMALL)
        return (None, None), (USUAL, USUAL)

    def _three(self, rng, style, told, held_out):
        emoji = self._pick(rng, style, 3, held_out)
        if len(emoji) < 3:
            return None
        one, first, second = (self._thing(rng, each, style, held_out == PAINT) for each in emoji)
        if is_counted(spoken(first.emoji.name)) and rng.random() < self.shares.two_of_three:
            second = first
        elif rng.random() < 0.6:  # in a row
            things = tuple(_at(each, box) for each, box in zip((first, one, second), row(rng), strict=True))
            return things, self._captions.row(rng, things, told)
        name = pick(rng, ("under", "below", "above", "on top of"))
        pair_above = bool(RELATIONS[name].forward)
        first, second, one = (
            _at(each, box) for each, box in zip((first, second, one), pair_with_one(pair_above), strict=True)
        )
        return (one, first, second), self._captions.pair_with_one(rng, (first, second), name, one, told)

    def _collage(self, rng, style, told, held_out):
        scale, count = pick(rng, ((USUAL, 4), (USUAL, 4), (SMALL, 9)))
        emoji = self._pick(rng, style, count, held_out)
        boxes = grid(rng, count, scale)
        things = tuple(_at(self._thing(rng, *one), box) for *one, box in zip(emoji, itertools.repeat(style), boxes))
        return (things, "") if len(things) == count else None


class _Shown:
    """The things that a style has: those that training shows, and those that it does not."""

    def __init__(self, emoji: Sequence[Emoji], art: StyleArt):
        there = [one for one in emoji if one.characters in art]
        self.seen = [one for one in there if not is_style_held_out(one, art.name)]
        self.held_out = [one for one in there if is_style_held_out(one, art.name)]
        self._seen = frozenset(self.seen)
        # The colour of "a red envelope" is its name.
        self._paintable = frozenset(
            one
            for one in there
            if art.is_paintable(one.characters) and not is_person(one) and not set(one.name.split()) & COLORS.keys()
        )

    def __contains__(self, emoji: Emoji) -> bool:
        return emoji in self._seen

    def is_paintable(self, emoji: Emoji) -> bool:
        return emoji in self._paintable


def _at(thing: Thing, box: Box, size: str | None = None) -> Thing:
    return Thing(thing.emoji, box, size, thing.style, thing.color, thing.flipped)


def held_out_kinds(scene: Scene) -> frozenset[str]:
    """Which of `splits.STYLED_KINDS` keep a styled scene out of training; none if it may be trained on."""
    kinds = set()
    different = {(thing.emoji, thing.style, thing.color): thing for thing in scene.things}
    emoji = {thing.emoji for thing in scene.things}
    if any(is_style_held_out(one, style) for one, style, _ in different):
        kinds.add(STYLE)
    if any(color is not None and is_paint_held_out(one, color) for one, _, color in different):
        kinds.add(PAINT)
    if any(is_held_out(one, color) for one in emoji for color in scene.background.colors):
        kinds.add(COLOR)
    if len(emoji) > 1:
        if any(is_pair_held_out(*both) for both in itertools.combinations(emoji, 2)):
            kinds.add(PAIR)
        if any(is_fact_held_out(*stated) for stated in scene.facts()):
            kinds.add(RELATION)
    return frozenset(kinds)


def draw_styled(scene: Scene, size: int, art: Mapping[str, StyleArt]) -> np.ndarray:
    """A styled scene as a picture: uint8 [size, size, 3]; `size` is a multiple of 16, `art` has the things' styles."""
    image = paint(scene.background, size).copy()
    cell = size // GRID
    for thing in scene.things:
        sprite = art[thing.style].sprite(thing.emoji.characters, thing.box.scale * cell, thing.color, thing.flipped)
        sprite.paste(image, thing.box.x * cell, thing.box.y * cell)
    return image

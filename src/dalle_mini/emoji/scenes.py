"""Emoji scenes: captioned compositions of one to three emoji, any number of them, drawn on the spot from a font.

"a snail to the left of a red car", "two mice under a rainbow", "a large cake on top of a piano on a sunset gradient".

The emoji and the 16 x 16 grid are those of `art.py`; `vocabulary.py` chooses the emoji, `layout.py` places
them, `scene_captions.py` finds the words, and `splits.py` decides what training never shows.
"""

import itertools
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from dalle_mini.emoji.art import (
    COLOR_SAID_SHARE,
    EVERYDAY,
    GRID,
    PALETTE,
    Emoji,
    batch_of,
    find_font,
    is_held_out,
    paste,
    place_alone,
)
from dalle_mini.emoji.captions import PLACES, background_caption, pick
from dalle_mini.emoji.layout import (
    ABOVE,
    LEFT_OF,
    SCALE_OF,
    SCENE_SMALL,
    Box,
    beside,
    column,
    fact,
    overlapping,
    row,
    stacked,
    triangle,
)
from dalle_mini.emoji.nouns import is_counted, spoken, variant
from dalle_mini.emoji.scene_captions import (
    ACROSS,
    DIRECTIONS,
    DOWN,
    NAMED_GRADIENTS,
    RELATIONS,
    Mention,
    Relation,
    between_caption,
    called,
    color_words,
    counted_caption,
    gradient_words,
    on_background,
    pair_caption,
    pair_with_one_caption,
    single_caption,
)
from dalle_mini.emoji.splits import (
    ATTRIBUTES,
    COLOR,
    HELD_OUT_KINDS,
    PAIR,
    RELATION,
    is_combination_held_out,
    is_fact_held_out,
    is_pair_held_out,
)
from dalle_mini.emoji.vocabulary import scene_emoji
from dalle_mini.errors import UserError

# Shares of the kinds of scenes: one emoji as in the first edition, some of the same, two in a relation, three.
SINGLE, COUNTED, TWO, THREE = "single", "counted", "two", "three"
SHARES = {SINGLE: 0.40, COUNTED: 0.08, TWO: 0.42, THREE: 0.10}
GRADIENT_SHARE = 0.15
NAMED_GRADIENT_SHARE = 0.25  # of the gradients
SIZED_SHARE = 0.35  # of the scenes of two
GROUP_SHARE = 0.15  # of the scenes of two: one side is two of the same
FIRST_NAME_SHARE = 0.7  # how often a single emoji of the first edition goes by the name it had there

SPLITS = ("train", "heldout", *(f"heldout-{kind}" for kind in HELD_OUT_KINDS))
TRIES = 5000  # scenes made up before a split is said to be empty

_EVERYDAY = frozenset("".join(EVERYDAY.values()))


@dataclass(frozen=True)
class Background:
    """One colour of `PALETTE`, or two and the direction, "down" or "across", in which one turns into the other."""

    colors: tuple[str, ...]
    direction: str | None = None

    @property
    def name(self) -> str:
        """The same for every wording: "blue", "blue to pink down"."""
        return " to ".join(self.colors) + (f" {self.direction}" if self.direction else "")


@dataclass(frozen=True)
class Thing:
    """An emoji in its place.

    Attributes:
        emoji: what it is.
        box: where it is.
        size: the key of the size word that the caption gives it, if any.
        style: in scenes of several styles, a key of `styles.STYLES`.
        color: the key of `recolor.COLORS` in which it is painted, if any.
        flipped: whether it is mirrored.
    """

    emoji: Emoji
    box: Box
    size: str | None = None
    style: str = ""
    color: str | None = None
    flipped: bool = False


@dataclass(frozen=True)
class Scene:
    """The content of an image: its things in the order in which they are drawn, the last in front."""

    caption: str
    things: tuple[Thing, ...]
    background: Background
    kind: str

    def facts(self) -> list[tuple[Emoji, str, Emoji]]:
        """The facts that the image states of each two different emoji: (first, a name of `FACTS`, second)."""
        found = []
        for one, other in itertools.combinations(self.things, 2):
            if one.emoji != other.emoji:
                name, forward = fact(one.box, other.box)
                first, second = (one, other) if forward else (other, one)
                found.append((first.emoji, name, second.emoji))
        return found

    def held_out_kinds(self) -> frozenset[str]:
        """Which of `HELD_OUT_KINDS` keep this scene out of training; none if it may be trained on."""
        emoji = {thing.emoji for thing in self.things}
        kinds = set()
        if any(is_held_out(one, color) for one in emoji for color in self.background.colors):
            kinds.add(COLOR)
        if any(is_pair_held_out(*pair) for pair in itertools.combinations(emoji, 2)):
            kinds.add(PAIR)
        if any(is_fact_held_out(*stated) for stated in self.facts()):
            kinds.add(RELATION)
        looks = {(thing.size, self.background.name, variant(thing.emoji.name)) for thing in self.things}
        if any(is_combination_held_out(*look) for look in looks):
            kinds.add(ATTRIBUTES)
        return frozenset(kinds)


@dataclass(frozen=True)
class SceneExample:
    """A captioned picture, uint8 [size, size, 3], and the scene it was drawn from."""

    image: np.ndarray
    caption: str
    scene: Scene


class SceneSource:
    """The common part of map-style sources of scenes. A subclass makes up scenes and draws them."""

    size: int
    length: int

    def scene(self, index: int) -> Scene:
        raise NotImplementedError

    def __getitem__(self, index: int) -> SceneExample:
        raise NotImplementedError

    def __len__(self) -> int:
        return self.length

    def caption(self, index: int) -> str:
        """The caption of example `index`, without drawing it."""
        return self.scene(index).caption

    def batch(self, indices: Iterable[int]) -> tuple[np.ndarray, list[str]]:
        """Images uint8 [n, size, size, 3] and their n captions."""
        return batch_of([self[int(i)] for i in indices], self.size)


class EmojiScenes(SceneSource):
    """A map-style source of captioned scenes: `len(source)`, `source[i]` -> `SceneExample`, as `EmojiImages` is one.

    Example i is a pure function of (seed, i, split) and the emoji given; it is the same scene at every picture size.

    - 40 % single: an emoji in the sizes, places and sentences of `EmojiImages`.
    - 8 % counted: two or three of the same, also "small", in a row or a triangle.
    - 42 % two in a relation (`RELATIONS`): 35 % of them with size words, in 15 % one side is two of the same.
    - 10 % three: one between two, or two beside each other above or under a third.

    Boxes are 5, 7 or 9 cells wide but for the single emoji's. The background is one of the palette's colours, said in
    75 % of the captions and white in the others, or in 15 % of the pictures a gradient.

    `split="train"` shows nothing that `scene_splits` holds out. "heldout-color", "heldout-pair", "heldout-relation" and
    "heldout-attributes" show just what their name says, each nothing of the other three; "heldout" mixes the four.

    Args:
        size: side of the pictures, pixels, a multiple of 16.
        emoji: those to draw; `scene_emoji()` if None. People who differ in gender and skin alone
            (`people_emoji`) share one lot, so that they do not crowd out the rest.
        jitter: cells by which a single emoji may stand off the centre.
    """

    def __init__(
        self,
        size: int = 128,
        seed: int = 0,
        length: int = 100_000,
        emoji: Sequence[Emoji] | None = None,
        split: str = "train",
        font: str | Path | None = None,
        jitter: int = 1,
    ) -> None:
        if size < GRID or size % GRID:
            raise UserError(f"image size {size} is not a multiple of {GRID} pixels")
        if split not in SPLITS:
            raise UserError(f"unknown split {split!r}: one of {', '.join(SPLITS)}")
        if jitter not in (0, 1):
            raise UserError(f"jitter {jitter}: 0 or 1 cells keep a large emoji in the image")
        if length < 1:
            raise UserError(f"length {length}: a source holds at least one image")
        self.size, self.seed, self.length, self.split, self.jitter = size, seed, length, split, jitter
        self.emoji = list(scene_emoji(font) if emoji is None else emoji)
        families: dict[str, list[Emoji]] = {}
        for one in self.emoji:
            families.setdefault(family(one.name), []).append(one)
        if len(families) < 3:
            raise UserError(f"{len(families)} kinds of emoji: a scene needs three different ones to choose from")
        self._families = list(families.values())
        self._counted = [kept for one in self._families if (kept := [e for e in one if is_counted(spoken(e.name))])]
        self._font_path = font
        self._font: Path | None = None  # looked for when a picture is drawn: captions need none

    def __getitem__(self, index: int) -> SceneExample:
        scene = self.scene(index)
        if self._font is None:
            self._font = find_font(self._font_path)
        return SceneExample(draw(scene, self.size, self._font), scene.caption, scene)

    def scene(self, index: int) -> Scene:
        """The scene of example `index`, without drawing it."""
        if not 0 <= index < self.length:
            raise IndexError(f"example {index} of {self.length}")
        rng = random.Random(f"dalle-mini scenes {self.seed} {self.split} {index}")
        held_out = None
        if self.split != "train":
            held_out = pick(rng, HELD_OUT_KINDS) if self.split == "heldout" else self.split.removeprefix("heldout-")
        kind = self._kind(rng, held_out)
        wanted = frozenset({held_out} if held_out else ())
        # The kind of scene is decided before, so that what is held out does not change the shares.
        for _ in range(TRIES):
            scene = self._make_up(rng, kind, sized=held_out == ATTRIBUTES)
            if scene.held_out_kinds() == wanted:
                return scene
        raise UserError(f"split {self.split!r}: {len(self.emoji)} emoji make no such scene; give more emoji")

    def _kind(self, rng: random.Random, held_out: str | None) -> str:
        shares = dict(SHARES)
        if held_out in (PAIR, RELATION):
            shares = {kind: SHARES[kind] for kind in (TWO, THREE)}
        elif held_out == ATTRIBUTES:
            shares = {kind: SHARES[kind] for kind in (SINGLE, COUNTED, TWO)}
        lot = rng.random() * sum(shares.values())
        for kind, share in shares.items():
            lot -= share
            if lot < 0:
                return kind
        return kind

    def _background(self, rng: random.Random, said: bool) -> Background | None:
        """None is the white that is not said."""
        if rng.random() < GRADIENT_SHARE:
            if rng.random() < NAMED_GRADIENT_SHARE:
                return Background(pick(rng, tuple(NAMED_GRADIENTS)), DOWN)
            first, second = pick(rng, tuple(PALETTE)), pick(rng, tuple(PALETTE)[1:])
            if first == second:
                second = "white"
            return Background((first, second), pick(rng, DIRECTIONS))
        if said or rng.random() < COLOR_SAID_SHARE:
            return Background((pick(rng, tuple(PALETTE)),))
        return None

    def _make_up(self, rng: random.Random, kind: str, sized: bool) -> Scene:
        """A scene of a kind, held out or not; `sized`: with at least two attributes where that can be."""
        background = self._background(rng, said=sized)
        if kind == SINGLE:
            return self._single(rng, background, sized)
        words = None if background is None else _background_words(rng, background)
        things, caption = {COUNTED: self._same, TWO: self._two, THREE: self._three}[kind](rng, sized)
        return Scene(on_background(rng, caption, words), things, background or Background(("white",)), kind)

    def _pick(self, rng: random.Random, count: int) -> list[Emoji]:
        """Different emoji, of different families."""
        families: list[list[Emoji]] = []
        while len(families) < count:
            if (one := pick(rng, self._families)) not in families:
                families.append(one)
        return [pick(rng, one) for one in families]

    def _single(self, rng: random.Random, background: Background | None, sized: bool) -> Scene:
        (emoji,) = self._pick(rng, 1)
        scale, size, place, (x, y) = self._place_single(rng, sized)
        # An emoji of the first edition keeps its name there, so that those captions remain in the language.
        first = emoji.characters[0] in _EVERYDAY and rng.random() < FIRST_NAME_SHARE
        word = emoji.name if first else called(rng, emoji.name)
        if background is not None and background.direction:
            where = pick(rng, PLACES[place]) if place else None
            scene = single_caption(rng, word, size, where)
            caption = on_background(rng, scene, _background_words(rng, background))
        else:
            caption = background_caption(rng, word, background.colors[0] if background else None, size, place)
        thing = Thing(emoji, Box(int(x), int(y), scale), size)
        return Scene(caption, (thing,), background or Background(("white",)), SINGLE)

    def _place_single(
        self, rng: random.Random, sized: bool
    ) -> tuple[int, str | None, tuple[int, int] | None, tuple[float, float]]:
        """As `place_alone`."""
        return place_alone(rng, self.jitter)

    def _same(self, rng: random.Random, sized: bool) -> tuple[tuple[Thing, ...], str]:
        emoji = pick(rng, pick(rng, self._counted))
        size = "small" if sized or rng.random() < SIZED_SHARE / 2 else None
        count = pick(rng, (2, 2, 3))
        in_a_row = count == 2 or size is not None or rng.random() < 0.5
        scale = SCENE_SMALL if count == 3 else SCALE_OF[size]
        boxes = row(rng, count, scale) if in_a_row else triangle(rng)
        caption = counted_caption(rng, Mention(emoji.name, count, size), in_a_row)
        return tuple(Thing(emoji, box, size) for box in boxes), caption

    def _two(self, rng: random.Random, sized: bool) -> tuple[tuple[Thing, ...], str]:
        emoji = self._pick(rng, 2)
        name = pick(rng, tuple(RELATIONS))
        counts = [1, 1]
        sizes: tuple[str | None, str | None] = (None, None)
        if sized or rng.random() < SIZED_SHARE:
            sizes = pick(rng, SIZES)
        elif RELATIONS[name].fact in (LEFT_OF, ABOVE) and rng.random() < GROUP_SHARE / (1 - SIZED_SHARE):
            many = pick(rng, (0, 0, 1))
            counts[many] = 2 if is_counted(spoken(emoji[many].name)) else 1
        sides = [[(one, size)] * count for one, size, count in zip(emoji, sizes, counts, strict=True)]
        caption = pair_caption(
            rng, Mention(emoji[0].name, counts[0], sizes[0]), name, Mention(emoji[1].name, counts[1], sizes[1])
        )
        return arrange(rng, name, *sides), caption

    def _three(self, rng: random.Random, sized: bool) -> tuple[tuple[Thing, ...], str]:
        one, first, second = self._pick(rng, 3)
        if rng.random() < 0.5:
            direction = pick(rng, (ACROSS, ACROSS, DOWN))
            if rng.random() < 0.3 and is_counted(spoken(first.name)):
                second = first
            boxes = row(rng, 3, SCENE_SMALL) if direction == ACROSS else column(rng)
            things = tuple(Thing(e, box) for e, box in zip((first, one, second), boxes, strict=True))
            ends = (Mention(first.name), Mention(second.name))
            return things, between_caption(rng, Mention(one.name), ends, direction)
        name = pick(rng, ("under", "below", "above", "on top of"))
        caption = pair_with_one_caption(rng, (Mention(first.name), Mention(second.name)), name, Mention(one.name))
        pair = [(first, None), (second, None)]
        if rng.random() < 0.5:
            pair.reverse()
        return arrange(rng, name, pair, [(one, None)]), caption


# Size words of subject and object; two large ones do not fit side by side.
SIZES: tuple[tuple[str | None, str | None], ...] = (
    ("small", None),
    (None, "small"),
    ("large", None),
    (None, "large"),
    ("small", "large"),
    ("large", "small"),
    ("small", "small"),
)

Group = Sequence[tuple[Emoji, str | None]]  # emoji side by side, each with the key of its size word


def arrange(rng: random.Random, name: str, subject: Group, object: Group) -> tuple[Thing, ...]:
    """The things of a relation, a key of `RELATIONS`, in their places, those behind first."""
    relation = RELATIONS[name]
    first, second = in_order(rng, relation, subject, object)
    scales, others = ([SCALE_OF[size] for _, size in group] for group in (first, second))
    if relation.fact == LEFT_OF:
        if len(first) + len(second) > 2:
            scales, others = ([SCENE_SMALL] * len(group) for group in (first, second))
        boxes = beside(rng, scales, others)
    elif relation.fact == ABOVE:
        touching = rng.random() < 0.5 if relation.touching is None else relation.touching
        boxes = stacked(rng, scales, others, touching)
    else:
        front, back = overlapping(rng, scales[0], others[0])
        boxes = [front], [back]
    return placed((first, second), boxes)


def in_order(rng: random.Random, relation: Relation, subject: Group, object: Group) -> tuple[Group, Group]:
    """The sides of a relation, that which is left, above or in front first."""
    forward = rng.random() < 0.5 if relation.forward is None else relation.forward
    return (subject, object) if forward else (object, subject)


def placed(groups: Sequence[Group], boxes: Sequence[Sequence[Box]]) -> tuple[Thing, ...]:
    """The things of two groups in their boxes, those of the second, which are behind, first."""
    front, back = (
        [Thing(emoji, box, size) for (emoji, size), box in zip(group, within, strict=True)]
        for group, within in zip(groups, boxes, strict=True)
    )
    return (*back, *front)


def family(name: str) -> str:
    """The part of a name that all who differ in gender and skin alone have in common: "firefighter", "running"."""
    words = [word for word in name.split() if word not in ("man", "woman", "person")]
    return " ".join(words[:-3] if words[-2:] == ["skin", "tone"] else words)


def _background_words(rng: random.Random, background: Background) -> str:
    if background.direction is None:
        return color_words(background.colors[0])
    first, second = background.colors
    return gradient_words(rng, (first, second), background.direction)


def draw(scene: Scene, size: int, font: str | Path | None = None) -> np.ndarray:
    """A scene as a picture: uint8 [size, size, 3]; `size` is a multiple of 16."""
    path = find_font(font)
    image = paint(scene.background, size).copy()
    for thing in scene.things:
        paste(image, path, thing.emoji, thing.box.scale, (thing.box.x, thing.box.y))
    return image


@lru_cache(maxsize=512)
def paint(background: Background, size: int) -> np.ndarray:
    """A background alone: uint8 [size, size, 3], read-only."""
    if background.direction is None:
        image = np.full((size, size, 3), PALETTE[background.colors[0]], np.uint8)
    else:
        first, second = (np.array(PALETTE[color], np.float64) for color in background.colors)
        steps = (np.arange(size) + 0.5)[:, None] / size  # [size, 1]
        ramp = np.rint(first + steps * (second - first)).astype(np.uint8)  # [size, 3]
        image = np.broadcast_to(ramp[:, None] if background.direction == DOWN else ramp, (size, size, 3)).copy()
    image.flags.writeable = False
    return image

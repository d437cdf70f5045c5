"""Did the model draw what was asked? A judge without any learning, for models that draw emoji on plain backgrounds.

The judge compares a picture with every emoji that the font draws, pixel by pixel, and takes the nearest. It sees all
of them, near twins and skin tones included, not only those that a model was trained on, so it is hard to please by
chance: one in 3,700 and more.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dalle_mini.emoji.art import GRID, MEDIUM, PALETTE, Emoji, all_emoji, find_font, is_held_out, render
from dalle_mini.emoji.captions import WITH_COLOR, has_article, with_article
from dalle_mini.errors import UserError

BLOCK = 512  # emoji compared at a time
BATCH = 16  # pictures compared at a time
COLORS = tuple(PALETTE)
BARE = ("black", "white")  # on black a background adds nothing to an emoji; white shows how much of it there is


@dataclass(frozen=True)
class EmojiPrompt:
    """An emoji on a background colour that training never showed together, and the caption that asks for it."""

    emoji: Emoji
    color: str
    caption: str


def held_out_prompts(
    count: int, emoji: Sequence[Emoji], seed: int = 0, caption: Callable[[Emoji, str], str] | None = None
) -> list[EmojiPrompt]:
    """`count` different held-out pairs of the given emoji, captioned as "a snail on a yellow background".

    `caption` makes the words, of an emoji and a colour: `plain_caption` if None.

    No emoji stands twice before each that has a held-out colour stood once. Raises UserError where there are too few.
    """
    rng = random.Random(f"dalle-mini held-out prompts {seed}")
    pairs = [(one, color) for one in emoji for color in COLORS if is_held_out(one, color)]
    if not 1 <= count <= len(pairs):
        raise UserError(f"prompts {count}: 1 to {len(pairs)}, as many as {len(emoji)} emoji have held-out colours")
    pairs.sort(key=lambda pair: rng.random())
    seen: Counter[Emoji] = Counter()
    turns = []
    for one, _ in pairs:
        turns.append(seen[one])
        seen[one] += 1
    order = sorted(range(len(pairs)), key=turns.__getitem__)[:count]
    return [EmojiPrompt(*pairs[index], (caption or plain_caption)(*pairs[index])) for index in order]


def plain_caption(emoji: Emoji, color: str) -> str:
    """The commonest wording of the training captions: "a snail on a yellow background"."""
    thing = with_article(emoji.name) if has_article(emoji.name) else emoji.name
    return WITH_COLOR[0].format(thing=thing, place="", Color=with_article(color))


@dataclass(frozen=True)
class Judgement:
    """The judge's verdict on an image.

    `names` are those of the nearest emoji: more than one where the font draws several alike (the flags of Norway and of
    Bouvet Island). `distance` is the mean squared difference of the pixels, scaled to [0, 1], from that emoji `scale`
    cells wide at cell `position` (x, y) on `color`.
    """

    names: tuple[str, ...]
    color: str
    distance: float
    scale: int
    position: tuple[int, int]

    @property
    def name(self) -> str:
        return self.names[0]

    def is_emoji(self, prompt: EmojiPrompt) -> bool:
        return prompt.emoji.name in self.names

    def is_color(self, prompt: EmojiPrompt) -> bool:
        return self.color == prompt.color


class EmojiJudge:
    """Tells the background colour and the emoji of pictures: `judge(images)` -> one `Judgement` a picture.

    The background is the palette's colour to which most pixels of the outermost cells are nearest. The emoji is the
    one whose render on that background has the least squared difference over the whole picture, at any of the `scales`
    (widths in cells) and of the places up to `reach` cells off the centre: those in which the training pictures of
    plain captions are drawn.

    Takes some seconds to draw the emoji, and memory: 60 MB for 64-pixel pictures, four times that at twice the side.

    Args:
        size: side of the pictures, pixels, a multiple of 16.
        emoji: what to compare with; all that the font draws if None.

    Raises:
        UserError: the font is missing.
    """

    def __init__(
        self,
        size: int = 64,
        emoji: Sequence[Emoji] | None = None,
        font: str | Path | None = None,
        scales: Sequence[int] = (MEDIUM,),
        reach: int = 1,
        progress: Callable[[int, int], None] | None = None,
    ):
        path = find_font(font)
        emoji = list(all_emoji(path) if emoji is None else emoji)
        if not emoji:
            raise UserError("no emoji to compare with")
        self.size = size
        self._templates = []
        for number, scale in enumerate(scales):
            drawn = _Templates(size, scale, reach, len(emoji))
            for index, one in enumerate(emoji):
                drawn.draw(index, one, path)
                if progress is not None:
                    progress(number * len(emoji) + index + 1, len(scales) * len(emoji))
            drawn.finish()
            self._templates.append(drawn)
        largest = max(self._templates, key=lambda drawn: drawn.scale)
        self._names = names_of_drawings(emoji, [largest.drawing(index) for index in range(len(emoji))])

    def __call__(self, images: np.ndarray, colors: Sequence[str] | None = None) -> list[Judgement]:
        """Judge pictures, uint8 [n, size, size, 3]; `colors` are their backgrounds where they are known."""
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.shape[1:] != (self.size, self.size, 3):
            raise ValueError(f"images: uint8 [n, {self.size}, {self.size}, 3], not {images.dtype} {images.shape}")
        colors = self.backgrounds(images) if colors is None else list(colors)
        judged = []
        for start in range(0, len(images), BATCH):
            judged += self._judge(images[start : start + BATCH], colors[start : start + BATCH])
        return judged

    def backgrounds(self, images: np.ndarray) -> list[str]:
        """The background colour of each picture, a name of `PALETTE`."""
        cell = self.size // GRID
        border = np.ones((self.size, self.size), bool)
        border[cell:-cell, cell:-cell] = False
        palette = np.array(list(PALETTE.values()), np.int32)
        names = []
        for image in images:
            pixels = image[border].astype(np.int32)  # [border pixels, 3]
            nearest = np.argmin(np.sum((pixels[:, None] - palette) ** 2, axis=-1), axis=1)
            names.append(COLORS[np.bincount(nearest).argmax()])
        return names

    def _judge(self, images: np.ndarray, colors: list[str]) -> list[Judgement]:
        rgb = np.array([PALETTE[color] for color in colors], np.float32) / 255  # [pictures, 3]
        difference = images.astype(np.float32) / 255 - rgb[:, None, None]
        empty = np.sum(difference**2, axis=(1, 2, 3), dtype=np.float64)  # from a picture without an emoji
        best: dict[int, Judgement] = {}
        for drawn in self._templates:
            for place, (index, gain) in drawn.nearest(difference, rgb).items():
                distance = (empty + gain) / difference[0].size
                for row in range(len(images)):
                    if row not in best or distance[row] < best[row].distance:
                        names = self._names[index[row]]
                        best[row] = Judgement(names, colors[row], float(distance[row]), drawn.scale, place)
        return [best[row] for row in range(len(images))]


class _Templates:
    """Every emoji at one width, as matrices, so that a matrix product compares them all with a picture.

    On a background b an emoji of premultiplied colours C and opacity a differs from the plain background by
    T = C - a b, and a picture by q. The squared distance within the emoji's box is |q - T|^2 = |q|^2 - 2 T q + |T|^2.
    The first term is common to all emoji, and the last needs only sums over each emoji's pixels. T q = C q - a (b q)
    are the two products.
    """

    def __init__(self, size: int, scale: int, reach: int, count: int):
        self.scale = scale
        self._size, self._cell, self._box = size, size // GRID, size // GRID * scale
        middle = (GRID - scale) // 2
        steps = range(-reach, reach + 1)
        self.places = [(middle + x, middle + y) for y in steps for x in steps]
        # Bytes: as floats all emoji at all sizes would take four times the memory, and the conversion costs little.
        self._colors = np.empty((count, self._box**2 * 3), np.uint8)
        self._opacity = np.empty((count, self._box**2), np.uint8)

    def draw(self, index: int, emoji: Emoji, font: Path) -> None:
        place = self.places[0]
        black, white = (self._crop(render(emoji, color, self._size, self.scale, place, font), place) for color in BARE)
        self._colors[index] = black.reshape(-1)
        self._opacity[index] = 255 - (white - black)[..., 0].reshape(-1)

    def finish(self) -> None:
        """The sums of C C, C a (a channel each) and a a over each emoji's pixels."""
        sums = []
        for rows in self._blocks():
            colors, opacity = self._floats(rows)
            by_channel = colors.reshape(len(colors), -1, 3)
            parts = (np.sum(colors**2, axis=1), *np.einsum("npc,np->cn", by_channel, opacity), np.sum(opacity**2, 1))
            sums.append(np.stack(parts, axis=1))
        self._sums = np.concatenate(sums).astype(np.float64)  # [emoji, 5]

    def nearest(self, difference: np.ndarray, rgb: np.ndarray) -> dict[tuple[int, int], tuple[np.ndarray, np.ndarray]]:
        """At each place the nearest emoji's index [n] and |q - T|^2 - |q|^2 [n].

        `difference` are pictures minus backgrounds, float32 [n, size, size, 3]; `rgb` the backgrounds [n, 3].
        """
        pictures = len(difference)
        crops = np.concatenate([self._crop(difference, place) for place in self.places])  # [places * n, box, box, 3]
        shaded = np.sum(crops * np.tile(rgb, (len(self.places), 1))[:, None, None], axis=-1)
        crops, shaded = crops.reshape(len(crops), -1), shaded.reshape(len(crops), -1)
        weights = np.stack([np.ones(pictures), *(-2 * rgb.T), np.sum(rgb**2, axis=1)])  # [5, n]
        squares = self._sums @ weights  # |T|^2 [emoji, n]
        gains = np.empty((len(self._colors), len(self.places), pictures), np.float64)
        for rows in self._blocks():
            colors, opacity = self._floats(rows)
            product = (colors @ crops.T - opacity @ shaded.T).reshape(-1, len(self.places), pictures)
            gains[rows] = squares[rows, None] - 2 * product
        index = np.argmin(gains, axis=0)  # [places, n]
        gain = np.min(gains, axis=0)
        return {place: (index[number], gain[number]) for number, place in enumerate(self.places)}

    def drawing(self, index: int) -> bytes:
        return self._colors[index].tobytes() + self._opacity[index].tobytes()

    def _crop(self, images: np.ndarray, place: tuple[int, int]) -> np.ndarray:
        left, top = (cells * self._cell for cells in place)
        return images[..., top : top + self._box, left : left + self._box, :]

    def _blocks(self) -> Iterable[slice]:
        return (slice(start, start + BLOCK) for start in range(0, len(self._colors), BLOCK))

    def _floats(self, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        return self._colors[rows].astype(np.float32) / 255, self._opacity[rows].astype(np.float32) / 255


def names_of_drawings(emoji: Sequence[Emoji], drawings: Sequence[bytes]) -> list[tuple[str, ...]]:
    """The names that go with each emoji's drawing: its own, and those of the emoji that look the same to a pixel."""
    names: dict[bytes, tuple[str, ...]] = {}
    for one, drawing in zip(emoji, drawings, strict=True):
        names[drawing] = (*names.get(drawing, ()), one.name)
    return [names[drawing] for drawing in drawings]


@dataclass(frozen=True)
class EmojiScores:
    """Shares of prompts, 0 to 1.

    `single` and `background`: the first picture of each prompt, CLIP's pick, shows the right emoji, the right colour.
    `random_...`: the same for a picture picked at random, not by drawing lots but as the mean over all candidates.
    `any_...`: at least one candidate does, what a perfect ranking would reach.
    """

    single_accuracy: float
    background_accuracy: float
    random_single_accuracy: float
    random_background_accuracy: float
    any_single_accuracy: float
    any_background_accuracy: float


def score(prompts: Sequence[EmojiPrompt], judged: Sequence[Sequence[Judgement]]) -> EmojiScores:
    """`judged` are the judgements of each prompt's candidates, best by CLIP first."""
    emoji = [[one.is_emoji(prompt) for one in row] for prompt, row in zip(prompts, judged, strict=True)]
    color = [[one.is_color(prompt) for one in row] for prompt, row in zip(prompts, judged, strict=True)]
    return EmojiScores(*shares(emoji, color))


def shares(*right: Sequence[Sequence[bool]]) -> Iterator[float]:
    """For each `right`: the share of prompts whose first candidate is right; then as a mean of all; then of any."""
    for take in ((lambda row: row[0]), np.mean, max):
        for of in right:
            yield float(np.mean([take(row) for row in of]))


def pick_gain(right: Sequence[Sequence[bool]]) -> tuple[float, float | None]:
    """How much oftener CLIP's pick is right than a random candidate, as a share of prompts, and its standard error.

    `right` tells each prompt's candidates, best by CLIP first. The difference is paired, taken within each prompt: what
    makes one prompt harder than another adds nothing to the error. A single prompt has no error: None.
    """
    gains = np.array([row[0] - np.mean(row) for row in right])
    error = float(np.std(gains, ddof=1) / np.sqrt(len(gains))) if len(gains) > 1 else None
    return float(np.mean(gains)), error


@dataclass(frozen=True)
class Mistake:
    """Candidates of one prompt that were taken for the same wrong thing; `picked`: CLIP's pick is one of them."""

    caption: str
    judged: str
    count: int
    picked: bool


def mistakes(
    prompts: Sequence[EmojiPrompt], judged: Sequence[Sequence[Judgement]], background: bool = False
) -> list[Mistake]:
    """Which emoji or backgrounds were taken for which: the mistakes of CLIP's picks first, then the commonest."""
    found = []
    for prompt, row in zip(prompts, judged, strict=True):
        right = [one.is_color(prompt) if background else one.is_emoji(prompt) for one in row]
        labels = [one.color if background else one.name for one in row]
        counts = Counter(label for label, correct in zip(labels, right, strict=True) if not correct)
        pick = None if right[0] else labels[0]
        found += [Mistake(prompt.caption, label, count, label == pick) for label, count in counts.items()]
    return sorted(found, key=lambda one: (not one.picked, -one.count, one.caption, one.judged))

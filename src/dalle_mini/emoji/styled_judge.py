"""Which things are in a picture, in which style, and where? A judge without any learning, for scenes of styles.

It is told nothing of what was asked for. The ground is the one that the border is nearest to. Every drawing of every
style is then compared with every box that a scene can have (`styled_layout.layouts`), at an eighth of the resolution.
The judge takes the layout whose best drawings leave the least unexplained. In each of its boxes it compares the best
drawings again at half the resolution. A thing therefore counts as seen only if none of some 5,000 drawings fits better.

`benchmarks/styled_quality.py --judge` measures how often it is right about pictures whose content is known.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from dalle_mini.emoji.art import GRID, PALETTE, Emoji
from dalle_mini.emoji.layout import Box, shared
from dalle_mini.emoji.scene_captions import DOWN, NAMED_GRADIENTS
from dalle_mini.emoji.scenes import Background, paint
from dalle_mini.emoji.styled_layout import SCALES, layouts
from dalle_mini.emoji.styles import SHIPPED_STYLES, Sprite, StyleArt, open_style
from dalle_mini.emoji.things import FACING, drawn_things

COARSE, FINE = 2, 8  # pixels of a cell, where all drawings and where the best are compared
BEST = 12  # drawings of a box that are compared again
PENALTY = 0.02  # the least share of a picture's content that one box more must explain
OUTLIER = 0.05  # squared distance of colours, 0 to 3, from which on a border pixel counts as none of the ground's
FAINT = 0.003  # squared distance of colours, 0 to 3, up to which a pixel is as the ground
EXPLAINED = 0.4  # the least share of its box's content that a drawing accounts for
ALIKE = 0.012  # root mean square of the difference of two drawings that no eye can tell apart
SPECK = 0.15  # difference from the ground, of the channel that differs most, of a pixel of a speck
SPECK_PIXELS = 16  # of a picture of 256 pixels
SHADE = 3  # pixels of 256 around a thing that are its own

GROUNDS = (
    *(Background((color,)) for color in PALETTE),
    *(Background(colors, DOWN) for colors in NAMED_GRADIENTS),
)


@dataclass(frozen=True)
class Drawing:
    """One look of a thing: emoji characters, a key of `STYLES`, a key of `recolor.COLORS` or None, mirrored or not."""

    characters: str
    style: str
    color: str | None = None
    flipped: bool = False


@dataclass(frozen=True)
class Seen:
    """The content of a box: the drawing that fits best, and those that look the same. None where nothing fits.

    `explained` is the share of what is in the box, beside the ground, that it accounts for, in squares.
    """

    box: Box
    drawings: tuple[Drawing, ...]
    explained: float

    def shows(self, emoji: Emoji | str, style: str | None = None, color: str | None = None) -> bool:
        """Whether it is this thing, in this style and colour where they are given."""
        characters = emoji if isinstance(emoji, str) else emoji.characters
        plain = characters.replace("\ufe0f", "")
        return any(
            one.characters.replace("\ufe0f", "") == plain and style in (None, one.style) and color in (None, one.color)
            for one in self.drawings
        )

    def has_style(self, style: str) -> bool:
        return any(one.style == style for one in self.drawings)


@dataclass(frozen=True)
class StyledJudgement:
    """All that is in a picture, those in front behind the others; `specks` touch none of it.

    `unexplained` is the share of what is not ground, in squares, that no thing accounts for.
    """

    ground: Background
    seen: tuple[Seen, ...]
    unexplained: float
    specks: int

    def characters(self) -> list[str]:
        """One emoji for each box, "" where nothing fits."""
        return [one.drawings[0].characters if one.drawings else "" for one in self.seen]


class StyledJudge:
    """`judge(images)` -> one `StyledJudgement` a picture.

    Takes 20 processor seconds to draw 1,112 emoji in four styles, and 350 MB of memory.

    Args:
        styles: keys of `STYLES`, or the art of each style by its name.
        folder: where the styles' files are; the user's cache if None.
        emoji: characters of what to compare with; all that the styles draw if None.
        painted: things and colours that are asked for, (characters, a key of `recolor.COLORS`).
        progress: called with (styles drawn, styles).
    """

    def __init__(
        self,
        styles: Sequence[str] | Mapping[str, StyleArt] = SHIPPED_STYLES,
        folder: str | Path | None = None,
        emoji: Iterable[str] | None = None,
        painted: Iterable[tuple[str, str]] = (),
        progress: Callable[[int, int], None] | None = None,
    ):
        given = styles if isinstance(styles, Mapping) else {style: open_style(style, folder) for style in styles}
        self._art = dict(given)
        chosen = list(dict.fromkeys(drawn_things() if emoji is None else emoji))
        self.drawings: list[Drawing] = []
        for number, (style, art) in enumerate(self._art.items()):
            looks: list[tuple[str, str | None]] = [(one, None) for one in chosen if one in art]
            looks += [(one, color) for one, color in dict.fromkeys(painted) if one in art and art.is_paintable(one)]
            for one, color in looks:
                self.drawings += [
                    Drawing(one, style, color, flipped) for flipped in (False, True)[: 1 + (one[0] in FACING)]
                ]
            if progress is not None:
                progress(number + 1, len(self._art))
        self._coarse = {scale: _Templates(squares) for scale, squares in self._squares().items()}
        self._boxes = sorted({box for boxes in layouts() for box in boxes}, key=repr)
        self._fine = lru_cache(maxsize=1024)(self._drawn_fine)

    def __call__(self, images: np.ndarray) -> list[StyledJudgement]:
        """Judge pictures, uint8 [n, S, S, 3]; S is a multiple of 128."""
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] % (GRID * FINE):
            raise ValueError(f"images: uint8 [n, S, S, 3], S a multiple of {GRID * FINE}, not {images.dtype}")
        return [self._judge(image) for image in images]

    def _judge(self, image: np.ndarray) -> StyledJudgement:
        coarse, fine = (_averaged(image[None], image.shape[0] // (GRID * cell))[0] for cell in (COARSE, FINE))
        ground = _ground(coarse)
        boxes, best = self._layout(coarse, _painted(ground, COARSE))
        seen, rest = self._refined(fine, _painted(ground, FINE), boxes, best)
        content = float(np.sum(_loud(fine - _painted(ground, FINE))))
        unexplained = min(1.0, float(np.sum(_loud(rest))) / content) if content else 0.0
        return StyledJudgement(ground, seen, unexplained, self._specks(image, ground, seen))

    def _layout(self, image: np.ndarray, ground: np.ndarray) -> tuple[tuple[Box, ...], list[np.ndarray]]:
        """The layout that explains most, and the best drawings of each of its boxes; empty for a bare ground."""
        rest = image - ground
        total = float(np.sum(rest**2))
        busy = [box for box in self._boxes if np.sum(_loud(rest[_pixels(box, COARSE)])) > 0]
        gains = self._gains([_View(box, rest, ground) for box in busy])
        found = dict(zip(busy, gains, strict=True))
        least = total
        chosen: tuple[Box, ...] = ()
        drawn: list[np.ndarray] = []
        for boxes in layouts():
            if any(box not in found for box in boxes):
                continue
            left = PENALTY * total * len(boxes)
            if len(boxes) == 2 and min(shared(*boxes)) > 0:
                more, best = self._one_in_front(image, ground, boxes)
            else:
                best = [found[box] for box in boxes]
                more = sum(float(np.min(one)) for one in best)
            if total + more + left < least:
                least, chosen, drawn = total + more + left, boxes, best
        return chosen, [np.argsort(one, kind="stable")[:BEST] for one in drawn]

    def _one_in_front(self, image: np.ndarray, ground: np.ndarray, boxes) -> tuple[float, list[np.ndarray]]:
        """The gain of two things, one in front of the other, and the gains of all drawings of each."""
        back, front = boxes
        free = np.ones(image.shape[:2], np.float32)
        free[_pixels(front, COARSE)] = 0
        (gains,) = self._gains([_View(back, image - ground, ground, free)])
        colors, opacity = self._coarse[back.scale].one(int(np.argmin(gains)))
        under = ground.copy()
        place = _pixels(back, COARSE)
        under[place] = colors + (1 - opacity) * under[place]
        (others,) = self._gains([_View(front, image - under, under)])
        place = _pixels(front, COARSE)
        shift = np.sum((image - under)[place] ** 2) - np.sum((image - ground)[place] ** 2)
        return float(np.min(gains) + np.min(others) + shift), [gains, others]

    def _gains(self, views: "Sequence[_View]") -> list[np.ndarray]:
        """For each view how much the squared difference grows by each drawing, [drawings]."""
        found: list[np.ndarray] = [np.empty(0)] * len(views)
        for scale in {view.box.scale for view in views}:
            rows = [number for number, view in enumerate(views) if view.box.scale == scale]
            vectors = np.stack([views[number].vector() for number in rows], axis=1)  # [features, boxes]
            gains = self._coarse[scale].against(vectors)
            for column, number in enumerate(rows):
                found[number] = gains[:, column]
        return found

    def _refined(self, image: np.ndarray, ground: np.ndarray, boxes, best) -> tuple[tuple[Seen, ...], np.ndarray]:
        """The boxes' contents, compared at a higher resolution, and what of the picture they leave."""
        seen, made = [], ground.copy()
        for number, (box, drawings) in enumerate(zip(boxes, best, strict=True)):
            place = _pixels(box, FINE)
            weight = np.ones((*image[place].shape[:2], 1), np.float32)
            for other in boxes[number + 1 :]:  # in front of it
                across, down = shared(box, other)
                if min(across, down) > 0:
                    covered = np.zeros(image.shape[:2], bool)
                    covered[_pixels(other, FINE)] = True
                    weight[covered[place]] = 0
            under, target = made[place], image[place]
            candidates = []
            for index in drawings:
                colors, opacity = self._fine(int(index), box.scale)
                drawn = colors + (1 - opacity) * under
                candidates.append((float(np.sum(weight * (target - drawn) ** 2)), int(index), drawn))
            error, _, drawn = min(candidates, key=lambda one: one[:2])
            content = float(np.sum(_loud(weight * (target - under))))
            explained = 1 - min(1.0, error / content) if content else 0.0
            names: tuple[Drawing, ...] = ()
            if explained >= EXPLAINED:
                alike = [
                    (far, index)
                    for far, index, other in candidates
                    if np.sqrt(np.mean(weight * (other - drawn) ** 2)) < ALIKE
                ]
                names = tuple(self.drawings[index] for _, index in sorted(alike))
                made[place] = drawn
            seen.append(Seen(box, names, explained))
        return tuple(seen), image - made

    def _specks(self, image: np.ndarray, ground: Background, seen: Sequence[Seen]) -> int:
        """How many groups of pixels differ from the ground and touch no thing."""
        from scipy import ndimage

        side = len(image)
        cell, unit = side // GRID, side / 256
        differs = np.max(np.abs(image.astype(np.int16) - paint(ground, side)), axis=-1) > 255 * SPECK
        own = np.zeros((side, side), bool)
        for one in seen:
            for drawing in one.drawings[:1]:
                sprite = self._sprite(drawing, one.box.scale * cell)
                height, width = sprite.background.shape[0], sprite.background.shape[1] // 3
                top, left = one.box.y * cell + sprite.top, one.box.x * cell + sprite.left
                own[top : top + height, left : left + width] |= sprite.background[:, ::3] < 255
        own = ndimage.binary_dilation(own, iterations=max(1, round(SHADE * unit))) if own.any() else own
        labels, count = ndimage.label(differs)
        if not count:
            return 0
        sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
        touching = np.bincount(labels[own], minlength=count + 1)[1:] > 0
        return int(np.sum((sizes >= SPECK_PIXELS * unit**2) & ~touching))

    def _sprite(self, drawing: Drawing, width: int) -> Sprite:
        return self._art[drawing.style].sprite(drawing.characters, width, drawing.color, drawing.flipped)

    def _drawn_fine(self, index: int, scale: int) -> tuple[np.ndarray, np.ndarray]:
        """Premultiplied colours [box, box, 3] and opacity [box, box, 1] at the finer resolution."""
        square = _averaged(_square(self._sprite(self.drawings[index], scale * GRID), scale * GRID)[None], GRID // FINE)
        return square[0, ..., :3], square[0, ..., 3:]

    def _squares(self) -> dict[int, np.ndarray]:
        """All drawings at each width, float32 [drawings, side, side, 4]: premultiplied colours and opacity."""
        sides = {scale: scale * COARSE for scale in SCALES.values()}
        squares = {scale: np.empty((len(self.drawings), side, side, 4), np.float32) for scale, side in sides.items()}
        for index, drawing in enumerate(self.drawings):
            for scale, drawn in squares.items():
                if drawing.flipped:
                    drawn[index] = drawn[index - 1, :, ::-1]
                    continue
                art = self._art[drawing.style]
                sprite = art._sprite(drawing.characters, scale * GRID, drawing.color)  # not kept: there are too many
                drawn[index] = _averaged(_square(sprite, scale * GRID)[None], GRID // COARSE)[0]
        return squares


class _View:
    """A box of a picture and what is under it, as the vector that tells each drawing's gain.

    A drawing of premultiplied colours C and opacity a changes what is under it, U, by T = C - a U. With the rest q that
    is to be explained and weights w it gains w (|T|^2 - 2 T q), a sum of five products.
    """

    def __init__(self, box: Box, rest: np.ndarray, under: np.ndarray, weight: np.ndarray | None = None):
        self.box = box
        place = _pixels(box, COARSE)
        self._rest, self._under = rest[place], under[place]
        self._weight = np.ones(self._rest.shape[:2], np.float32) if weight is None else weight[place]

    def vector(self) -> np.ndarray:
        weight = self._weight[..., None]
        parts = (
            -2 * weight * self._rest,  # of C
            -2 * weight * self._under,  # of a C
            self._weight,  # of |C|^2
            2 * self._weight * np.sum(self._under * self._rest, axis=-1),  # of a
            self._weight * np.sum(self._under**2, axis=-1),  # of a^2
        )
        return np.concatenate([part.ravel() for part in parts]).astype(np.float32)


class _Templates:
    """All drawings at one width: float32 [drawings, side, side, 4], premultiplied colours and opacity."""

    def __init__(self, squares: np.ndarray):
        self._side = squares.shape[1]
        colors, opacity = squares[..., :3], squares[..., 3]
        parts = (colors, opacity[..., None] * colors, np.sum(colors**2, axis=-1), opacity, opacity**2)
        self._features = np.concatenate([part.reshape(len(squares), -1) for part in parts], axis=1)

    def one(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        pixels = self._side**2
        colors, opacity = self._features[index, : 3 * pixels], self._features[index, 7 * pixels : 8 * pixels]
        return colors.reshape(self._side, self._side, 3), opacity.reshape(self._side, self._side, 1)

    def against(self, vectors: np.ndarray) -> np.ndarray:
        """The gain of each drawing in each view, [drawings, views]."""
        return self._features @ vectors


def _square(sprite: Sprite, side: int) -> np.ndarray:
    """A sprite in its box: uint8 [side, side, 4], premultiplied colours and opacity."""
    square = np.zeros((side, side, 4), np.uint8)
    height, width = sprite.colors.shape[0], sprite.colors.shape[1] // 3
    inner = square[sprite.top : sprite.top + height, sprite.left : sprite.left + width]
    inner[..., :3] = sprite.colors.reshape(height, width, 3)
    inner[..., 3] = 255 - sprite.background[:, ::3]
    return square


def _averaged(images: np.ndarray, factor: int) -> np.ndarray:
    """Bytes [n, H, W, C] as float32 in [0, 1], averaged over squares of `factor` pixels."""
    n, height, width, channels = images.shape
    blocks = images.reshape(n, height // factor, factor, width // factor, factor, channels)
    return blocks.mean(axis=(2, 4), dtype=np.float32) / 255


@lru_cache(maxsize=64)
def _painted(ground: Background, cell: int) -> np.ndarray:
    """A ground alone, averaged from 256 pixels, float32 [side, side, 3]."""
    return _averaged(paint(ground, GRID * GRID)[None], GRID // cell)[0]


def _ground(image: np.ndarray) -> Background:
    """The ground that most of the outermost cells' pixels are near to."""
    border = np.ones(image.shape[:2], bool)
    border[COARSE:-COARSE, COARSE:-COARSE] = False
    far = [np.sum((_painted(one, COARSE)[border] - image[border]) ** 2, axis=-1) for one in GROUNDS]
    return GROUNDS[int(np.argmin([np.minimum(one, OUTLIER).mean() for one in far]))]


def _loud(difference: np.ndarray) -> np.ndarray:
    """Squared differences [...] of colours [..., 3], 0 where they are faint."""
    squares = np.sum(difference**2, axis=-1)
    return np.where(squares > FAINT, squares, 0)


def _pixels(box: Box, cell: int) -> tuple[slice, slice]:
    left, top, side = box.x * cell, box.y * cell, box.scale * cell
    return slice(top, top + side), slice(left, left + side)

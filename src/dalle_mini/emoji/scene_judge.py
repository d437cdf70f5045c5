"""Are two emoji both in a picture, and where? A judge without any learning, for plain and graded backgrounds.

It is told which two emoji were asked for and nothing else. Each is looked for at every place and size that a scene can
have; where it fits best it is then weighed against every emoji that the font draws, there and a cell around, and counts
as present only if none fits better and it accounts for a good part of what is there. The judge takes into account that
one emoji covers the other: every emoji is tried in front of or behind the other, as the picture has it. The
relation is read from the two boxes.

How it does on held-out prompts, a third with size words, 90 at 64 pixels and 45 at 128 (`benchmarks/scene_judge.py`):

                                      both there   and related   two others   one other   look-alike
    exact, 64 pixels                       100 %          98 %          0 %         0 %          0 %
    exact, 128 pixels                      100 %         100 %          0 %         0 %          2 %
    half resolution, noise 20/255, 64       96 %          94 %          0 %         0 %          0 %
    half resolution, noise 20/255, 128     100 %         100 %          0 %         0 %          2 %
    first edition's VQGAN, 64, 23.8 dB      69 %          64 %          0 %         0 %          0 %

The last three columns ask for what is not there: both emoji of another prompt; the first that is there with the second
of another prompt; and in place of the second the emoji that looks most like it. The relations missed in exact pictures
are thin emoji in front of another that hide no pixel of it; in tidy scenes, where boxes meet at a corner, these are one
in ten of those with something in front (`benchmarks/emoji_quality.py` has the figure for its prompts, "exact"). In 13
to 18 % of the pictures two other emoji, where each fits best, happen to be in the relation asked for; a relation counts
only between two that are present.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dalle_mini.emoji.art import GRID, PALETTE, Emoji, all_emoji, find_font, sprite
from dalle_mini.emoji.judge import names_of_drawings
from dalle_mini.emoji.layout import ABOVE, IN_FRONT_OF, SCENE_SCALES, Box, fact, shared, touches
from dalle_mini.emoji.scene_captions import DIRECTIONS, RELATIONS
from dalle_mini.emoji.scenes import Background, paint

WORKING_SIZE = 64  # pixels: larger pictures are averaged down to it, which loses nothing that a small VQGAN keeps
BLOCK = 512  # emoji compared at a time
BATCH = 16  # pictures compared at a time
OUTLIER = 0.05  # squared distance of colours, 0 to 3, from which on a border pixel counts as none of the background's

# The least share of its box's content that an emoji accounts for. The best fit of all may still be a bad one, such as a
# pale emoji on the rim of another. 19 in 20 right ones reach 0.48 after a small VQGAN; wrong ones stayed below 0.38 at
# 64 pixels.
EXPLAINED = 0.4
FAINT = 0.03  # squared distance of colours, 0 to 3, up to which a pixel is noise and need not be accounted for
VISIBLE = 0.1  # squared difference, summed over a picture, that one order of drawing must have over the other

BACKGROUNDS = tuple(Background((color,)) for color in PALETTE) + tuple(
    Background(colors, direction) for colors in itertools.permutations(PALETTE, 2) for direction in DIRECTIONS
)


@dataclass(frozen=True)
class Found:
    """Where an emoji that was asked for fits best, and the names of the emoji that fits best there.

    More than one name where the font draws several emoji alike; none where the bare background fits better. `explained`
    is the share of what is in the box, beside the background and the other emoji, that it accounts for, in squares.
    """

    emoji: Emoji
    box: Box
    names: tuple[str, ...]
    explained: float = 1.0

    @property
    def present(self) -> bool:
        return self.emoji.name in self.names and self.explained >= EXPLAINED


@dataclass(frozen=True)
class SceneJudgement:
    """The judge's verdict on two emoji: each where it fits best.

    `first_in_front` tells whether the first is drawn over the second; None where no pixel shows it.
    """

    first: Found
    second: Found
    first_in_front: bool | None
    background: Background

    @property
    def both_present(self) -> bool:
        return self.first.present and self.second.present

    def is_related(self, relation: str) -> bool:
        """Whether the boxes are in the relation, a key of `RELATIONS`, wherever they are and whatever is in them.

        On top of is above without a gap, under and above are with one or without.
        """
        wanted = RELATIONS[relation]
        behind, front = (self.second, self.first) if self.first_in_front else (self.first, self.second)
        name, forward = fact(behind.box, front.box)
        stated_of_first = forward != bool(self.first_in_front)
        if name == IN_FRONT_OF and self.first_in_front is None:
            return False
        if name != wanted.fact or (wanted.forward is not None and stated_of_first != wanted.forward):
            return False
        upper, lower = (self.first.box, self.second.box) if stated_of_first else (self.second.box, self.first.box)
        return name != ABOVE or relation != "on top of" or touches(upper, lower)


class SceneJudge:
    """`judge(images, asked)` -> one `SceneJudgement` a picture; `asked` are the two emoji to look for in each.

    Takes some seconds to draw the emoji, and 40 MB of memory.

    Args:
        size: side of the pictures, pixels, a multiple of 16.
        emoji: what to compare with; all that the font draws if None.
        scales: widths of the boxes to look for, cells.

    Raises:
        UserError: the font is missing.
    """

    def __init__(
        self,
        size: int = 128,
        emoji: Sequence[Emoji] | None = None,
        font: str | Path | None = None,
        scales: Sequence[int] = SCENE_SCALES,
        progress: Callable[[int, int], None] | None = None,
    ):
        path = find_font(font)
        emoji = list(all_emoji(path) if emoji is None else emoji)
        self.size = size
        self._factor = size // WORKING_SIZE if size % WORKING_SIZE == 0 else 1
        self._side = size // self._factor
        self._cell = self._side // GRID
        self._index = {one.characters: number for number, one in enumerate(emoji)}
        self._drawn: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # scale: colours and opacity, uint8
        for scale in scales:
            box = scale * self._cell
            self._drawn[scale] = (
                np.empty((len(emoji), box, box, 3), np.uint8),
                np.empty((len(emoji), box, box), np.uint8),
            )
        for index, one in enumerate(emoji):
            for scale, (colors, opacity) in self._drawn.items():
                colors[index], opacity[index] = self._template(path, one, scale)
            if progress is not None:
                progress(index + 1, len(emoji))
        largest = zip(*self._drawn[max(scales)], strict=True)
        self._names = names_of_drawings(emoji, [colors.tobytes() + opacity.tobytes() for colors, opacity in largest])
        grounds = np.stack([paint(one, self._side) for one in BACKGROUNDS]).astype(np.float32) / 255
        self._border = np.ones((self._side, self._side), bool)
        self._border[self._cell : -self._cell, self._cell : -self._cell] = False
        self._grounds, self._grounds_border = grounds, grounds[:, self._border]  # [backgrounds, border pixels, 3]

    def __call__(self, images: np.ndarray, asked: Sequence[tuple[Emoji, Emoji]]) -> list[SceneJudgement]:
        """Judge pictures, uint8 [n, size, size, 3], each for two emoji, which are among those compared with."""
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.shape[1:] != (self.size, self.size, 3):
            raise ValueError(f"images: uint8 [n, {self.size}, {self.size}, 3], not {images.dtype} {images.shape}")
        if len(asked) != len(images):
            raise ValueError(f"{len(images)} images, but {len(asked)} pairs of emoji")
        if unknown := [one.name for pair in asked for one in pair if one.characters not in self._index]:
            raise ValueError(f"{unknown[0]!r} is none of the {len(self._index)} emoji to compare with")
        judged = []
        for start in range(0, len(images), BATCH):
            judged += self._judge(images[start : start + BATCH], asked[start : start + BATCH])
        return judged

    def _judge(self, images: np.ndarray, asked: Sequence[tuple[Emoji, Emoji]]) -> list[SceneJudgement]:
        pictures = self._averaged(images.astype(np.float32) / 255)
        placed = [self._place(image, pair) for image, pair in zip(pictures, asked, strict=True)]
        # All the pictures' crops of one size go through the same matrix products.
        crops: dict[int, list[tuple[tuple[int, int], _Crop]]] = {}
        for row, which in itertools.product(range(len(pictures)), (0, 1)):
            box = placed[row].boxes[which]
            for place in _around(box):
                crop = self._crop(pictures[row], placed[row], asked[row], which, place)
                crops.setdefault(box.scale, []).append(((row, which), crop))
        best: dict[tuple[int, int], tuple[float, tuple[str, ...], float]] = {}
        for scale, of_scale in crops.items():
            gains, nearest = self._nearest(scale, [crop for _, crop in of_scale])
            for (key, crop), gain, index in zip(of_scale, gains, nearest, strict=True):
                squares = np.sum(crop.rest**2, axis=-1)
                total = max(float(np.sum(squares[squares > FAINT])), float(-gain))
                # The bare background gains nothing.
                if gain < best.get(key, (0.0, (), 0.0))[0]:
                    best[key] = float(gain), self._names[index], float(-gain / total)
        judged = []
        for row, scene in enumerate(placed):
            fits = [best.get((row, which), (0.0, (), 0.0))[1:] for which in (0, 1)]
            first, second = (Found(one, box, *fit) for one, box, fit in zip(asked[row], scene.boxes, fits, strict=True))
            judged.append(SceneJudgement(first, second, scene.first_in_front, scene.background))
        return judged

    def _template(self, font: Path, emoji: Emoji, scale: int) -> tuple[np.ndarray, np.ndarray]:
        """Premultiplied colours [box, box, 3] and opacity [box, box], as bytes."""
        box = scale * self.size // GRID
        colors, background = sprite(font, emoji.characters, box)
        top = (box - len(colors)) // 2
        square = np.zeros((box, box, 4), np.float32)
        square[top : top + len(colors), :, :3] = colors
        square[top : top + len(colors), :, 3] = 255 - background[..., 0]
        small = np.rint(self._averaged(square[None])[0]).astype(np.uint8)
        return small[..., :3], small[..., 3]

    def _averaged(self, images: np.ndarray) -> np.ndarray:
        n, height, width, channels = images.shape
        blocks = images.reshape(n, height // self._factor, self._factor, width // self._factor, self._factor, channels)
        return blocks.mean(axis=(2, 4))

    def _of(self, emoji: Emoji, scale: int) -> tuple[np.ndarray, np.ndarray]:
        """Colours [box, box, 3] and opacity [box, box, 1] of one emoji, floats."""
        colors, opacity = self._drawn[scale]
        index = self._index[emoji.characters]
        return colors[index].astype(np.float32) / 255, opacity[index, ..., None].astype(np.float32) / 255

    def _background(self, image: np.ndarray) -> Background:
        """The background that most of the outermost cells' pixels are near to."""
        squares = np.sum((self._grounds_border - image[self._border]) ** 2, axis=-1)
        return BACKGROUNDS[np.argmin(np.minimum(squares, OUTLIER).mean(axis=1))]

    def _place(self, image: np.ndarray, asked: tuple[Emoji, Emoji]) -> _Placed:
        """The best places of the two emoji, each taking account of the other where they overlap."""
        background = self._background(image)
        ground = self._grounds[BACKGROUNDS.index(background)]
        alone = self._search(asked, image, ground, None)
        if min(shared(*alone)) <= 0:
            return _Placed((alone[0], alone[1]), None, background, ground)
        scenes = []
        for fixed, front in itertools.product((0, 1), (0, 1)):
            boxes = list(alone)
            for which in (1 - fixed, fixed):  # the one that may stand in the wrong place first
                other = 1 - which
                layer = (*self._of(asked[other], boxes[other].scale), boxes[other])
                (boxes[which],) = self._search([asked[which]], image, ground, layer, front == which)
            scene = _Placed((boxes[0], boxes[1]), front == 0, background, ground)
            scenes.append((float(np.sum((image - self._composed(scene, asked)) ** 2)), scene))
        error, best = min(scenes, key=lambda one: one[0])
        turned = replace(best, first_in_front=not best.first_in_front)
        hidden = np.sum((image - self._composed(turned, asked)) ** 2) - error
        return best if hidden > VISIBLE else replace(best, first_in_front=None)

    def _search(
        self,
        emoji: Sequence[Emoji],
        image: np.ndarray,
        ground: np.ndarray,
        other: tuple[np.ndarray, np.ndarray, Box] | None,
        in_front: bool = True,
    ) -> list[Box]:
        """For each emoji the box, of any scale and place, in which it lessens the squared difference most.

        `other` is what else there is, colours, opacity and box; the emoji is in front of it or behind it.
        """
        under, over, open_ = self._layers(ground, other, in_front)
        rest = image - over - open_ * under
        best: list[tuple[float, Box]] = [(np.inf, Box(0, 0, 0))] * len(emoji)
        for scale in self._drawn:
            rests, unders, opens = (self._windows(layer, scale) for layer in (rest, under, open_))
            across = GRID - scale + 1
            for number, one in enumerate(emoji):
                colors, opacity = (layer.transpose(2, 0, 1) for layer in self._of(one, scale))
                change = opens * (colors - opacity * unders)  # [places, 3, box, box]
                gains = np.sum(change * (change - 2 * rests), axis=(1, 2, 3))
                place = int(np.argmin(gains))
                if gains[place] < best[number][0]:
                    best[number] = float(gains[place]), Box(place % across, place // across, scale)
        return [box for _, box in best]

    def _layers(
        self, ground: np.ndarray, other: tuple[np.ndarray, np.ndarray, Box] | None, in_front: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The layers under and over an emoji, and how much of the former can be seen: [side, side, 3 or 1]."""
        over, open_ = np.zeros_like(ground), np.ones_like(ground[..., :1])
        if other is None:
            return ground, over, open_
        colors, opacity, box = other
        rows, columns = self._pixels(box)
        if in_front:
            under = ground.copy()
            under[rows, columns] = colors + (1 - opacity) * under[rows, columns]
            return under, over, open_
        over[rows, columns] = colors
        open_[rows, columns] = 1 - opacity
        return ground, over, open_

    def _composed(self, scene: _Placed, asked: tuple[Emoji, Emoji]) -> np.ndarray:
        image = scene.ground.copy()
        for which in (1, 0) if scene.first_in_front else (0, 1):
            colors, opacity = self._of(asked[which], scene.boxes[which].scale)
            rows, columns = self._pixels(scene.boxes[which])
            image[rows, columns] = colors + (1 - opacity) * image[rows, columns]
        return image

    def _crop(self, image: np.ndarray, scene: _Placed, asked: tuple[Emoji, Emoji], which: int, box: Box) -> _Crop:
        other = 1 - which
        others = (*self._of(asked[other], scene.boxes[other].scale), scene.boxes[other])
        under, over, open_ = self._layers(scene.ground, others, bool(scene.first_in_front) == (which == 0))
        rows, columns = self._pixels(box)
        under, over, open_ = under[rows, columns], over[rows, columns], open_[rows, columns]
        return _Crop(image[rows, columns] - over - open_ * under, under, open_)

    def _nearest(self, scale: int, crops: Sequence[_Crop]) -> tuple[np.ndarray, np.ndarray]:
        """For each crop the least gain, |r - T|^2 - |r|^2, of any emoji, and its index.

        An emoji of colours C and opacity a changes a crop by T = w (C - a U), where U is what is under it and w the
        share of that which can be seen; r is what is to be explained. Five matrix products give |T|^2 - 2 r T.
        """
        rest, under, open_ = (np.stack([getattr(crop, name) for crop in crops]) for name in ("rest", "under", "open"))

        def flat(array: np.ndarray) -> np.ndarray:
            return array.reshape(len(crops), -1).T  # [pixels or pixels * 3, crops]

        of_colors = flat(-2 * open_ * rest)
        of_opacity = flat(2 * open_[..., 0] * np.sum(under * rest, axis=-1))
        of_squares = flat(open_[..., 0] ** 2)
        of_products = flat(-2 * open_**2 * under)
        of_opacity_squares = flat(open_[..., 0] ** 2 * np.sum(under**2, axis=-1))
        blocks = []
        all_colors, all_opacity = self._drawn[scale]
        for start in range(0, len(all_colors), BLOCK):
            colors = all_colors[start : start + BLOCK].astype(np.float32) / 255
            opacity = all_opacity[start : start + BLOCK].astype(np.float32) / 255
            count = len(colors)
            blocks.append(
                colors.reshape(count, -1) @ of_colors
                + opacity.reshape(count, -1) @ of_opacity
                + np.sum(colors**2, axis=-1).reshape(count, -1) @ of_squares
                + (opacity[..., None] * colors).reshape(count, -1) @ of_products
                + (opacity**2).reshape(count, -1) @ of_opacity_squares
            )
        gains = np.concatenate(blocks)  # [emoji, crops]
        nearest = np.argmin(gains, axis=0)
        return gains[nearest, np.arange(len(crops))], nearest

    def _pixels(self, box: Box) -> tuple[slice, slice]:
        left, top, side = box.x * self._cell, box.y * self._cell, box.scale * self._cell
        return slice(top, top + side), slice(left, left + side)

    def _windows(self, layer: np.ndarray, scale: int) -> np.ndarray:
        """Every box of a scale on whole cells: [places, channels, box, box], row by row."""
        box = scale * self._cell
        windows = np.lib.stride_tricks.sliding_window_view(layer, (box, box), axis=(0, 1))
        windows = windows[:: self._cell, :: self._cell]  # [down, across, channels, box, box]
        return windows.reshape(-1, layer.shape[-1], box, box)


def _around(box: Box) -> Iterator[Box]:
    """The box and those a cell off it that are inside the picture."""
    places = (Box(box.x + x, box.y + y, box.scale) for y in (-1, 0, 1) for x in (-1, 0, 1))
    return (place for place in places if place.inside())


@dataclass(frozen=True)
class _Placed:
    """Two emoji in their best places on the background, and which is drawn over the other."""

    boxes: tuple[Box, Box]
    first_in_front: bool | None
    background: Background
    ground: np.ndarray


@dataclass(frozen=True)
class _Crop:
    """The pixels that an emoji in a box must explain: the rest of the image, the layer under it, how open that is."""

    rest: np.ndarray
    under: np.ndarray
    open: np.ndarray

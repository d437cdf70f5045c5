"""Where the emoji of a scene stand: boxes of whole cells, laid out by relations, and relations read back from boxes."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from dalle_mini.emoji.art import GRID
from dalle_mini.emoji.captions import pick

# Widths of boxes in scenes, cells. Few, so that a VQGAN meets an emoji in few sizes; two of `SCENE_MEDIUM`, and one
# beside the other sizes too, fit side by side.
SCENE_SMALL, SCENE_MEDIUM, SCENE_LARGE = 5, 7, 9
SCENE_SCALES = (SCENE_SMALL, SCENE_MEDIUM, SCENE_LARGE)
SCALE_OF = {"small": SCENE_SMALL, None: SCENE_MEDIUM, "large": SCENE_LARGE}

GAP = 2  # cells, the most between neighbours
TOUCH = 1  # cells by which a box on top of another overlaps it: emoji do not fill their boxes
# Columns of a box that one in front of it covers: so many that even a thin emoji in front is over it, while with the
# rows three fifths of the box stay free.
COVERED = {SCENE_SMALL: (3,), SCENE_MEDIUM: (4, 5), SCENE_LARGE: (5, 6)}

# The facts that a picture states. The other relations are these, read from the other end: right of, below, behind.
LEFT_OF, ABOVE, IN_FRONT_OF = FACTS = ("left of", "above", "in front of")


@dataclass(frozen=True)
class Box:
    """A square, in cells of a sixteenth of the picture: its top left corner and its side."""

    x: int
    y: int
    scale: int

    def inside(self) -> bool:
        return min(self.x, self.y) >= 0 and max(self.x, self.y) + self.scale <= GRID


def shared(first: Box, second: Box) -> tuple[int, int]:
    """How many columns and rows of cells two boxes have in common; minus the gap between them where they have none."""
    across, down = (
        min(a + first.scale, b + second.scale) - max(a, b) for a, b in ((first.x, second.x), (first.y, second.y))
    )
    return across, down


def fact(first: Box, second: Box) -> tuple[str, bool]:
    """The fact that two boxes state, `second` drawn over `first`: a name of `FACTS`, and whether it is of `first`.

    (LEFT_OF, True): first is left of second; (ABOVE, False): second is above first. Boxes that share more than the one
    row of cells by which a thing on top of another overlaps it state (IN_FRONT_OF, False): second is in front of first.
    Others are side by side or one above the other, whichever they are further apart in.
    """
    across, down = shared(first, second)
    if min(across, down) > TOUCH:
        return IN_FRONT_OF, False
    if across < down:
        return LEFT_OF, first.x + first.scale / 2 < second.x + second.scale / 2
    return ABOVE, first.y + first.scale / 2 < second.y + second.scale / 2


def touches(upper: Box, lower: Box) -> bool:
    """Whether a box that is above another stands on it."""
    return shared(upper, lower)[1] >= 0


def row(rng: random.Random, count: int, scale: int) -> list[Box]:
    """`count` boxes side by side, anywhere across, near the middle of the picture's height."""
    free = GRID - count * scale
    gap = _upto(rng, min(GAP, free // (count - 1)) if count > 1 else 0)
    left = _upto(rng, free - gap * (count - 1))
    top = _near_middle(rng, scale, reach=2)
    return [Box(left + index * (scale + gap), top, scale) for index in range(count)]


def triangle(rng: random.Random) -> list[Box]:
    """Three boxes of medium size, one above two."""
    left, top = (_upto(rng, GRID - 2 * SCENE_MEDIUM) for _ in range(2))
    half = SCENE_MEDIUM // 2
    corners = ((half, 0), (0, SCENE_MEDIUM), (SCENE_MEDIUM, SCENE_MEDIUM))
    return [Box(left + x, top + y, SCENE_MEDIUM) for x, y in corners]


def beside(rng: random.Random, left: Sequence[int], right: Sequence[int]) -> tuple[list[Box], list[Box]]:
    """A group left of another, each a row of boxes of the given scales."""
    free = GRID - sum(left) - sum(right)
    gap = _upto(rng, min(GAP, free))
    start = _upto(rng, free - gap)
    lift = _upto(rng, 2) - 1
    first = _line(start, _near_middle(rng, max(left)) + lift, left)
    return first, _line(start + sum(left) + gap, _near_middle(rng, max(right)) + lift, right)


def stacked(
    rng: random.Random, upper: Sequence[int], lower: Sequence[int], touching: bool
) -> tuple[list[Box], list[Box]]:
    """A group above another, or standing on it, each a row of boxes of the given scales."""
    free = GRID - max(upper) - max(lower)
    gap = -TOUCH if touching else min(free, 1 + _upto(rng, GAP - 1))
    top = _upto(rng, free - gap)
    middle = GRID / 2 + _upto(rng, 2) - 1
    first = _line(_fit(middle, sum(upper)), top, upper)
    return first, _line(_fit(middle, sum(lower)), top + max(upper) + gap, lower)


def overlapping(rng: random.Random, front: int, back: int) -> tuple[Box, Box]:
    """A box in front of another, over a lower corner of it and some of its side: corners alone are often empty."""
    columns = min(pick(rng, COVERED[back]), front)
    rows = min(front, back + 1) * 3 // 5
    across, down = back - columns, back - rows
    if rng.random() < 0.5:
        across = columns - front  # over the left corner
    left, right = min(0, across), max(back, across + front)
    x = _upto(rng, GRID - (right - left)) - left
    y = _upto(rng, GRID - max(back, down + front))
    return Box(x + across, y + down, front), Box(x, y, back)


def column(rng: random.Random) -> list[Box]:
    """Three small boxes, one above the other."""
    top = _upto(rng, GRID - 3 * SCENE_SMALL)
    left = _near_middle(rng, SCENE_SMALL, reach=2)
    return [Box(left, top + index * SCENE_SMALL, SCENE_SMALL) for index in range(3)]


def _line(left: int, top: int, scales: Sequence[int]) -> list[Box]:
    """Boxes side by side without gaps, on one base line."""
    base, boxes = top + max(scales), []
    for scale in scales:
        boxes.append(Box(left, base - scale, scale))
        left += scale
    return boxes


def _upto(rng: random.Random, most: int) -> int:
    """0 to `most`, both included."""
    return int(rng.random() * (most + 1))


def _near_middle(rng: random.Random, scale: int, reach: int = 1) -> int:
    return (GRID - scale) // 2 + _upto(rng, 2 * reach) - reach


def _fit(middle: float, width: int) -> int:
    """Where a row `width` cells wide begins so that it is centred at `middle` as far as the picture allows."""
    return min(max(int(middle - width / 2), 0), GRID - width)

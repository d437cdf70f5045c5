"""Where things stand in scenes of several styles: few sizes, on whole cells, so that few patterns are to be learned.

A thing is usually half the picture wide. "large" is three quarters, "small" 5 of 16 cells, "tiny" 3.
"""

import itertools
import random
from collections.abc import Sequence
from functools import lru_cache

from dalle_mini.emoji.art import GRID
from dalle_mini.emoji.captions import PLACES, pick
from dalle_mini.emoji.layout import ABOVE, FACTS, IN_FRONT_OF, LEFT_OF, Box

USUAL, LARGE, SMALL, TINY = 8, 12, 5, 3  # cells
SCALES: dict[str | None, int] = {None: USUAL, "large": LARGE, "small": SMALL, "tiny": TINY}
SIZES_SAID = {"large": ("large", "big", "huge"), "small": ("small", "little"), "tiny": ("tiny", "very small")}
MARGIN = {USUAL: 0, LARGE: 0, SMALL: 1, TINY: 1}  # cells between a thing at an edge and the edge

SCALES_OF_TWO = ((USUAL, USUAL), (SMALL, SMALL), (USUAL, SMALL), (SMALL, USUAL))
DRAWS = 200  # of each kind of layout, which are few

# Rows of some equal things.
ROWS: dict[int, tuple[tuple[int, ...], ...]] = {
    1: ((1,),),
    2: ((2,),),
    3: ((3,), (1, 2)),
    4: ((2, 2),),
    5: ((3, 2), (2, 3)),
    6: ((3, 3),),
    7: ((2, 3, 2), (3, 3, 1)),
    8: ((3, 2, 3), (3, 3, 2)),
    9: ((3, 3, 3),),
}


def alone(rng: random.Random, scale: int, place: tuple[int, int]) -> Box:
    """A thing in one of nine places, (column, row)."""
    column, row = place
    return Box(_start(rng, scale, column), _start(rng, scale, row), scale)


def _start(rng: random.Random, scale: int, place: int) -> int:
    if place == 1:
        return _middle(rng, scale)
    return MARGIN[scale] if place == 0 else GRID - scale - MARGIN[scale]


def _middle(rng: random.Random, width: int) -> int:
    """Where something in the middle begins; one of two cells where its width is odd."""
    free = GRID - width
    return free // 2 + (free % 2 and int(rng.random() * 2))


def grid(rng: random.Random, count: int, scale: int) -> list[Box]:
    """`count` equal things, in rows from the left to the right."""
    rows = pick(rng, [rows for rows in ROWS[count] if max(*rows, len(rows)) * scale <= GRID])
    top, shift = _middle(rng, len(rows) * scale), int(rng.random() * 2)
    boxes = []
    for number, across in enumerate(rows):
        free = GRID - across * scale
        left = free // 2 + (free % 2 and shift)
        boxes += [Box(left + column * scale, top + number * scale, scale) for column in range(across)]
    return boxes


def row(rng: random.Random) -> tuple[Box, ...]:
    """Three small things side by side."""
    shift = pick(rng, (0, 1))
    return tuple(Box(x + shift, 5, SMALL) for x in (0, SMALL, 2 * SMALL))


def pair_with_one(pair_above: bool) -> tuple[Box, Box, Box]:
    """Two things side by side, and one under or over them."""
    top, bottom = (0, USUAL) if pair_above else (USUAL, 0)
    return Box(0, top, USUAL), Box(USUAL, top, USUAL), Box((GRID - USUAL) // 2, bottom, USUAL)


def most_scale(count: int) -> int:
    """The usual size of `count` equal things."""
    return USUAL if count <= 4 else SMALL


def pair(rng: random.Random, fact: str, scales: Sequence[int], touching: bool) -> tuple[Box, Box]:
    """Two things in a fact of `layout.FACTS`: the left, upper or front one and the other. `scales` in that order.

    `touching`: the upper one stands on the lower one. One in front has the scale of the other.
    """
    one, other = scales
    if fact == LEFT_OF:
        gap = 0 if one + other == GRID else 1 if one != other else 2
        left, base = (GRID - one - other - gap) // 2, (GRID + max(scales)) // 2
        return Box(left, base - one, one), Box(left + one + gap, base - other, other)
    if fact == ABOVE:
        gap = 0 if touching or one + other == GRID else 1 if one != other else 2
        top = (GRID - one - other - gap) // 2
        return Box((GRID - one) // 2, top, one), Box((GRID - other) // 2, top + one + gap, other)
    if one == USUAL:  # over a lower corner of what is in the middle
        return Box(pick(rng, (0, USUAL)), USUAL, one), Box(USUAL // 2, USUAL // 2, other)
    back = Box(5, 4, other)
    return Box(pick(rng, (back.x - 2, back.x + 2)), back.y + 2, one), back


@lru_cache(maxsize=1)
def layouts() -> tuple[tuple[Box, ...], ...]:
    """Every layout that a scene can have: its boxes, one that is in front of another behind it in the list."""
    rng = random.Random("dalle-mini layouts")
    found: set[tuple[Box, ...]] = {pair_with_one(above) for above in (False, True)}
    for _ in range(DRAWS):
        found.add(row(rng))
        found.update((alone(rng, scale, place),) for scale in SCALES.values() for place in PLACES)
        for count in ROWS:
            found.update(tuple(grid(rng, count, scale)) for scale in {SMALL, TINY, most_scale(count)})
        for fact, scales in itertools.product(FACTS, SCALES_OF_TWO):
            if fact != IN_FRONT_OF or scales[0] == scales[1]:
                found.add(pair(rng, fact, scales, rng.random() < 0.5)[::-1])
    # One layout for those that differ in the order of their boxes alone; where one is in front, the order tells it.
    return tuple({frozenset(boxes) if len(boxes) != 2 else boxes: boxes for boxes in sorted(found, key=repr)}.values())

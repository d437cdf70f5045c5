"""Tidy emoji scenes: the emoji scenes of a small world, for models that have hours and not days to learn it.

Every emoji is 8 cells wide, half the picture, alone or not, and starts at a multiple of 4 cells. A VQGAN of 8-pixel
patches then makes of each emoji one pattern of 8 x 8 tokens in nine places: about 50 tokens to know by heart, where the
scenes of `scenes.py` have seven widths, 500 tokens, and places all over the picture. "small" is 4 cells wide and
the only size that is said.
"""

import random

from dalle_mini.emoji.art import COLOR_SAID_SHARE, GRID, PALETTE
from dalle_mini.emoji.captions import pick
from dalle_mini.emoji.layout import ABOVE, LEFT_OF, Box
from dalle_mini.emoji.nouns import is_counted, spoken
from dalle_mini.emoji.scene_captions import (
    DOWN,
    NAMED_GRADIENTS,
    RELATIONS,
    Mention,
    counted_caption,
    pair_caption,
    pair_with_one_caption,
)
from dalle_mini.emoji.scenes import (
    COUNTED,
    SINGLE,
    THREE,
    TWO,
    Background,
    EmojiScenes,
    Group,
    Thing,
    in_order,
    placed,
)
from dalle_mini.emoji.splits import ATTRIBUTES, PAIR, RELATION

WIDTH, TINY = 8, 4  # cells
START, MIDDLE, END = 0, (GRID - WIDTH) // 2, GRID - WIDTH

TIDY_SHARES = {SINGLE: 0.45, COUNTED: 0.05, TWO: 0.42, THREE: 0.08}
SMALL_SHARE, PLACED_SHARE = 0.08, 0.32  # of the single emoji
TIDY_GRADIENT_SHARE = 0.04
TIDY_GROUP_SHARE = 0.15  # of the scenes of two, one above the other: one side is two of the same

TWINS_APART = 0.22  # `scene_emoji(distance=...)`: the 704 emoji that are easiest to tell apart


class TidyScenes(EmojiScenes):
    """As `EmojiScenes`, with the layout of this module.

    - 45 % single: centred, in one of nine places (32 %), or small (8 %).
    - 42 % two in a relation; one above the other at times a row of two of the same.
    - 8 % two beside each other, above or under a third.
    - 5 % two in a row or three in a triangle of the same.

    The background is one of the palette's colours, said in 75 % of the captions and white in the others, or in 4 % of
    the pictures a gradient that has a name.
    """

    def _kind(self, rng: random.Random, held_out: str | None) -> str:
        needed = {PAIR: (TWO, THREE), RELATION: (TWO, THREE), ATTRIBUTES: (SINGLE,)}
        kinds = needed.get(held_out or "", tuple(TIDY_SHARES))
        lot = rng.random() * sum(TIDY_SHARES[kind] for kind in kinds)
        for kind in kinds:
            lot -= TIDY_SHARES[kind]
            if lot < 0:
                return kind
        return kinds[-1]

    def _background(self, rng: random.Random, said: bool) -> Background | None:
        if rng.random() < TIDY_GRADIENT_SHARE:
            return Background(pick(rng, tuple(NAMED_GRADIENTS)), DOWN)
        return Background((pick(rng, tuple(PALETTE)),)) if said or rng.random() < COLOR_SAID_SHARE else None

    def _place_single(
        self, rng: random.Random, sized: bool
    ) -> tuple[int, str | None, tuple[int, int] | None, tuple[float, float]]:
        kind = rng.random()
        if sized or kind < SMALL_SHARE:
            place = (pick(rng, (0, 1, 2)), pick(rng, (0, 1, 2))) if rng.random() < 0.5 else None
            scale, size, starts = TINY, "small", (1, (GRID - TINY) // 2, GRID - TINY - 1)
        else:
            placed = kind < SMALL_SHARE + PLACED_SHARE
            place = (pick(rng, (0, 1, 2)), pick(rng, (0, 1, 2))) if placed else None
            scale, size, starts = WIDTH, None, (START, MIDDLE, END)
        column, row = place or (1, 1)
        return scale, size, place, (starts[column], starts[row])

    def _same(self, rng: random.Random, sized: bool) -> tuple[tuple[Thing, ...], str]:
        emoji = pick(rng, pick(rng, self._counted))
        count = pick(rng, (2, 2, 3))
        boxes = line(MIDDLE, 2) if count == 2 else [*line(START, 1), *line(END, 2)]
        caption = counted_caption(rng, Mention(emoji.name, count), in_a_row=count == 2)
        return tuple(Thing(emoji, box) for box in boxes), caption

    def _two(self, rng: random.Random, sized: bool) -> tuple[tuple[Thing, ...], str]:
        emoji = self._pick(rng, 2)
        name = pick(rng, tuple(RELATIONS))
        counts = [1, 1]
        if RELATIONS[name].fact == ABOVE and rng.random() < TIDY_GROUP_SHARE:
            many = pick(rng, (0, 1))
            counts[many] = 2 if is_counted(spoken(emoji[many].name)) else 1
        sides = [[(one, None)] * count for one, count in zip(emoji, counts, strict=True)]
        mentions = [Mention(one.name, count) for one, count in zip(emoji, counts, strict=True)]
        return arrange_tidily(rng, name, *sides), pair_caption(rng, mentions[0], name, mentions[1])

    def _three(self, rng: random.Random, sized: bool) -> tuple[tuple[Thing, ...], str]:
        one, first, second = self._pick(rng, 3)
        name = pick(rng, ("under", "below", "above", "on top of"))
        caption = pair_with_one_caption(rng, (Mention(first.name), Mention(second.name)), name, Mention(one.name))
        return arrange_tidily(rng, name, [(first, None), (second, None)], [(one, None)]), caption


def arrange_tidily(rng: random.Random, name: str, subject: Group, object: Group) -> tuple[Thing, ...]:
    """As `scenes.arrange`: the things of a relation, one of a side or two where they are above each other."""
    relation = RELATIONS[name]
    first, second = in_order(rng, relation, subject, object)
    if relation.fact == LEFT_OF:
        boxes = [[box] for box in line(MIDDLE, 2)]
    elif relation.fact == ABOVE:
        boxes = [line(START, len(first)), line(END, len(second))]
    else:  # over a lower corner of what is in the middle
        boxes = [[Box(pick(rng, (START, END)), END, WIDTH)], [Box(MIDDLE, MIDDLE, WIDTH)]]
    return placed((first, second), boxes)


def line(top: int, count: int) -> list[Box]:
    """One box in the middle, or two side by side."""
    return [Box(x, top, WIDTH) for x in ((MIDDLE,) if count == 1 else (START, END))]

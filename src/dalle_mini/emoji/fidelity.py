"""How near is a picture of one thing to the right one? The right render in the right place, to compare it with."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from dalle_mini.emoji.art import Emoji
from dalle_mini.emoji.scenes import SINGLE, Background, Scene, Thing
from dalle_mini.emoji.styled import draw_styled
from dalle_mini.emoji.styled_judge import StyledJudgement
from dalle_mini.emoji.styled_layout import layouts
from dalle_mini.emoji.styles import StyleArt

SIZE = 256  # pixels


def right_render(
    image: np.ndarray,
    found: StyledJudgement,
    emoji: Emoji,
    styles: Sequence[str],
    ground: str | None,
    art: Mapping[str, StyleArt],
) -> np.ndarray:
    """The nearest picture of the thing that answers the prompt: uint8 [256, 256, 3].

    Its place is that of the one thing that the judge saw; all places that a single thing can have where it saw none, or
    several. Also mirrored.

    Args:
        image: what was drawn, uint8 [256, 256, 3].
        styles: that are right, keys of `art`.
        ground: a name of `PALETTE`; the one that the judge saw if None.
    """
    background = found.ground if ground is None else Background((ground,))
    boxes = [one.box for one in found.seen]
    if len(boxes) != 1:
        boxes = [alone[0] for alone in layouts() if len(alone) == 1]
    renders = (
        draw_styled(Scene("", (Thing(emoji, box, None, style, flipped=flipped),), background, SINGLE), SIZE, art)
        for box, style, flipped in itertools.product(boxes, styles, (False, True))
    )
    return min(renders, key=lambda render: float(np.mean((render.astype(np.float32) - image) ** 2)))

"""Debian's Noto Color Emoji as a style: the art of the second edition, to judge it by."""

import numpy as np

from dalle_mini.emoji.art import _is_drawn, find_font, sprite
from dalle_mini.emoji.styles import Sprite


class FontArt:
    """As `styles.StyleArt`, of the font's glyphs, which are a little wider than high. Nothing can be painted.

    Raises:
        UserError: the font is not there.
    """

    def __init__(self) -> None:
        self._font = find_font(None)

    def __contains__(self, characters: str) -> bool:
        return _is_drawn(self._font, characters)

    def is_paintable(self, characters: str) -> bool:
        return False

    def sprite(self, characters: str, width: int, color: str | None = None, flipped: bool = False) -> Sprite:
        colors, background = (part[:, :: -1 if flipped else 1] for part in sprite(self._font, characters, width))
        height = len(colors)
        channels = np.repeat(background, 3, axis=-1).reshape(height, -1)
        return Sprite(colors.reshape(height, -1), channels, 0, (width - height) // 2)

    _sprite = sprite

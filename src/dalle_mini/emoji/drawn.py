"""Emoji that are drawn on the spot to train on: their settings, and a map-style source of them."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dalle_mini.errors import UserError, shown
from dalle_mini.runtime.hashing import short_hash

EMOJI, SCENES = DRAWN_NAMES = "emoji", "emoji-scenes"  # a folder of such a name is written ./emoji
LENGTH = 10_000_000  # images of a source: enough never to come round again
MOST_JITTER = 1 << 20


@dataclass(frozen=True, kw_only=True)
class EmojiOptions:
    """The settings of drawn emoji, which are keys of a config's section `data`.

    Attributes:
        emoji_kinds: which emoji are drawn, by kinds of `art.EVERYDAY` for "emoji" and of `vocabulary.MORE` for
            "emoji-scenes"; None is all.
        people: draw people too in "emoji-scenes", in the genders and skin tones that the font has.
        jitter: cells by which a single emoji may be off the centre.

    Raises:
        UserError: a value makes no sense.
    """

    emoji_kinds: tuple[str, ...] | None = None
    people: bool = False
    jitter: int = 1

    def __post_init__(self):
        if not 0 <= self.jitter <= MOST_JITTER:
            raise UserError(f"data.jitter: {shown(self.jitter)} is not a number from 0 to {MOST_JITTER}")


class DrawnEmoji:
    """A map-style source of emoji, or of scenes of them, that are drawn when they are asked for.

    Args:
        name: one of `DRAWN_NAMES`.
        size: side of the images, pixels.
        seed: of what is drawn.
        split: "train" or "heldout".

    Raises:
        UserError: the font is missing, the size is not one that it draws, or there is no such kind of emoji.
    """

    def __init__(self, name: str, size: int, seed: int, split: str, options: EmojiOptions):
        from dalle_mini.emoji.art import EmojiImages, everyday_emoji, find_font
        from dalle_mini.emoji.scenes import EmojiScenes
        from dalle_mini.emoji.vocabulary import scene_emoji

        kind: type[EmojiImages | EmojiScenes]
        if name == EMOJI:
            kind, emoji = EmojiImages, everyday_emoji(kinds=options.emoji_kinds)
        else:
            kind, emoji = EmojiScenes, scene_emoji(kinds=options.emoji_kinds, people=options.people)
        self._source = kind(size, seed, LENGTH, emoji, split, jitter=options.jitter)
        drawn = [(one.characters, one.name) for one in self._source.emoji]
        self._origin = {
            "kind": name,
            "split": split,
            "seed": seed,
            "size": size,
            "jitter": options.jitter,
            "emoji": short_hash(json.dumps(drawn)),
            "font": short_hash(find_font().read_bytes()),
        }

    def __len__(self) -> int:
        return len(self._source)

    def batch(self, indices: Iterable[int]) -> tuple[np.ndarray, list[str]]:
        """Images uint8 [n, size, size, 3] and their captions, in the order of `indices`."""
        return self._source.batch(indices)

    def captions(self, index: int) -> list[str]:
        """The one caption of an image."""
        return [self._source.caption(index)]

    def origin(self) -> dict[str, Any]:
        """The choices that decide what is drawn, as flat JSON."""
        return self._origin

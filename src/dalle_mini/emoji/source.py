"""Emoji as a source of examples, so that they are encoded the way every other dataset is."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from dalle_mini.data.encode.filters import Filters
from dalle_mini.data.sources.example import Example
from dalle_mini.emoji.art import EmojiImages
from dalle_mini.emoji.scenes import SceneSource
from dalle_mini.errors import UserError

PART_ROWS = 2048
UNFILTERED = Filters(min_caption=None, max_caption=None, max_aspect=None, min_side=None)


@dataclass(frozen=True)
class EmojiPart:
    """Images `start` to `stop`, drawn when they are asked for."""

    images: EmojiImages | SceneSource
    start: int
    stop: int

    @property
    def name(self) -> str:
        return f"emoji {self.start} to {self.stop - 1}"

    @property
    def size(self) -> int:
        return self.stop - self.start

    def examples(self) -> Iterator[Example]:
        for index in range(self.start, self.stop):
            example = self.images[index]
            yield Example(f"emoji-{index:07d}", example.image, (example.caption,))


@dataclass(frozen=True)
class EmojiSource:
    """The first `rows` of the images of a source that draws.

    Attributes:
        images: the source that draws.
        rows: how many of its images.
        made_from: the choices that decide them (split, seed, ...), as flat JSON.

    Raises:
        UserError: there are not so many.
    """

    images: EmojiImages | SceneSource
    rows: int
    made_from: Mapping[str, Any] = field(default_factory=dict)
    sparse_columns: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 1 <= self.rows <= len(self.images):
            raise UserError(f"rows {self.rows}: from 1 to {len(self.images)} emoji images can be encoded")

    def origin(self) -> dict[str, Any]:
        return {"kind": "emoji", "rows": self.rows, **self.made_from}

    def parts(self) -> Sequence[EmojiPart]:
        starts = range(0, self.rows, PART_ROWS)
        return [EmojiPart(self.images, start, min(start + PART_ROWS, self.rows)) for start in starts]

"""The seam between the queue and what draws: parts of jobs go in, events come out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from dalle_mini.settings import GenerationSettings


@dataclasses.dataclass(frozen=True)
class About:
    """The model that draws, as clients are told.

    Attributes:
        model: its name.
        weights: a short hash of all weights.
        card: Markdown.
        checksums: SHA-256 of each network's weights, by network.
        grid, resolution: tokens and pixels of a side of an image.
        image_length, codebook_size: tokens of an image, and how many there are to choose from.
        guidance, temperature, top_k: where a request has none.
        dtype, device: of the computation.
        batch_size: images that one call draws at most.
    """

    model: str
    weights: str
    card: str
    checksums: dict[str, str]
    grid: int
    resolution: int
    image_length: int
    codebook_size: int
    guidance: float
    temperature: float
    top_k: int
    dtype: str
    device: str
    batch_size: int


@dataclasses.dataclass(frozen=True)
class Start:
    """The image that a job starts from: a picture or its tokens, and what of it is drawn anew.

    Attributes:
        pixels: uint8 [resolution, resolution, 3], or None.
        tokens: of an image, row by row, -1 where one is drawn; or None.
        cells: numbers of the tokens that are drawn anew.
        keep_top: the part of the height that is kept.
        vary: the part of what is kept that each candidate draws anew.
    """

    pixels: np.ndarray | None = None
    tokens: tuple[int, ...] | None = None
    cells: tuple[int, ...] = ()
    keep_top: float | None = None
    vary: float = 0.0


@dataclasses.dataclass(frozen=True)
class Part:
    """Some candidates of a job that are drawn in one call: `count` of them from number `first` on.

    Parts of the same `kind` may share a call.
    """

    job: str
    prompt: str
    settings: GenerationSettings  # resolved
    start: Start | None
    first: int
    count: int

    @property
    def kind(self) -> tuple:
        settings = self.settings
        return self.count, settings.decode, settings.guided, settings.top_p is None, self.start is None


class Progress(NamedTuple):
    """How far a call is, in passes of sequential decoding: one a token. Parallel decoding makes several at once."""

    done: int
    total: int


class Partial(NamedTuple):
    """An unfinished image of which the first `rows` of `total` rows of tokens are final; pixels uint8 [H, W, 3]."""

    job: str
    candidate: int
    rows: int
    total: int
    pixels: np.ndarray


class Picture(NamedTuple):
    """A finished image: pixels uint8 [H, W, 3], tokens int32 [image_length]."""

    candidate: int
    score: float
    tokens: np.ndarray
    pixels: np.ndarray


class Drawn(NamedTuple):
    """Images of a part, as they are finished: some or all.

    `kept` are the tokens that they started from, -1 where one was drawn, if from any.
    """

    job: str
    pictures: list[Picture]
    kept: tuple[int, ...] | None = None


class Failed(NamedTuple):
    """A part that cannot be drawn, and why."""

    job: str
    message: str


Event = Progress | Partial | Drawn | Failed


class Away(Exception):
    """A drawer does not answer: perhaps it is being replaced."""


class Drawer(Protocol):
    """Draws one call at a time. The other methods are called from other threads meanwhile, once it is open.

    `check` and `unknown_words` raise `Away` where it does not answer within seconds.
    """

    def open(self) -> About:
        """Load the model and draw something, so that the first request need not wait for it."""

    def check(self, prompt: str, settings: GenerationSettings) -> tuple[GenerationSettings, int]:
        """The settings with the model's own values, and the tokens of the prompt.

        Raises:
            UserError: the prompt cannot be drawn.
        """

    def unknown_words(self, prompt: str) -> list[tuple[str, tuple[str, ...]]] | None:
        """The words that the model has never seen, with the nearest known ones; None if it has no vocabulary."""

    def draw(self, parts: Sequence[Part]) -> Iterator[Event]:
        """Draw parts of one kind. Each ends in one `Drawn` or several, or in `Failed`, or in nothing if dropped."""

    def drop(self, job: str) -> None:
        """Draw no more of a job than must be: its part of the call runs on, masked, and ends in nothing."""

    def watch(self, job: str, below: int) -> None:
        """Give `Partial`s of a job's candidates whose numbers are below this one from now on; 0 is none."""

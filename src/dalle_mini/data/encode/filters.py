"""The filters of the DALL·E paper, and the user's own: which examples of a dataset are kept.

They apply in this order: `keep_captions` before an image is decoded, `image_problem` while it is decoded
(`imaging/decoding.py`), `score_problem` once there is a CLIP score, and `duplicates.py` over the whole dataset. Each
gives a reason of `reasons.py`, or None.
"""

import dataclasses
import logging
import math
import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any

from dalle_mini.data.encode import where
from dalle_mini.data.sources import captions as text
from dalle_mini.data.sources import reasons
from dalle_mini.data.sources.example import Example, Source
from dalle_mini.errors import UserError, listed, shown
from dalle_mini.runtime.installing import install_line
from dalle_mini.runtime.limits import limits
from dalle_mini.settings import LARGEST

logger = logging.getLogger("dalle_mini")

DUPLICATES = ("exact", "near")
LONGEST_RAW = 1_000_000  # characters; what is longer is not even cleaned
MOST_CAPTIONS = 1000  # of one picture
MOST_PIXELS = 178_956_970  # 537 MB once decoded; who wants more raises the limit `pixels`
SHORTEST_JUDGED = 3  # words; of fewer no detector can tell the language
SURE, UNLIKELY = 0.4, 0.02  # probabilities of another language and of English
PEEKED = 64  # examples that tell what columns a source has


@dataclasses.dataclass(frozen=True)
class Filters:
    """The limits for captions and images. None turns a filter off.

    The DALL·E paper (Ramesh et al. 2021, https://arxiv.org/abs/2102.12092) dropped short captions, captions not in
    English, and pictures whose aspect ratio is not in [1/2, 2]. The other numbers are this project's.

    Attributes:
        min_caption: characters of the cleaned caption, at least.
        max_caption: characters, at most; a model reads some 64 tokens, about 300 characters.
        english: keep captions in English only.
        max_aspect: longer side over shorter side, at most; 2 is the paper's [1/2, 2].
        min_side: pixels of the shorter side, at least.
        max_pixels: width times height, at most; what has more is not decoded.
        duplicates: "exact" drops pictures with an earlier one's pixels, "near" also those that look like one.
        near_distance: bits, of the 64 of a perceptual hash, in which two pictures that look alike may differ.
        min_clip_score, max_clip_score: of CLIP's cosine of picture and caption.
        where: a condition on the source's columns, as `where.py` reads it.

    Raises:
        UserError: a value makes no sense.
    """

    min_caption: int | None = 3
    max_caption: int | None = 1000
    english: bool = False
    max_aspect: float | None = 2.0
    min_side: int | None = 64
    max_pixels: int = dataclasses.field(default_factory=lambda: limits().pixels)
    duplicates: str | None = None
    near_distance: int = 3
    min_clip_score: float | None = None
    max_clip_score: float | None = None
    where: str | None = None

    def __post_init__(self) -> None:
        def check(name: str, sound: bool, must: str) -> None:
            if not sound:
                option = "--" + name.replace("_", "-")
                raise UserError(f"{option} is {shown(getattr(self, name))}: it must be {must}")

        for name in ("min_caption", "max_caption", "min_side"):
            value = getattr(self, name)
            check(name, value is None or 0 <= value < 2**31, "at least 0, and less than 2**31")
        for name in ("max_aspect", "min_clip_score", "max_clip_score"):
            value = getattr(self, name)
            check(name, value is None or math.isfinite(value), "a number, or off for no limit")
            check(name, value is None or abs(value) <= LARGEST, f"at most {LARGEST:g}")
        check("max_aspect", self.max_aspect is None or self.max_aspect >= 1, "at least 1")
        most = max(MOST_PIXELS, limits().pixels)
        check("max_pixels", 1 <= self.max_pixels <= most, f"from 1 to {most}")
        check("duplicates", self.duplicates in (None, *DUPLICATES), " or ".join(DUPLICATES))
        check("near_distance", 0 <= self.near_distance <= 8, "from 0 to 8")
        for low, high in (("min_caption", "max_caption"), ("min_clip_score", "max_clip_score")):
            least, most = getattr(self, low), getattr(self, high)
            check(high, least is None or most is None or least <= most, f"at least --{low.replace('_', '-')}, {least}")
        if self.where is not None:
            where.parse(self.where)


def keep_captions(example: Example, filters: Filters) -> tuple[tuple[str, ...], str | None]:
    """(an example's captions, cleaned and filtered, each once; None), or ((), the reason to drop the example).

    Its image is not looked at. One caption that passes is enough to keep the example; otherwise the reason is that of
    its first caption. Captions beyond the first thousand are ignored. The columns are judged here too, as they need no
    image.
    """
    reason = example.problem or columns_problem(example.columns, filters)
    if reason:
        return (), reason
    kept: dict[str, None] = {}
    first = reasons.NO_CAPTION
    for number, caption in enumerate(example.captions[:MOST_CAPTIONS]):
        if len(caption) > max(LONGEST_RAW, filters.max_caption or 0):
            reason = reasons.CAPTION_TOO_LONG
        else:
            caption = text.clean(caption)
            reason = caption_problem(caption, filters)
        if reason is None:
            kept[caption] = None
        if number == 0 and reason:
            first = reason
    return (tuple(kept), None) if kept else ((), first)


def caption_problem(caption: str, filters: Filters) -> str | None:
    """The reason to drop a cleaned caption, or None."""
    if not caption:
        return reasons.NO_CAPTION
    if filters.min_caption is not None and len(caption) < filters.min_caption:
        return reasons.CAPTION_TOO_SHORT
    if filters.max_caption is not None and len(caption) > filters.max_caption:
        return reasons.CAPTION_TOO_LONG
    if filters.english and not may_be_english(caption):
        return reasons.NOT_ENGLISH
    return None


def columns_problem(columns: Mapping[str, Any], filters: Filters) -> str | None:
    """The reason to drop an example by what else its source tells of it: `where`."""
    if filters.where is None:
        return None
    holds = where.holds(filters.where, columns)
    if holds is None:
        return reasons.WHERE_MISSING
    return None if holds else reasons.WHERE_FALSE


def image_problem(width: int, height: int, filters: Filters) -> str | None:
    """The reason to drop a picture of these sides, in pixels, as it is shown (after the camera's rotation), or None."""
    if width * height > filters.max_pixels:
        return reasons.TOO_MANY_PIXELS
    if filters.min_side is not None and min(width, height) < filters.min_side:
        return reasons.IMAGE_TOO_SMALL
    if filters.max_aspect is not None and max(width, height) > filters.max_aspect * min(width, height):
        return reasons.ASPECT_RATIO
    return None


def score_problem(score: float | None, filters: Filters) -> str | None:
    """The reason to drop a picture and caption of this CLIP cosine, or None; without a score a range drops it."""
    low, high = filters.min_clip_score, filters.max_clip_score
    if low is None and high is None:
        return None
    if score is None or not (low is None or score >= low) or not (high is None or score <= high):
        return reasons.CLIP_SCORE
    return None


def check_where(filters: Filters, source: Source) -> None:
    """Raises UserError, naming the columns there are, where `where` speaks of one that the source does not have.

    The first examples are read for it. Where a column may come later, as each example has its own, a notice says that
    it was not met so far.
    """
    if filters.where is None:
        return
    wanted, read = set(where.columns(filters.where)), 0
    known: set[str] = set()
    for part in source.parts()[:8]:
        for example in islice(part.examples(), PEEKED):
            known |= example.columns.keys()
            read += 1
        if known >= wanted or (known and not source.sparse_columns):
            break
    if not (known and source.sparse_columns):
        where.check_columns(filters.where, known)
    for name in sorted(wanted - known):
        logger.warning(
            "--where: none of the first %d examples has %r (their columns are %s): those without it are dropped",
            read, name, listed(sorted(known), 30),
        )  # fmt: skip


def may_be_english(caption: str) -> bool:
    """False where a caption is surely not English: another script, or another language with some certainty.

    A caption of one or two words is judged by its script alone, and one that a detector is not sure about stays
    ("an avocado armchair", "Santa Maria Novella, Firenze"): dropping good captions is worse than keeping odd ones.
    """
    letters = [character for character in caption if character.isalpha()]
    if not letters:
        return True  # numbers and emoji are read alike
    foreign = sum(not _is_latin(character) for character in letters)
    if 2 * foreign > len(letters):
        return False
    if len(caption.split()) < SHORTEST_JUDGED:
        return True
    ranked: Sequence[tuple[str, float]] = _identifier().rank(caption)
    english = dict(ranked)["en"]
    return ranked[0][1] < SURE or english >= UNLIKELY


def _is_latin(character: str) -> bool:
    return character.isascii() or unicodedata.name(character, "").startswith("LATIN")


@lru_cache(maxsize=1)
def _identifier():
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise UserError(f"--english needs py3langid: {install_line('data')}") from None
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)

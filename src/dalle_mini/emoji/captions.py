"""The words of the emoji data set: CLDR names made plain, articles, and the sentences around them."""

import random
import re
import unicodedata
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

SIZE_WORDS = {"small": ("small", "small", "tiny"), "large": ("big", "large", "huge")}

# (column, row), both 0..2 from the top left -> wordings
PLACES: dict[tuple[int, int], tuple[str, ...]] = {
    (0, 0): ("in the top left corner", "in the top left", "in the upper left corner"),
    (1, 0): ("at the top", "in the top middle"),
    (2, 0): ("in the top right corner", "in the top right", "in the upper right corner"),
    (0, 1): ("on the left", "on the left side"),
    (1, 1): ("in the middle", "in the center"),
    (2, 1): ("on the right", "on the right side"),
    (0, 2): ("in the bottom left corner", "in the bottom left", "in the lower left corner"),
    (1, 2): ("at the bottom", "in the bottom middle"),
    (2, 2): ("in the bottom right corner", "in the bottom right", "in the lower right corner"),
}

# {thing} has its article, {noun} has none; {Color} has its article, {color} has none; {place} follows its noun with a
# space or is nothing. The first of each list is the commonest wording, so it stands more than once.
WITH_COLOR = (
    "{thing}{place} on {Color} background",
    "{thing}{place} on {Color} background",
    "{thing}{place} on {Color} background",
    "{thing} on {Color} background{place}",
    "{noun}{place}, {color} background",
    "{Color} background with {thing}{place}",
    "a picture of {thing}{place} on {Color} background",
)
WITHOUT_COLOR = (
    "{thing}{place}",
    "{thing}{place}",
    "{noun}{place}",
    "a picture of {thing}{place}",
    "an emoji of {thing}{place}",
)

# Names of stuff, games and buildings that take no article although they look singular.
_STUFF = """
    bacon, bread, baguette bread, broccoli, butter, canned food, confetti, cooked rice, curry rice, fire, fog, garlic,
    ginger root, ice, popcorn, salt, soap, spaghetti, sushi, wood, cooking, dna, high voltage, mount fuji, badminton,
    bowling, field hockey, ice hockey, lacrosse, ping pong, tennis
"""
NO_ARTICLE = frozenset(name.strip() for name in _STUFF.split(","))
# The first noun of "sheaf of rice" and "dashing away with ..." decides on the article, so the rest is cut away.
_AFTER_HEAD = re.compile(r" (?:of|with|without|in|on|over|behind|from|and) ")
_SOUNDS_LIKE_CONSONANT = re.compile(r"(?:uni(?!n)|uk\b|us\b|u s\b|eu|ewe|one\b|one-|ufo|user|use)")
_SOUNDS_LIKE_VOWEL = re.compile(r"(?:[aeiou]|hour|heir|honest|x-ray|8|11|18)")


def pick(rng: random.Random, options: Sequence[T]) -> T:
    """One of the options. Only `random()` is promised to stay the same in later Pythons; `choice()` is not."""
    return options[int(rng.random() * len(options))]


def english_name(characters: str, cldr_name: str) -> str:
    """A CLDR short name as the emoji package writes it (":T-Rex:", ":Côte_d’Ivoire:") in plain lower-case ASCII words.

    Flags are called "flag of ...": without that Turkey would be the bird.
    """
    name = cldr_name.strip(":").replace("_", " ").replace("’", "'").replace("&", "and").replace("#", "hash")
    name = name.replace("*", "asterisk")
    name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    name = " ".join(re.sub(r"[^a-z0-9' -]", " ", name).split())
    first = ord(characters[0])
    if 0x1F1E6 <= first <= 0x1F1FF or (first == 0x1F3F4 and "\U000e0067" in characters):
        return f"flag of {name}"
    return name


def has_article(name: str) -> bool:
    """Whether an emoji's name is a single thing: plurals ("grapes") and stuff ("bread") have no "a"."""
    head = _AFTER_HEAD.split(name, maxsplit=1)[0]
    if name in NO_ARTICLE or head in NO_ARTICLE or name.startswith(("men ", "women ", "people ")):
        return False
    return not head.endswith("s") or head.endswith(("ss", "us", "ceros"))


def with_article(phrase: str) -> str:
    """The phrase after "a" or "an", whichever its sound wants."""
    vowel = _SOUNDS_LIKE_VOWEL.match(phrase) and not _SOUNDS_LIKE_CONSONANT.match(phrase)
    return f"{'an' if vowel else 'a'} {phrase}"


def background_caption(
    rng: random.Random, name: str, color: str | None, size_word: str | None, place: tuple[int, int] | None
) -> str:
    """One of the wordings for an emoji on a background.

    `color` is the background's (None: not said), `size_word` a key of `SIZE_WORDS`, `place` a key of `PLACES`.
    """
    noun = f"{pick(rng, SIZE_WORDS[size_word])} {name}" if size_word else name
    words = {
        "noun": noun,
        "thing": with_article(noun) if has_article(name) else noun,
        "place": f" {pick(rng, PLACES[place])}" if place else "",
    }
    if color is None:
        return pick(rng, WITHOUT_COLOR).format(**words)
    return pick(rng, WITH_COLOR).format(**words, color=color, Color=with_article(color))

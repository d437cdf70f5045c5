"""Which words of a prompt a model has never seen, and the nearest that it has: from a vocabulary kept in its bundle.

The vocabulary is one JSON file, `vocabulary.json`: the words of the training captions, and the words that the Unicode
CLDR gives to the same emoji as some of them. "armchair: never seen; near: chair, couch".
"""

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dalle_mini.errors import UserError
from dalle_mini.runtime.files import write_whole
from dalle_mini.text.normalize import CaptionNormalizer
from dalle_mini.weights.bundle import VOCABULARY

NEAREST = 3  # words that are told
SHORTEST = 4  # letters of a noun within a compound
# Words, and numbers from 10. The digits alone are in all captions that count.
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?|(?<![\w.,])[1-9]\d+(?!\w)")


@dataclass(frozen=True)
class UnknownWord:
    """A word of a prompt that no training caption had, and the nearest that some had; best first, maybe none."""

    word: str
    near: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.word}: never seen" + (f"; near: {', '.join(self.near)}" if self.near else "")


class KnownWords:
    """The words that a model has seen.

    Args:
        words: all of them, lower-case.
        related: a word -> known words, or names of several words, the nearest first: of a word that it has not seen
            those that are said of the same things, and of a known noun the names of things of its kind.
    """

    def __init__(self, words: Iterable[str], related: Mapping[str, Iterable[str]] | None = None):
        self.words = tuple(sorted(set(words)))
        self._known = frozenset(self.words)
        self._normalize = CaptionNormalizer(None)
        self._related = {word: tuple(near) for word, near in (related or {}).items()}

    def unknown(self, prompt: str) -> list[UnknownWord]:
        """The words of the normalised prompt that the model has not seen, each once, in their order."""
        words = dict.fromkeys(_WORD.findall(self._normalize(prompt)))
        return [UnknownWord(word, self.nearest(word)) for word in words if not self.has(word)]

    def has(self, word: str) -> bool:
        return word in self._known or any(one in self._known for one in _stems(word))

    def nearest(self, word: str) -> tuple[str, ...]:
        """Known words that are said of the same things; if there are none, those that it is a slip or a form of.

        A form is "raining", of rain, or a compound: an armchair is a chair.
        """
        for find in (self._relatives, self._form_of, self._slip_of, self._compound_of):
            for one in (*_stems(word), word):
                if near := find(one):
                    return near
        return ()

    def _form_of(self, word: str) -> tuple[str, ...]:
        """The known word that this is made of, and its relatives."""
        root = next((one for one in _roots(word) if one in self._known), None)
        return (root, *self._relatives(root))[:NEAREST] if root else ()

    def _relatives(self, word: str) -> tuple[str, ...]:
        """Those that the vocabulary has for the word; all of their words are known."""
        near = (one for one in self._related.get(word, ()) if self._known.issuperset(_WORD.findall(one)))
        return tuple(itertools.islice(near, NEAREST))

    def _slip_of(self, word: str) -> tuple[str, ...]:
        """The known words of the nearest spelling that begin with the same letter."""
        found: dict[int, list[str]] = {}
        for one in self.words:
            slips = min(max(len(one), len(word)) // 3, 2)
            if one[0] == word[0] and (distance := edit_distance(one, word)) <= slips:
                found.setdefault(distance, []).append(one)
        return tuple(found[min(found)][:NEAREST]) if found else ()

    def _compound_of(self, word: str) -> tuple[str, ...]:
        """The known noun that ends or begins the word, and its relatives: an armchair is a chair."""
        ends = (word[at:] for at in range(2, len(word) - SHORTEST + 1))
        begins = (word[:at] for at in range(len(word) - 2, SHORTEST - 1, -1))
        for noun in itertools.chain(ends, begins):
            if noun in self._known and noun in self._related:
                return (noun, *self._relatives(noun))[:NEAREST]
        return ()

    def save(self, folder: Path) -> None:
        related = {word: list(near) for word, near in sorted(self._related.items())}
        write_whole(folder / VOCABULARY, json.dumps({"words": self.words, "related": related}, indent=0))

    @classmethod
    def load(cls, folder: str | Path) -> "KnownWords | None":
        """The vocabulary of a model's folder, or None if it has none. Raises UserError if the file is damaged."""
        path = Path(folder) / VOCABULARY
        try:
            content = json.loads(path.read_bytes())
            return cls(content["words"], content["related"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: not a vocabulary ({error})") from None


def _stems(word: str) -> tuple[str, ...]:
    """The words that this may be the plural of."""
    if word.endswith("'s"):
        return (word[:-2],)
    endings = (("s", ""), ("es", ""), ("ies", "y"), ("ves", "f"), ("men", "man"))
    stems = (word.removesuffix(end) + singular for end, singular in endings if word.endswith(end))
    return tuple(stem for stem in stems if stem)  # "s" is left of "50s"


def _roots(word: str) -> tuple[str, ...]:
    """The words of three letters or more that this may be a form of: "sitting" of sit, "riding" of ride."""
    roots = [word.removesuffix(end) for end in ("ing", "ed", "y", "ish") if word.endswith(end)]
    single = [root[:-1] for root in roots if root[-1:] == root[-2:-1]]
    return tuple(one for root in roots + single for one in (root, root + "e") if len(root) >= 3)


def edit_distance(one: str, other: str) -> int:
    """The fewest letters left out, put in, changed, or swapped with the next, that make one word the other."""
    before: list[int] = []
    row = list(range(len(other) + 1))
    for place, letter in enumerate(one):
        last, row, before = before, [place + 1], row
        for at, wanted in enumerate(other):
            row.append(min(before[at + 1] + 1, row[at] + 1, before[at] + (letter != wanted)))
            if place and at and letter == other[at - 1] and one[place - 1] == wanted:
                row[-1] = min(row[-1], last[at - 1] + 1)
    return row[-1]


def related_words(groups: Iterable[Iterable[str]], known: Iterable[str]) -> dict[str, list[str]]:
    """For each word that is not known the known words of its groups, those that share most of them first.

    A group is what is said of one thing: "chair", "seat", "sit". A known word that is in many groups says little, so
    those of fewer groups come first among equals.
    """
    seen = frozenset(known)
    sets = [frozenset(group) for group in groups]
    spread = Counter(word for group in sets for word in group & seen)
    shared: dict[str, Counter[str]] = {}
    for group in sets:
        for word in group - seen:
            shared.setdefault(word, Counter()).update(group & seen)
    return {
        word: sorted(near, key=lambda one: (-near[one], spread[one], one))[: 2 * NEAREST]
        for word, near in shared.items()
        if near
    }

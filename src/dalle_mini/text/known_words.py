"""Which words of a prompt a model has never seen, and the nearest that it has: from a vocabulary kept in its bundle.

The vocabulary is one JSON file, `vocabulary.json`: the words of the training captions, and the words that the Unicode
CLDR gives to the same emoji as some of them. "armchair: never seen; near: chair, couch".
"""

import difflib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dalle_mini.errors import UserError
from dalle_mini.runtime.files import write_whole

FILE = "vocabulary.json"
NEAREST = 3  # words that are told
SPELLING = 0.7  # the least likeness of two spellings, as difflib measures it
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")


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
        related: words that it has not seen, each with those that are said of the same things, the nearest first.
    """

    def __init__(self, words: Iterable[str], related: Mapping[str, Iterable[str]] | None = None):
        self.words = tuple(sorted(set(words)))
        self._known = frozenset(self.words)
        self._related = {word: tuple(near) for word, near in (related or {}).items()}

    def unknown(self, prompt: str) -> list[UnknownWord]:
        """The words of a prompt that the model has not seen, each once, in their order."""
        words = dict.fromkeys(_WORD.findall(prompt.lower().replace("’", "'")))
        return [UnknownWord(word, self.nearest(word)) for word in words if not self.has(word)]

    def has(self, word: str) -> bool:
        return word in self._known or any(one in self._known for one in _stems(word))

    def nearest(self, word: str) -> tuple[str, ...]:
        """Known words that are said of the same things; where there are none, those of a like spelling."""
        for one in (word, *_stems(word)):
            if near := [found for found in self._related.get(one, ()) if found in self._known]:
                return tuple(near[:NEAREST])
        return tuple(difflib.get_close_matches(word, self.words, NEAREST, SPELLING))

    def save(self, folder: Path) -> None:
        related = {word: list(near) for word, near in sorted(self._related.items())}
        write_whole(folder / FILE, json.dumps({"words": self.words, "related": related}, indent=0))

    @classmethod
    def load(cls, folder: str | Path) -> "KnownWords | None":
        """The vocabulary of a model's folder, or None if it has none. Raises UserError if the file is damaged."""
        path = Path(folder) / FILE
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
    stems = [word[:-1]] if word.endswith("s") else []
    stems += [word[:-2]] if word.endswith("es") else []
    return (*stems, *([word[:-3] + "y"] if word.endswith("ies") else []))


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

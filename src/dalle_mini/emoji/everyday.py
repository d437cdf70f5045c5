"""Prompts in everyday words, and which things answer them.

Those of `benchmarks/everyday_prompts.txt` say it; those that texts print are read by `CaptionReader`.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dalle_mini.emoji.art import PALETTE
from dalle_mini.emoji.nouns import is_counted, plural
from dalle_mini.emoji.phrases import NUMBERS
from dalle_mini.emoji.scene_captions import NAMED_GRADIENTS
from dalle_mini.emoji.words import Lexicon
from dalle_mini.errors import UserError

_GROUP = re.compile(r"\[([^\]]+)\]|(\S+)")
_ONE = re.compile(r"(\d[x+])?([^\d](?:\u200d[^\d]|\ufe0f)*)")
_LOOKS = "|".join([*PALETTE, *NAMED_GRADIENTS.values()])
_GROUND = re.compile(rf"\b(?:(?:on|with) )?(?:an? )?(?:{_LOOKS}) (?:background|gradient)\b")


@dataclass(frozen=True)
class Wanted:
    """One of the things that a prompt asks for: any of `things`, emoji characters, `least` to `most` of the same."""

    things: tuple[str, ...]
    least: int = 1
    most: int = 9


@dataclass(frozen=True)
class EverydayPrompt:
    """A prompt and all that its picture must show."""

    text: str
    wanted: tuple[Wanted, ...]

    def is_right(self, shown: Iterable[str]) -> bool:
        """Whether these things, emoji characters, are what is wanted: each once and nothing else."""
        counts = Counter(one.replace("\ufe0f", "") for one in shown)
        for wanted in self.wanted:
            found = [one for one in wanted.things if wanted.least <= counts.get(one, 0) <= wanted.most]
            if not found:
                return False
            del counts[found[0]]
        return not counts


def read_everyday_prompts(path: str | Path) -> list[EverydayPrompt]:
    """Each line is a prompt, "|" and its things; "#" begins a comment.

    A group in brackets is any of its things; a prompt of several things has a group for each. "3x" before the things is
    a number, "2+" is two or more; without one, a single thing is wanted. Raises UserError where a line is not so.
    """
    prompts = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        text, bar, things = line.partition(" | ")
        wanted = tuple(_wanted(bracket or single) for bracket, single in _GROUP.findall(things))
        if not bar or not wanted:
            raise UserError(f"{path}, line {number}: not a prompt, ' | ' and things: {line!r}")
        prompts.append(EverydayPrompt(text, wanted))
    return prompts


def _wanted(text: str) -> Wanted:
    found = _ONE.findall(text)
    number = found[0][0]
    least, most = (1, 1) if not number else (int(number[0]), 9 if number[1] == "+" else int(number[0]))
    return Wanted(tuple(one.replace("\ufe0f", "") for _, one in found), least, most)


class CaptionReader:
    """Reads what a caption in the world's own words asks for: `read("two cats under a rainbow")`.

    Nouns are found by their names, the longest first. Numbers count them. Words of looks and places are passed over, as
    are unknown ones.
    """

    def __init__(self, words: Lexicon):
        self._nouns: dict[tuple[str, ...], tuple[tuple[str, ...], bool]] = {}
        names = {name for names in words.names.values() for name in names}
        for name in sorted(names | words.general.keys()):
            meant = tuple(one.characters.replace("\ufe0f", "") for one in words.meant_by(name))
            self._nouns[tuple(name.split())] = meant, False
            if is_counted(name):
                self._nouns.setdefault(tuple(plural(name).split()), (meant, True))
        self._longest = max(map(len, self._nouns))

    def __call__(self, caption: str) -> EverydayPrompt:
        """The things that the caption asks for; none where no noun is known."""
        words = re.findall(r"[\w'-]+", _GROUND.sub(" ", caption.lower()))
        wanted, number, at = [], (0, 0), 0
        while at < len(words):
            for end in range(min(len(words), at + self._longest), at, -1):
                if found := self._nouns.get(tuple(words[at:end])):
                    things, are_many = found
                    least, most = number if number[0] else (2, 9) if are_many else (1, 1)
                    wanted.append(Wanted(things, least, most))
                    number, at = (0, 0), end
                    break
            else:
                number = _number(words[at]) or number
                at += 1
        return EverydayPrompt(caption, tuple(wanted))


def _number(word: str) -> tuple[int, int] | None:
    """The least and the most that a number word or an article says."""
    if word in ("a", "an", "the"):
        return 1, 1
    count = NUMBERS.index(word) if word in NUMBERS else int(word) if re.fullmatch("[1-9]", word) else 0
    return (count, count) if count else None

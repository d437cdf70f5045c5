"""Prompts in everyday words, and which things answer them: `benchmarks/everyday_prompts.txt`."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dalle_mini.errors import UserError

_GROUP = re.compile(r"\[([^\]]+)\]|(\S+)")
_ONE = re.compile(r"(\d[x+])?([^\d](?:\u200d[^\d]|\ufe0f)*)")


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

"""The shell lines and snippets of the pages that people read: README, CONTRIBUTING, SECURITY and docs/."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
COPIES = ("changelog.md", "contributing.md", "model-card.md", "security.md")  # by docs/conf.py, in docs/
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *(path for path in sorted((ROOT / "docs").glob("*.md")) if path.name not in COPIES),
]
SHELLS = ("sh", "bash", "shell", "console")
OURS = ("dalle-mini", "python", "make", "pip")  # of what stands between backticks in a sentence
BETWEEN = {"&&", "||", "|", ";", "&"}


@dataclass(frozen=True)
class Line:
    """A line to type, with those that a backslash joins to it.

    Attributes:
        block: the number of the page's line where its block begins; 0 in a sentence.
    """

    page: str
    number: int
    text: str
    block: int = 0

    @property
    def place(self) -> str:
        return f"{self.page}:{self.number}"

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command, without settings of the environment, files and comments."""
        lexer = shlex.shlex(self.text, posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split, lexer.commenters = True, ""
        found: list[list[str]] = [[]]
        for word in lexer:
            if word in (">", ">>", "<"):
                next(lexer)  # a file
            elif word in BETWEEN:
                found.append([])
            elif word.startswith("#"):
                break
            elif found[-1] or not re.match(r"[A-Z_]+=", word):
                found[-1].append(word)
        return [words for words in found if words]


def in_blocks(page: Path) -> Iterator[Line]:
    """The lines of the page's shell blocks, in order."""
    name, language, block, joined, first = str(page.relative_to(ROOT)), None, 0, "", 0
    for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
        if fence := re.match(r"\s*```(\w*)", line):
            language, block = (fence[1], number) if language is None else (None, 0)
        elif language in SHELLS:
            if language == "console" and not joined and not line.startswith("$ "):
                continue  # what a command printed
            first = first if joined else number
            joined += line.removeprefix("$ ")
            if joined.endswith("\\"):
                joined = joined[:-1]
                continue
            found, joined = Line(name, first, joined.strip(), block), ""
            if found.text and not found.text.startswith("#"):
                yield found


def in_sentences(page: Path) -> Iterator[Line]:
    """Text between backticks in the page's sentences that begins with a program of ours."""
    text = re.sub(
        r"^\s*```.*?^\s*```", lambda block: "\n" * block[0].count("\n"), page.read_text("utf-8"), flags=re.M | re.S
    )
    for span in re.finditer(r"(?<!`)`([^`]+)`(?!`)", text):
        code = " ".join(span[1].split())
        if code.partition(" ")[0] in OURS and " " in code:
            yield Line(str(page.relative_to(ROOT)), text.count("\n", 0, span.start()) + 1, code)


def snippets(page: Path, language: str = "python") -> Iterator[tuple[int, str]]:
    """The page's blocks of a language, with their numbers, from 1."""
    blocks = re.finditer(rf"^( *)```{language}\n(.*?)^\1```", page.read_text("utf-8"), re.M | re.S)
    for number, found in enumerate(blocks, 1):
        yield number, textwrap.dedent(found[2])

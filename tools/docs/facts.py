"""The numbers and flags that README and docs/ lost and won since a commit, each with the pages where it stood.

    python tools/docs/facts.py COMMIT

Run it in the root of a clone after pages were rewritten: a number that is gone should be gone on purpose.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

from dalle_mini.runtime import console

FACT = re.compile(r"--[a-z][a-z0-9-]*|\d[\d,.]*\d|\d")
PAGE = re.compile(r"README\.md|docs/.*\.md")

Facts = dict[str, list[str]]  # a number or a flag: the pages that have it


def facts(pages: dict[str, str]) -> Facts:
    """The numbers and flags of some pages' texts."""
    found: Facts = {}
    for name, text in pages.items():
        for fact in set(FACT.findall(text)):
            found.setdefault(fact, []).append(name)
    return found


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout


def pages_of(commit: str) -> dict[str, str]:
    names = git("ls-tree", "-r", "--name-only", commit).splitlines()
    return {name: git("show", f"{commit}:{name}") for name in names if PAGE.fullmatch(name)}


def pages_here() -> dict[str, str]:
    names = git("ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    return {name: Path(name).read_text("utf-8") for name in names if PAGE.fullmatch(name) and Path(name).exists()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", metavar="COMMIT", help="what the pages are compared with")
    commit = parser.parse_args().commit
    before, now = facts(pages_of(commit)), facts(pages_here())
    for title, some, others in (("gone", before, now), ("new", now, before)):
        names = sorted(some.keys() - others.keys(), key=lambda fact: (some[fact], fact))
        console.answer(f"{title}: {len(names)}", *(f"  {name:<20} {' '.join(some[name])}" for name in names))
    return 0


if __name__ == "__main__":
    sys.exit(main())

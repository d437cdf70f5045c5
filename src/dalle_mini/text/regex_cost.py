"""Whether a regular expression of a stranger's tokenizer can be run: none that backtracks without end.

The expressions of published tokenizers are a few alternatives of character classes with one or two quantifiers each.
The constructs that make backtracking exponential are not among them and are refused: a quantifier on a group that holds
a quantifier or alternatives, references to what a group matched, and long chains of quantifiers, of which each tries
every length.
"""

import math
import re
from typing import NoReturn

LONGEST = 4096  # characters
MOST_UNBOUNDED, MOST_BOUNDED, MOST_CHOICES = 2, 4, 2  # in one alternative, whatever is in its groups included
SHORT = 8  # a quantifier that spans more lengths counts as unbounded
MOST_REPEATS = 1000

_GROUP = re.compile(r"\((\?(?::|=|!|>|<=|<!|<[A-Za-z_]\w*>|[a-z]*(?:-[a-z]+)?:))?")
_FLAGS = re.compile(r"\(\?[a-z]*(?:-[a-z]+)?\)")
_ESCAPE = re.compile(r"\\(?:[pPx]\{[^{}]*\}|[^1-9kgK])", re.S)
_QUANTIFIER = re.compile(r"([*+?])([?+])?|\{(\d*)(,?)(\d*)\}(\?)?")


class _Group:
    """An open group: what it holds so far.

    `may_be_empty` says whether an earlier alternative of it may match nothing, `is_empty` whether the present one may
    so far, and `was_empty` the same without its last item, which a quantifier may make optional.
    """

    def __init__(self, looks_around: bool = False):
        self.repeats = self.chooses = False
        self.may_be_empty, self.is_empty, self.was_empty = looks_around, True, True

    def add(self, may_be_empty: bool) -> None:
        self.was_empty, self.is_empty = self.is_empty, self.is_empty and may_be_empty


def check_regex(pattern: str) -> bool:
    """Whether an expression may match nothing. Raises ValueError where it may take for ever, or there is no telling."""
    if len(pattern) > LONGEST:
        raise ValueError(f"a regular expression of it has more than {LONGEST} characters")
    last: str | _Group | None = None
    groups, place = [_Group()], 0
    counts = {"unbounded": 0, "bounded": 0, "choices": 0}
    while place < len(pattern):
        sign = pattern[place]
        if found := _FLAGS.match(pattern, place):
            last, place = None, found.end()
        elif sign == "\\":
            found = _ESCAPE.match(pattern, place) or _refuse(pattern)
            last, place = sign, found.end()
            groups[-1].add(found[0][1] in "bBAzZG")
        elif sign == "[":
            last, place = sign, _end_of_class(pattern, place)
            groups[-1].add(False)
        elif sign == "(":
            found = _GROUP.match(pattern, place) or _refuse(pattern)
            if found[1] is None and pattern[place + 1 : place + 2] in ("?", "*"):
                _refuse(pattern)
            groups.append(_Group(looks_around="=" in found[0] or "!" in found[0]))
            last, place = None, found.end()
        elif sign == ")":
            if len(groups) == 1:
                _refuse(pattern)
            last = closed = groups.pop()
            place += 1
            groups[-1].add(closed.may_be_empty or closed.is_empty)
            groups[-1].repeats |= closed.repeats
            groups[-1].chooses |= closed.chooses
            counts["choices"] += closed.chooses
        elif sign == "|":
            if len(groups) == 1:
                counts = dict.fromkeys(counts, 0)
            groups[-1].chooses, groups[-1].may_be_empty = True, groups[-1].may_be_empty or groups[-1].is_empty
            groups[-1].is_empty = True
            last, place = None, place + 1
        elif found := _QUANTIFIER.match(pattern, place):
            if last is None:
                _refuse(pattern)
            counts[_kind(pattern, found, last)] += 1
            if found[0][0] in "*?" or (found[0][0] == "{" and not int(found[3] or 0)):
                groups[-1].is_empty = groups[-1].was_empty
            groups[-1].repeats = True
            last, place = None, found.end()
        else:
            last, place = sign, place + 1
            groups[-1].add(sign in "^$")
        if counts["unbounded"] > MOST_UNBOUNDED or counts["bounded"] > MOST_BOUNDED or counts["choices"] > MOST_CHOICES:
            _refuse(pattern)
    if len(groups) > 1:
        _refuse(pattern)
    return groups[0].may_be_empty or groups[0].is_empty


def _kind(pattern: str, found: re.Match, last: object) -> str:
    """ "bounded" or "unbounded"; refused where a group repeats that holds quantifiers or alternatives."""
    sign, _, low, comma, high, _ = found.groups()
    if sign is None:
        low, high = int(low or 0), math.inf if comma and not high else int(high or low or 0)
        if max(low, high if high != math.inf else 0) > MOST_REPEATS:
            _refuse(pattern)
    else:
        low, high = {"*": (0, math.inf), "+": (1, math.inf), "?": (0, 1)}[sign]
    if isinstance(last, _Group) and high > 1 and (last.repeats or last.chooses):
        _refuse(pattern)
    return "unbounded" if high - low > SHORT else "bounded"


def _end_of_class(pattern: str, place: int) -> int:
    """Where a character class, which may hold others, ends."""
    depth = 0
    while place < len(pattern):
        sign = pattern[place]
        if sign == "\\":
            place += 1
        elif sign == "[":
            depth += 1
            place += pattern[place + 1 : place + 2] == "^"
            place += pattern[place + 1 : place + 2] == "]"  # there it stands for itself
        elif sign == "]":
            depth -= 1
            if not depth:
                return place + 1
        place += 1
    _refuse(pattern)


def _refuse(pattern: str) -> NoReturn:
    raise ValueError(f"its regular expression {pattern!r:.80} is not supported: it might never end")

"""Caption normalisation as the published DALL·E mini models saw it in training.

A caption becomes plain lower-case ASCII with commas as the only punctuation between phrases, emoji spelled out and
hashtags split into words. The models know no other captions, so the order of the steps and their quirks are part of
the format.
"""

import functools
import html
import math
import os
import re
from pathlib import Path

from dalle_mini.errors import UserError
from dalle_mini.runtime import parsing
from dalle_mini.runtime.hashing import short_hash

_SEVERAL_PERSONS = re.compile(r"<person>(?:(?:[,\s]|and)*<person>)+")
_REFERENCE_AT_AN_END = re.compile(r"\A\s*\[\d+\]|\[\d+\]\s*\Z")
_HTML_TAG = re.compile(r"<[^<]+?>")
_URL = re.compile(r"http\S+")
_THOUSANDS = re.compile(r"(\d),(\d{3})")
_INNER_DOT = re.compile(r"(\w)\.(\w)")
_CONTRACTION = re.compile(r"'(?=(?:[stdm]|ll|re|ve)\b)")
_DATE_SLASH = re.compile(r"(\d)/(\d)")
_INNER_HYPHEN = re.compile(r"(\w)-(\w)")
_SIGN = re.compile(r"[^a-z0-9 ,]")
_SPACED_SIGN = re.compile(r"([%&/$*])")
_HASHTAG = re.compile(r"#(\w+)")
_BLANK_SIGN = re.compile(r"[_#\\]")
_QUOTE = re.compile(r"[\"'`]")
_PUNCTUATION = re.compile(r"[()\[\]{}.,|:;?!=+~/-]")
_LONG_REPEAT = re.compile(r"(\D)\1{3,}")
_QUOTES = re.compile(r'"(?: ?")*')
_COMMAS = re.compile(r" ?,[ ,]*")
_BEYOND_ASCII = re.compile(r"[#*0-9]?[^\x00-\x7f]+")  # with what may begin an emoji: 1 and two signs are a key cap
_SETTLED = re.compile(r"[ -~\u00a1-\u00ac\u00ae-\u00ff\u2013\u2014]*")  # Latin-1 and dashes

# Limits that only a caption that is made to take long exceeds; beyond them a step is left out, or done in pieces.
_ENTITY_ROUNDS = 20  # escapes inside one another: &amp;amp;
_FEW_ENTITIES = 100  # so many cannot take long, however they lie inside one another
_LINES = 20_000  # ftfy takes each by itself
_EMOJI_PIECE = 64  # characters; the longest emoji has ten
_HASHTAG_CHARACTERS = 100_000
_WORD_CHARACTERS = 128  # of a list's words; the longest are tried at each letter of a hashtag
_ESCAPED_AGAIN = re.compile(r"&(?:amp;){2,}")
_ENDLESS_NUMBER = re.compile(r"&#[0-9]{20,};?")
_JOINERS = re.compile(r"[\u200d\ufe0e\ufe0f\u20e3\U0001f1e6-\U0001f1ff\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f]")

# Unidecode leaves only ASCII, so nothing in a caption can be mistaken for these.
_KEPT_DOT, _KEPT_APOSTROPHE, _KEPT_SLASH = "\ue000", "\ue001", "\ue002"
_RESTORE = str.maketrans({_KEPT_DOT: ".", _KEPT_APOSTROPHE: "'", _KEPT_SLASH: "/"})


class CaptionNormalizer:
    """Normalises captions for a DALL·E mini encoder.

    Args:
        words_file: text file for splitting hashtags, one word a line, commonest first; what follows the word on its
            line (a count) is ignored. `None` keeps a hashtag as one lower-cased word.

    Raises:
        UserError: `words_file` is missing, not UTF-8 text, or has no words.

    The result always starts with one space, and an empty caption becomes `" "`; the unconditional caption of guidance
    is therefore not `normalizer("")` but the empty string itself. A lone `<person>` (a masked name in Conceptual
    Captions) becomes "a person"; the original program drew one of three phrases at random here.
    """

    def __init__(self, words_file: str | Path | None = None):
        self.split_hashtag = HashtagSplitter(words_file) if words_file is not None else None

    def __call__(self, caption: str) -> str:
        """One caption -> its normalised form."""
        text = _to_plain_ascii(caption)
        # Most captions lack most of these signs, and a substitution that finds nothing takes ten times the look.
        if "<" in text:
            text = _SEVERAL_PERSONS.sub(" people ", text).replace("<person>", " a person ")
        if "[" in text:
            text = _REFERENCE_AT_AN_END.sub("", text)
        if "<" in text:
            text = _HTML_TAG.sub(" ", text)
        if "http" in text:
            text = _URL.sub("", text)
        if "," in text:
            for _ in range(2):  # one pass misses every other comma of 1,000,000: matches cannot overlap
                text = _THOUSANDS.sub(r"\1\2", text)

        if _SIGN.search(text):
            if "." in text:
                text = _INNER_DOT.sub(rf"\1{_KEPT_DOT}\2", text)
            if "'" in text:
                text = _CONTRACTION.sub(_KEPT_APOSTROPHE, text)
            if "/" in text:
                text = _DATE_SLASH.sub(rf"\1{_KEPT_SLASH}\2", text)
            if "-" in text:
                text = _INNER_HYPHEN.sub(r"\1 \2", text)
            text = _SPACED_SIGN.sub(r" \1 ", text)
            if "#" in text:
                text = self._without_hashtags(text)
            text = _BLANK_SIGN.sub(" ", text)
            text = _QUOTE.sub(' " ', text)
            text = _PUNCTUATION.sub(",", text)
            text = text.translate(_RESTORE)

        if _has_four_alike(text):
            text = _LONG_REPEAT.sub(r"\1", text)
        text = _single_spaced(text)
        if '"' in text:
            text = _QUOTES.sub('"', text)
        if "," in text:
            text = _single_spaced(_COMMAS.sub(", ", text)).removeprefix(",").removesuffix(",").strip()
        return " " + text

    @property
    def digest(self) -> str:
        """A short hash of what tells this normaliser from another: its words, in their order."""
        words = self.split_hashtag.words if self.split_hashtag else ()
        return short_hash("\n".join(words))

    def _without_hashtags(self, text: str) -> str:
        left = _HASHTAG_CHARACTERS

        def words(match: re.Match[str]) -> str:
            nonlocal left
            left -= len(match[1])
            return self.split_hashtag(match[1]) if self.split_hashtag and left >= 0 else match[1]

        return _HASHTAG.sub(words, text)


def _to_plain_ascii(caption: str) -> str:
    if _is_plain(caption) and "&" not in caption:
        return caption.lower()  # most captions: none of what follows has anything to do, and it takes 3/4 of the time
    text = _fixed(caption if caption.count("\n") <= _LINES else caption.replace("\n", " "))
    for _ in range(2):  # web captions are often escaped twice: &amp;amp;
        text = unescape(text)
    if text.isascii():
        return text.lower()
    if not _emoji_signs().isdisjoint(text):
        text = _BEYOND_ASCII.sub(_named_emoji, text)
    return text.translate(_TRANSLITERATIONS).lower()


def _named_emoji(found: re.Match[str]) -> str:
    import emoji

    text, pieces, start = found[0], [], 0
    while len(text) - start > _EMOJI_PIECE:  # or its time would grow with the square of what is joined
        end = start + _EMOJI_PIECE
        while end > start + _EMOJI_PIECE // 2 and (_JOINERS.match(text, end - 1) or _JOINERS.match(text, end)):
            end -= 1
        pieces.append(text[start:end])
        start = end
    return "".join(map(emoji.demojize, [*pieces, text[start:]]))


def unescape(text: str) -> str:
    """`html.unescape`, which Python refuses numbers of more than 4300 digits; no character has any of them."""
    return html.unescape(_ENDLESS_NUMBER.sub("\ufffd", text) if "&#" in text else text)


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable()


def _fixed(text: str) -> str:
    """`ftfy.fix_text`, of which only what can change this text is done."""
    # Imported at the first such caption: ftfy alone takes longer to import than `dalle-mini --help` may take.
    import ftfy

    if "&" not in text and _SETTLED.fullmatch(text) and not ftfy.is_bad(text):
        return text
    if "<" in text:  # where there are tags, ftfy takes entities for meant
        return text if _is_plain(text) else ftfy.fix_text(text)
    if "&amp;amp;" in text:
        text = _ESCAPED_AGAIN.sub("&amp;", text)
    if not _is_plain(text) and text.count(";") <= _FEW_ENTITIES:
        return ftfy.fix_text(text)
    plain = text
    for _ in range(_ENTITY_ROUNDS):
        unescaped = ftfy.fixes.unescape_html(plain)
        if unescaped == plain:
            return plain if _is_plain(text) and _is_plain(plain) else ftfy.fix_text(text)
        if _is_plain(text) and not _is_plain(unescaped) and text.count(";") <= _FEW_ENTITIES:
            return ftfy.fix_text(text)
        plain = unescaped
    return ftfy.fix_text(text, unescape_html=False)


def _has_four_alike(text: str) -> bool:
    """Whether any character stands there four times in a row; ten times quicker than by a regular expression."""
    signs = int.from_bytes(text.encode("ascii"), "little")
    differences = (signs ^ signs >> 8) | (signs ^ signs >> 16) | (signs ^ signs >> 24)
    return 0 in differences.to_bytes(len(text), "little")


@functools.cache
def _emoji_signs() -> frozenset[str]:
    """The signs that `demojize` may change: what emoji are made of beyond ASCII, and the selectors of their looks."""
    import emoji

    return frozenset(sign for one in emoji.EMOJI_DATA for sign in one if not sign.isascii()) | {"\ufe0e", "\ufe0f"}


class _Transliterations(dict):
    """The result of `unidecode` for each character, which depends on no other; for `str.translate`."""

    def __missing__(self, codepoint: int) -> str:
        from unidecode import unidecode

        is_half = 0xD800 <= codepoint <= 0xDFFF  # of a surrogate pair: it would be left out with a warning
        self[codepoint] = "" if is_half else unidecode(chr(codepoint))
        return self[codepoint]


_TRANSLITERATIONS = _Transliterations()


def _single_spaced(text: str) -> str:
    return " ".join(text.split())


class HashtagSplitter:
    """Splits "throwbackthursday" into "throwback thursday" with a list of words, commonest first.

    The split is the cheapest one, found by dynamic programming, where the word of rank r costs log(r) (Zipf's law; the
    method of the wordninja library). Text that no words cover falls apart into letters; digits stay together.
    """

    _WORD_CHARACTERS = re.compile(r"[a-zA-Z0-9']+")

    def __init__(self, words_file: str | Path):
        words = _read_words(Path(words_file))
        self._costs = {word: math.log(rank) for rank, word in enumerate(words, start=1)}
        self._longest = min(max(map(len, words)), _WORD_CHARACTERS)

    @property
    def words(self) -> tuple[str, ...]:
        """The words, commonest first."""
        return tuple(self._costs)

    def __call__(self, hashtag: str) -> str:
        """A hashtag without its "#" -> its words, separated by single spaces."""
        runs = self._WORD_CHARACTERS.findall(hashtag)
        return " ".join(word for run in runs for word in self._split(run))

    def _split(self, run: str) -> list[str]:
        pieces: list[str] = []
        for piece in self._cheapest_pieces(run):
            digits_meet = pieces and piece[0].isdigit() and pieces[-1][-1].isdigit()
            if pieces and (piece == "'s" or digits_meet):
                pieces[-1] += piece
            else:
                pieces.append(piece)
        return pieces

    def _cheapest_pieces(self, run: str) -> list[str]:
        lowered = run.lower()
        best_cost = [0.0]  # best_cost[end]: of the characters before `end`
        last_length = [0]  # last_length[end]: length of the last word of that split
        for end in range(1, len(run) + 1):
            # On equal costs, infinite ones among them, the shorter word wins: unknown text falls apart into letters.
            cost, length = min(
                (best_cost[end - length] + self._costs.get(lowered[end - length : end], math.inf), length)
                for length in range(1, min(self._longest, end) + 1)
            )
            best_cost.append(cost)
            last_length.append(length)

        pieces = []
        end = len(run)
        while end > 0:
            pieces.append(run[end - last_length[end] : end])
            end -= last_length[end]
        return pieces[::-1]


def _read_words(words_file: Path) -> list[str]:
    if not os.path.exists(words_file):
        raise UserError(f"{words_file}: no such word list; leave it out to keep hashtags whole")
    try:
        lines = parsing.read_bytes(words_file, "words_bytes").decode().splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{words_file}: not a readable UTF-8 word list ({error})") from None
    words = [line.split()[0] for line in lines if line.strip()]
    if not words:
        raise UserError(f"{words_file}: the word list is empty; it needs one word a line, commonest first")
    return words

"""A stranger's `tokenizer.json`, looked at before the Rust library reads it.

The library ends the process or never returns on some files: ids with gaps of gigabytes, a regular expression that
backtracks, a normalizer that multiplies the text, a damaged table of characters. A file that passes is written anew, so
that the library reads nothing that was not checked. Its own complaints about the rest are ordinary exceptions.
"""

import base64
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from dalle_mini.errors import shown
from dalle_mini.runtime import parsing
from dalle_mini.runtime.limits import check
from dalle_mini.text.regex_cost import check_regex

PARTS = {
    "normalizer": (
        *("NFC", "NFD", "NFKC", "NFKD", "Nmt", "Lowercase", "Strip", "StripAccents", "BertNormalizer", "ByteLevel"),
        *("Prepend", "Replace", "Precompiled"),
    ),
    "pre_tokenizer": (
        *("ByteLevel", "BertPreTokenizer", "CharDelimiterSplit", "Whitespace", "WhitespaceSplit", "Metaspace", "Split"),
        *("Punctuation", "Digits", "UnicodeScripts", "FixedLength"),
    ),
    "post_processor": ("BertProcessing", "RobertaProcessing", "ByteLevel", "TemplateProcessing"),
    "decoder": (
        *("BPEDecoder", "ByteLevel", "WordPiece", "Metaspace", "CTC", "Replace", "Fuse", "Strip", "ByteFallback"),
    ),
}
MODELS = ("BPE", "WordPiece", "WordLevel", "Unigram")
KEPT = ("version", "added_tokens", *PARTS, "model")
INSIDE = {
    "normalizer": "normalizers",
    "pre_tokenizer": "pretokenizers",
    "post_processor": "processors",
    "decoder": "decoders",
}  # where a Sequence has its parts

LONGEST_TEXT = 4096  # characters of a text in a part, patterns included
LONGEST_TOKEN = 1024  # characters
LONGEST_AFFIX = 64  # characters that are put before or behind each piece of a word
MOST_ITEMS = 1024  # of a list in a part
MOST_GAPS = 1000  # ids without a token, besides as many as there are tokens: the library lists them all
END_OF_IDS = 1 << 31  # ids are held in 32 bits


def checked(data: bytes) -> str:
    """The text of a `tokenizer.json` as it may be given to the library, without what it would cut and pad.

    Raises ValueError where it is no tokenizer, or has a part that is not known or costs too much; in one line.
    """
    import msgspec

    decode, fields = msgspec.json.decode, dict[str, msgspec.Raw]  # vocabulary and merges, most of it, go in once
    try:
        found = decode(data, type=fields)
        model = decode(found.get("model", b"null"), type=fields)
        small = {name: decode(raw) for name, raw in model.items() if name not in ("vocab", "merges")}
        content = {name: decode(found[name]) for name in KEPT[:-1] if name in found}
        is_scored = small.get("type") == "Unigram"
        tokens = decode(model.get("vocab", b"null"), type=list[tuple[str, float]] if is_scored else dict[str, int])
        prefix = small.get("continuing_subword_prefix") or ""
        merges = decode(model.get("merges", b"[]"), type=list[tuple[str, str] | str]) if prefix else []
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    growth, count = 1.0, 1
    for section in PARTS:
        parsing.check_depth(content.get(section))
        for part in _parts(section, content.get(section)):
            count += 1
            check("tokenizer_parts", count, "it has more than {} parts")
            growth *= _check_part(section, part)
            check("tokenizer_growth", math.ceil(growth), "its parts can make a text more than {} times as long")
    _check_model(small, tokens, "merges" in model)
    for pair in merges:  # the library cuts as many bytes as the prefix has off every second one
        if not (pair.partition(" ")[2] if isinstance(pair, str) else pair[1]).startswith(prefix):
            raise ValueError(f"a second part of its merges lacks the prefix {shown(prefix)}")
    _check_added(content.get("added_tokens") or [])
    return msgspec.json.encode(content | {"model": model}).decode()


def check_ids(vocab: dict[str, int]) -> None:
    """Raises ValueError where tokens and their ids are not what a vocabulary has."""
    check("tokenizer_tokens", len(vocab), "it has more than {} tokens")
    if not vocab:
        raise ValueError("its vocabulary is empty")
    highest = max(vocab.values())
    if min(vocab.values()) < 0 or highest >= END_OF_IDS:
        raise ValueError("an id of its vocabulary is no whole number from 0 to 2**31 - 1")
    if highest >= 2 * len(vocab) + MOST_GAPS:
        raise ValueError(f"its ids go up to {highest}, and it has only {len(vocab)} tokens")
    if max(map(len, vocab)) > LONGEST_TOKEN:
        raise ValueError(f"a token has more than {LONGEST_TOKEN} characters")


def _parts(section: str, part: Any) -> Iterator[dict[str, Any]]:
    """The part of a section, or those of which it is made up."""
    if part is None:
        return
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "Sequence":
        inside = part.get(INSIDE[section])
        if not isinstance(inside, list):
            raise ValueError(f"a Sequence of its {section} has no {INSIDE[section]}")
        for one in inside:
            yield from _parts(section, one)
    elif isinstance(kind, str) and kind in PARTS[section]:
        yield part
    else:
        raise ValueError(f"its {section} {shown(kind)} is not supported (supported: {', '.join(PARTS[section])})")


def _check_part(section: str, part: dict[str, Any]) -> float:
    """How much longer a part can make a text. Raises ValueError for values that it cannot have."""
    kind = part["type"]
    if kind == "Precompiled":
        return _charsmap_growth(part.get("precompiled_charsmap"))
    _check_values(part)
    if kind == "FixedLength" and not part.get("length"):
        raise ValueError("its FixedLength has no length")
    pattern = part.get("pattern")
    if isinstance(pattern, dict):
        if "Regex" in pattern and check_regex(str(pattern["Regex"])) and kind == "Replace":
            raise ValueError(f"the pattern of its Replace may match nothing: {shown(pattern['Regex'])}")
        if pattern.get("String") == "":
            raise ValueError(f"the pattern of its {kind} is empty")
    elif pattern == "":
        raise ValueError(f"the pattern of its {kind} is empty")
    if kind == "TemplateProcessing":
        _check_template(part)
    if section not in ("normalizer", "pre_tokenizer"):
        return 1  # of the text; decoders are never run
    if kind == "Prepend" and len(str(part.get("prepend"))) > LONGEST_AFFIX:
        raise ValueError(f"its Prepend has more than {LONGEST_AFFIX} characters")
    if kind == "Replace":
        content = len(str(part.get("content")).encode("utf-8", "replace"))
        literal = pattern.get("String") if isinstance(pattern, dict) else pattern
        return max(1.0, content / len(literal.encode("utf-8", "replace")) if isinstance(literal, str) else content)
    return {"ByteLevel": 2, "Metaspace": 4, "BertNormalizer": 3}.get(kind, 1)


def _check_template(part: dict[str, Any]) -> None:
    """Raises ValueError where a template repeats the text, or names a token that it does not tell."""
    known = part.get("special_tokens")
    for name in ("single", "pair"):
        pieces = part.get(name)
        if not isinstance(pieces, list) or not all(isinstance(piece, dict) for piece in pieces):
            raise ValueError(f"{name} of its post_processor is no list of pieces")
        if name == "single" and sum("Sequence" in piece for piece in pieces) > 1:
            raise ValueError("its post_processor repeats the text")
        tokens = [piece["SpecialToken"] for piece in pieces if "SpecialToken" in piece]
        if not all(isinstance(token, dict) and token.get("id") in (known or {}) for token in tokens):
            raise ValueError(f"{name} of its post_processor names a token that special_tokens has not")


def _check_values(value: Any) -> None:
    """Raises ValueError for a long text or list, or a number out of range, anywhere in a part."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str) and len(one) > LONGEST_TEXT:
            raise ValueError(f"a part of it has a text of {len(one)} characters")
        if isinstance(one, int | float) and not 0 <= one < END_OF_IDS:
            raise ValueError(f"a part of it has the number {shown(one)}")
        if isinstance(one, dict | list) and len(one) > MOST_ITEMS:
            raise ValueError(f"a part of it has a list of {len(one)} items")
        waiting += [*one, *one.values()] if isinstance(one, dict) else one if isinstance(one, list) else []


def _check_model(model: dict[str, Any], vocab: dict[str, int] | list[tuple[str, float]], has_merges: bool) -> None:
    """`model` is what there is beside `vocab` and merges."""
    parsing.check_depth(model)
    _check_values(model)
    kind = model.get("type", "BPE" if has_merges else None)  # older files do not tell it
    if not (isinstance(kind, str) and kind in MODELS):
        raise ValueError(f"its model {shown(kind)} is not supported (supported: {', '.join(MODELS)})")
    check_ids(vocab if isinstance(vocab, dict) else {token: id for id, (token, _) in enumerate(vocab)})
    if kind in ("WordPiece", "WordLevel") and model.get("unk_token") not in vocab:
        raise ValueError(f"its unk_token {shown(model.get('unk_token'))} is not in the vocabulary")
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if len(str(model.get(name) or "")) > LONGEST_AFFIX:
            raise ValueError(f"its {name} has more than {LONGEST_AFFIX} characters")


def _check_added(tokens: Any) -> None:
    if not (isinstance(tokens, list) and all(isinstance(token, dict) for token in tokens)):
        raise ValueError("its added_tokens are no list of objects")
    check("tokenizer_tokens", len(tokens), "it has more than {} added tokens")
    for token in tokens:
        _check_values(token)
        if len(str(token.get("content"))) > LONGEST_TOKEN:
            raise ValueError(f"an added token has more than {LONGEST_TOKEN} characters")


def _charsmap_growth(text: Any) -> float:
    """The bytes of the longest text that a table of sentencepiece puts in the place of a character.

    [bytes of the trie: 4] [trie: a double array of 4-byte units (Darts-clone)] [texts, each with a zero behind it].
    The library follows the trie without looking whether a unit or a text is there, so all ways are walked here.
    """
    try:
        blob = base64.b64decode(text, validate=True)
        size = int.from_bytes(blob[:4], "little")
        units = np.frombuffer(blob, "<u4", size // 4, 4).astype(np.int64)
        texts = blob[4 + size :]
        texts.decode()
        if size % 4 or not size:
            raise ValueError
        starts = _leaves(units)
        ends = np.append(np.flatnonzero(np.frombuffer(texts, np.uint8) == 0), len(texts))
        firsts = np.frombuffer(texts + b"\0", np.uint8)[starts]
        if np.any((firsts >= 0x80) & (firsts < 0xC0)):
            raise ValueError  # it begins within a character
        return max(1, (ends[np.searchsorted(ends, starts)] - starts).max(initial=1))
    except (ValueError, TypeError, IndexError):
        raise ValueError("the table of characters of its Precompiled is damaged") from None


def _leaves(units: np.ndarray) -> np.ndarray:
    """The values of a double-array trie. Raises IndexError where a way leads out of it."""
    labels = np.arange(1, 256)
    seen, found = np.zeros(len(units), bool), []
    frontier = np.array([_base(units[0])])
    while frontier.size:
        reached = []
        for begin in range(0, len(frontier), 4096):
            places = frontier[begin : begin + 4096, None] ^ labels
            here = units[places]
            is_child = (here & (1 << 31 | 0xFF)) == labels
            places, here = places[is_child], here[is_child]
            after = places ^ _base(here)
            found.append(units[after[(here >> 8) & 1 == 1]] & ((1 << 31) - 1))
            reached.append(after)
        frontier = np.unique(np.concatenate(reached))
        frontier = frontier[~seen[frontier]]
        seen[frontier] = True
    return np.concatenate(found)


def _base(units: np.ndarray) -> np.ndarray:
    return (units >> 10) << ((units & (1 << 9)) >> 6)

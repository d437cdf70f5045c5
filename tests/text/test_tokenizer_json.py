"""Strangers' tokenizer.json: what honest ones have is read, what would end or hold the process is one line."""

import base64
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from dalle_mini.errors import UserError
from dalle_mini.text import CaptionTokenizer
from dalle_mini.text.regex_cost import check_regex
from dalle_mini.text.tokenizer_json import checked

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/tokenizer/tokenizer.json").read_text("utf-8"))
BPE = GOLDEN["model"]
CAPTION = "a red apple " + "a" * 40 + "!"


def read(folder, **changes):
    (folder / "tokenizer.json").write_text(json.dumps(GOLDEN | changes))
    tokenizer = CaptionTokenizer.from_pretrained(folder)
    tokenizer.check_vocab_size(1000)
    assert tokenizer.digest
    ids, _ = tokenizer([CAPTION], 32)
    assert 0 <= ids.min() <= ids.max() < 1000
    return ids


def frame(begin, end):
    return {
        "type": "RobertaProcessing", "sep": ["</s>", end], "cls": ["<s>", begin], "trim_offsets": True,
        "add_prefix_space": False,
    }  # fmt: skip


def template(*single):
    pair = [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}]
    tokens = {"s": {"id": "s", "ids": [1], "tokens": ["s"]}}
    return {"type": "TemplateProcessing", "single": [*single], "pair": pair, "special_tokens": tokens}


SPECIAL, TEXT = {"SpecialToken": {"id": "s", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}


def split(regex):
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def replace(pattern, content):
    return {"type": "Replace", "pattern": pattern, "content": content}


def charsmap(texts: bytes, at: int = 0, units: int = 512) -> dict:
    """A table of sentencepiece that puts the text `at` in the place of "A"."""
    trie = np.zeros(units, np.uint32)
    base = 256
    trie[0] = base << 10
    trie[base ^ ord("A")] = 1 << 10 | 1 << 8 | ord("A")
    trie[base ^ ord("A") ^ 1] = 1 << 31 | at
    blob = (4 * units).to_bytes(4, "little") + trie.tobytes() + texts
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(blob).decode()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {**BPE, "vocab": {}, "merges": []}, "added_tokens": []}, "its vocabulary is empty"),
        ({"model": {**BPE, "vocab": {**BPE["vocab"], "x" * 99: 2**31}}}, "no whole number from 0 to 2"),
        ({"model": {**BPE, "vocab": {**BPE["vocab"], "x" * 99: 2**24}}}, "ids go up to 16777216, and it has only"),
        ({"model": {**BPE, "vocab": {**BPE["vocab"], "x" * 1025: 420}}}, "a token has more than 1024 characters"),
        ({"model": {**BPE, "continuing_subword_prefix": "#" * 65}}, "continuing_subword_prefix has more than 64"),
        ({"model": {**BPE, "continuing_subword_prefix": "#" * 9}}, "a second part of its merges lacks the prefix"),
        ({"model": {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "x"}}, "unk_token 'x' is not in the vocab"),
        ({"model": {"type": "Unigram", "vocab": [], "unk_id": 0}}, "its vocabulary is empty"),
        ({"model": {"type": "Magic", "vocab": {"a": 0}}}, "its model 'Magic' is not supported"),
        ({"model": [1]}, "Expected `object`, got `array`"),
        ({"post_processor": frame(2**32 - 1, 2)}, "a part of it has the number 4294967295"),
        ({"post_processor": frame(1_000_000, 2)}, "its post_processor adds the id 1000000, which no token has"),
        ({"post_processor": template(SPECIAL, *[TEXT] * 50)}, "its post_processor repeats the text"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "table of characters .* is damaged"),
        ({"normalizer": charsmap(b"b\0", at=9)}, "table of characters .* is damaged"),
        ({"normalizer": charsmap("é\0".encode(), at=1)}, "table of characters .* is damaged"),
        ({"normalizer": charsmap(b"b\0", units=400)}, "table of characters .* is damaged"),
        ({"normalizer": charsmap(b"b" * 1000)}, r"more than 512 times as long \(limit tokenizer_growth"),
        ({"normalizer": replace({"String": "a"}, "a" * 1000)}, "more than 512 times as long"),
        ({"normalizer": {"type": "Sequence", "normalizers": [replace({"Regex": "b"}, "aaaa")] * 5}}, "more than 512"),
        ({"normalizer": replace({"Regex": "b?|c"}, "a")}, "the pattern of its Replace may match nothing"),
        ({"post_processor": template({"SpecialToken": {"id": "é", "type_id": 0}}, TEXT)}, "names a token that"),
        ({"normalizer": replace({"String": ""}, "a")}, "the pattern of its Replace is empty"),
        ({"normalizer": {"type": "Prepend", "prepend": "a" * 65}}, "Prepend has more than 64"),
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 65}}, r"parts \(limit tokenizer_parts"),
        ({"normalizer": {"type": "Shell"}}, "its normalizer 'Shell' is not supported"),
        ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, "FixedLength has no length"),
        ({"pre_tokenizer": split("(a+)+$")}, "expression .* is not supported: it might never end"),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split("x{9999}")]}}, "might never end"),
        ({"decoder": replace({"Regex": "(a|a)*$"}, "")}, "might never end"),
        ({"added_tokens": [{"id": 0, "content": "a" * 1025, "special": True}]}, "an added token has more than 1024"),
    ],
)  # fmt: skip
def test_what_would_end_or_hold_the_process(tmp_path, changes, message):
    with pytest.raises(UserError, match=rf"tokenizer\.json: .*{message}") as caught:
        read(tmp_path, **changes)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"post_processor": template(SPECIAL, TEXT, SPECIAL)},
        {"normalizer": charsmap(b"bb\0")},
        {"normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
                        "strip_accents": None, "lowercase": True}},
        {"normalizer": replace({"String": " "}, "▁"), "decoder": {"type": "ByteFallback"}},
        {"pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}},
        {"pre_tokenizer": {"type": "FixedLength", "length": 5}},
        {"model": {"type": "WordLevel", "vocab": {"a": 0, "<pad>": 1, "</s>": 2}, "unk_token": "a"}},
        {"model": {"type": "Unigram", "vocab": [["<s>", 0.0], ["<pad>", 0.0], ["</s>", 0.0], ["a", -1]], "unk_id": 0}},
    ],
)  # fmt: skip
def test_honest_parts(tmp_path, changes):
    read(tmp_path, **changes)


def test_a_table_of_characters_does_what_it_says(tmp_path):
    found, wanted = (read(tmp_path, normalizer=one) for one in (charsmap(b"bb\0"), replace({"String": "A"}, "bb")))
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    "regex",
    [
        r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+",
        r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r" ?[^(\s|[.,!?…。，、।۔،])]+",
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+",
        r" {2,}",
        r"(\s|[.,])",
        r"[]a]+",
    ],
)
def test_expressions_of_published_tokenizers(regex):
    check_regex(regex)


@pytest.mark.parametrize(
    "regex",
    [
        "(a+)+$", "(a|a)*b", "((a)|b)+", "(?:a?){20}", "(a*)*", r"(.)\1+", r"(?<x>a)\k<x>", r"\g<0>", "(?R)",
        "a*a*a*b", "a?a?a?a?a?", "(a|a)(a|a)(a|a)", "a{1,900}a{1,900}a{1,900}", "a{9999}", "(a", "a)", "a{2}{3}", "[a",
        "(?(1)a)", "(?~a)", "x" * 4097, "+", "a**",
    ],
)  # fmt: skip
def test_expressions_that_might_never_end(regex):
    with pytest.raises(ValueError, match="regular expression"):
        check_regex(regex)


def test_files_that_are_none(tmp_path, monkeypatch):
    for data in (b"[" * 100_000, b'{"model": ' + b'{"a":' * 5000, b"\xff", b'{"model": {"type": "BPE"}}'):
        (tmp_path / "tokenizer.json").write_bytes(data)
        with pytest.raises(UserError, match="not a readable tokenizer"):
            CaptionTokenizer.from_pretrained(tmp_path)
    monkeypatch.setenv("DALLE_MINI_LIMITS", "tokenizer_bytes=10")
    with pytest.raises(UserError, match="larger than 10 bytes; limit tokenizer_bytes"):
        CaptionTokenizer.from_pretrained(tmp_path)
    monkeypatch.setenv("DALLE_MINI_LIMITS", "tokenizer_tokens=100")
    with pytest.raises(UserError, match="more than 100 tokens"):
        read(tmp_path)


def test_pipes_and_devices_beside_a_tokenizer(tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(GOLDEN))
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        for make in (os.mkfifo, lambda path: os.symlink("/dev/zero", path)):
            make(tmp_path / name)
            with pytest.raises(UserError, match=rf"{name} cannot be read \(it is a pipe or a device"):
                CaptionTokenizer.from_pretrained(tmp_path)
            (tmp_path / name).unlink()


@pytest.mark.slow
def test_the_largest_honest_tokenizer(tmp_path):
    """250,000 tokens, as of a multilingual model: read within seconds of processor time."""
    alphabet = [chr(0x4E00 + i) for i in range(500)]
    pairs = [(a, b) for a in alphabet for b in alphabet]
    vocab = {token: id for id, token in enumerate(["<s>", "<pad>", "</s>", *alphabet, *(a + b for a, b in pairs)])}
    model = {"type": "BPE", "vocab": vocab, "merges": [list(pair) for pair in pairs]}
    data = json.dumps(GOLDEN | {"model": model, "added_tokens": [], "post_processor": frame(0, 2)}).encode()
    start = time.process_time()
    text = checked(data)
    assert time.process_time() - start < 5
    assert json.loads(text)["model"]["vocab"] == vocab


@pytest.mark.parametrize(
    "regex", ["", "a?", "a|", "(a|b?)c?", "^$", r"\b", "(?=a)", "(?:a)?", "a{0,2}", "[ab]*", "a?|b"]
)
def test_expressions_that_may_match_nothing(regex):
    assert check_regex(regex)


@pytest.mark.parametrize("regex", ["a", "a*b", "(a|b)c?", r"\s+", "a{2}", r"\bb", "(a?)b", "(?=a?)b", " {2,}"])
def test_expressions_that_match_something(regex):
    assert not check_regex(regex)

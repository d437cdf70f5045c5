import html
import json
import random
import re
import time
from pathlib import Path

import emoji
import ftfy
import pytest
from unidecode import unidecode

from dalle_mini.errors import UserError
from dalle_mini.text import CaptionNormalizer
from dalle_mini.text.normalize import (
    _BEYOND_ASCII,
    HashtagSplitter,
    _fixed,
    _has_four_alike,
    _named_emoji,
    _to_plain_ascii,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "text_normalizer"
WORDS = GOLDEN / "enwiki-words-frequency.txt"


def golden(name: str) -> list[tuple[str, str]]:
    lines = (GOLDEN / name).read_text(encoding="utf-8").splitlines()
    return [(case["in"], case["out"]) for case in map(json.loads, lines)]


@pytest.fixture(scope="module")
def normalize() -> CaptionNormalizer:
    return CaptionNormalizer(WORDS)


def test_every_golden_caption(normalize):
    cases = golden("captions.jsonl")
    assert len(cases) == 226
    assert [normalize(caption) for caption, _ in cases] == [expected for _, expected in cases]


def test_every_golden_hashtag(normalize):
    cases = golden("hashtags.jsonl")
    assert len(cases) == 20
    assert [normalize.split_hashtag(hashtag) for hashtag, _ in cases] == [expected for _, expected in cases]


def test_without_a_word_list_a_hashtag_is_one_word():
    assert CaptionNormalizer()("#HappyFriday at the #big_lake") == " happyfriday at the big lake"


def test_short_cuts_change_no_caption():
    # Steps that most captions are spared, done to all: each library's function on the whole caption, in the same order.
    signs = (
        "abc XYZ 019 ,.-/'#*_\\&%$\"`()[]{}|:;?!=+~<>@^éüß日本я–—“”’…©®™",
        "\u00a0\u200b\u200d\ufe0f\ufe0e\u20e3\0\x1b\n\t\x7f\x85ﬁＬ",
    )
    pieces = [
        "&amp;",
        "&amp;lt;",
        "â€™",
        "Ã©",
        "http://x.y",
        "<person>",
        "1,234",
        "it's",
        *signs[0],
        *signs[1],
        *emoji.EMOJI_DATA,
    ]
    weights = [3] * 8 + [20 if sign.isascii() else 2 for sign in signs[0]] + [1] * len(signs[1])
    weights += [0.02] * len(emoji.EMOJI_DATA)
    chance = random.Random(0)
    for _ in range(3000):
        caption = "".join(chance.choices(pieces, weights, k=chance.randint(0, 20)))
        text = html.unescape(html.unescape(ftfy.fix_text(caption)))
        assert _to_plain_ascii(caption) == unidecode(emoji.demojize(text)).lower()


def test_lone_masked_name_is_a_person_every_time(normalize):
    assert normalize("<PERSON> at the lake") == " a person at the lake"


def test_words_file_made_from_captions(tmp_path):
    words = tmp_path / "words.txt"
    words.write_text("a 900\nred 50\n\napple\nbackground 12\non 300\n")  # a count is optional, as are blank lines
    assert CaptionNormalizer(words)("#redApple") == " red apple"


@pytest.mark.parametrize(
    "caption", ["\ud800 cat \udfff", "nul \0 cat", "&#xD800;&#0;&#x110000; cat", "\ufeffcat\u202e"]
)
def test_strange_characters_become_plain_text(normalize, caption):
    assert normalize(caption).isascii()
    assert normalize(caption).endswith(" cat") or normalize(caption) == " cat"


@pytest.mark.parametrize(
    "unit", ["a", "#abc", "#", "<", "<person> ,", "[1", "\t ", '" \t', ", \t", "1,234,", "a.-", "😀", "日"]
)
def test_ten_thousand_characters_take_no_time(normalize, unit):
    started = time.process_time()
    assert normalize((unit * 10_000)[:10_000]).startswith(" ")
    assert time.process_time() - started < 2


def nested(depth):
    """An ampersand that an ampersand's letters are escaped with, and so on."""
    text = "&"
    for _ in range(depth):
        text = "&am" + text + "#112;;"
    return text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("&" + "amp;" * 250_000, " &"),
        ("é&" + "amp;" * 250_000, " e &"),
        ("é&" + "#38;" * 250_000, " e & 38, 38"),
        (nested(20_000), " & am & am"),
        ("é" + nested(20_000), " e & am & am"),
        ("&#" + "9" * 1_000_000 + "; cat", " cat"),
        ("&#x" + "9" * 100_000 + "; cat", " cat"),
        ("a\n" * 500_000, " a a a"),
        ("#" + "ab" * 500_000, " ababab"),
        ("#abcdefghij " * 80_000, " a b c"),
        ("👩\u200d" * 100_000, " woman"),
        (
            "It was the best of times; “it was” the worst — of times.\n" * 18_000,
            ' it was the best of times, " it was " the worst',
        ),
    ],
)
def test_captions_of_a_megabyte_take_a_second_or_two(normalize, text, start):
    started = time.process_time()
    assert normalize(text).startswith(start)
    assert time.process_time() - started < 4


def test_what_is_done_in_pieces_is_what_is_done_at_once():
    flags, family = "🇩🇪🇫🇷🇮🇹" * 30, "👩\u200d👩\u200d👧\u200d👦👍🏽❤\ufe0f" * 20
    for text in (flags, family, "日本" * 100 + family, "é" * 63 + family, "😀" * 200 + flags):
        assert _BEYOND_ASCII.sub(_named_emoji, text) == emoji.demojize(text)
    for depth in range(12):
        text = "é&" + "amp;" * depth + "lt;" + "&" + "#38;" * depth
        assert _fixed(text * 20) == ftfy.fix_text(text * 20)


def test_bad_word_lists_are_named(tmp_path):
    empty, binary = tmp_path / "empty.txt", tmp_path / "binary.txt"
    empty.write_text("\n \n")
    binary.write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "missing.txt", tmp_path, empty, binary):
        with pytest.raises(UserError, match=path.name) as raised:
            CaptionNormalizer(path)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "caption",
    [
        *(
            "fish &amp; chips",
            "&amp;amp;amp;lt;b&amp;gt;",
            "a <b>&amp;</b>",
            "&lt;b&gt; &amp; c",
            "caf&eacute; &EACUTE;",
        ),
        *("&#39;x&#39; &#x2019;", "&#10;two &amp; lines", "&copy 2014 & more", "&#128512;", "&lt;&eacute;&amp;eacute;"),
        *("– café à Paris —", "Ã©tÃ©", "â€™ quoted", "½ ß ® ¡", "“curled”", "ﬁsh", "e\u0301", "soft\xadhyphen", "\xa0"),
        *("a\x1b[31mred", "two\r\nlines", "\ud83d", "ｗｉｄｅ", "naïve Ã", ""),
    ],
)
def test_what_is_done_of_ftfy_is_what_ftfy_does(caption):
    assert _fixed(caption) == ftfy.fix_text(caption)


@pytest.mark.parametrize("text", ["", "a", "aaa", "aaaa", "b aaaab", "abababab", "....", "x...", "1111", "\0\0\0\0 ab"])
def test_four_alike_are_found(text):
    assert _has_four_alike(text) >= bool(re.search(r"(.)\1{3}", text))
    assert not _has_four_alike("abc " * 100 + "aaa bbb")


def test_emoji_are_spelled_out_alike_in_pieces():
    texts = ["1️⃣ and #️⃣2 *", "👩\u200d🦰x👍🏽a 🇩🇪🇩 é😀", "\u200d a\u200d 😀\ufe0f", "2\ufe0f 3\u20e3"]
    for text in [*texts, *(f"a{one}1{one}{one} b" for one in emoji.EMOJI_DATA)]:
        pieces = _BEYOND_ASCII.sub(lambda found: emoji.demojize(found[0]), text)
        assert pieces == emoji.demojize(text), text


@pytest.mark.parametrize(
    "caption",
    [
        "a &#" + "1" * 5000 + "; cat",
        "é a &amp;#" + "1" * 5000 + "; cat",
        "a &amp;#" + "&#49;" * 5000 + "; cat",
        "&" + "amp;" * 100_000 + " cat",
        "é &" + "amp;" * 100_000 + " cat",
        "👩\u200d" * 20_000 + " cat",
    ],
    ids=["number", "number in unicode", "digits as references", "ampersands", "ampersands in unicode", "joiners"],
)
def test_captions_that_took_the_square_of_their_length_or_ended_the_work(caption):
    began = time.process_time()
    assert CaptionNormalizer()(caption).endswith(" cat")
    assert time.process_time() - began < 5


def test_nested_references_come_out_as_before():
    normalizer = CaptionNormalizer()
    assert normalizer("&amp;amp;amp;lt;3 &amp;eacute;t&amp;amp;eacute;") == normalizer("<3 été")


def test_a_list_with_a_giant_word_splits_as_quickly(tmp_path):
    """Each length up to the longest word's is tried at each letter."""
    (tmp_path / "words").write_text(f"red\nball\n{'a' * 1_000_000}\n")
    split = HashtagSplitter(tmp_path / "words")
    before = time.process_time()
    assert split("redball" * 2000) == " ".join(["red ball"] * 2000)
    assert time.process_time() - before < 5

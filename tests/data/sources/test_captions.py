"""Captions as strangers write them: markup, escapes, control characters, encodings, YFCC's titles and descriptions."""

import pytest

from dalle_mini.data.sources.captions import clean, join, read_lines, read_text


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("  a red \t apple\r\non a\ntable ", "a red apple on a table"),
        ('<p class="x">a <b>red</b> apple<br/></p>', "a red apple"),
        ("salt &amp; pepper, 5&nbsp;&lt; 6", "salt & pepper, 5 < 6"),
        ("salt &amp;amp; pepper", "salt & pepper"),
        ("&lt;b&gt;bold&lt;/b&gt; words", "bold words"),
        ("<!-- a note -->a snail", "a snail"),
        ("5 < 6 and 7 > 3", "5 < 6 and 7 > 3"),
        ("<PERSON> and <person> on stage", "<PERSON> and <person> on stage"),
        ("a\x00 sn\x00ail\x1b[0m\x07", "a snail [0m"),
        ("\ufeffa zero\u200b-width snail", "a zero-width snail"),
        ("half a character: \ud83d!", "half a character: !"),
        ("cafÃ© au lait", "café au lait"),
        ("un café, 家, Ω and 👩‍🚀", "un café, 家, Ω and 👩‍🚀"),
        ("<img src='x'>", ""),
        ("\x00\x00", ""),
    ],
)
def test_clean(caption, expected):
    assert clean(caption) == expected
    clean(caption).encode()  # never half a character
    assert clean(clean(caption)) == clean(caption)


@pytest.mark.parametrize("hostile", ["<" * 100_000, "<!--" * 50_000, "&lt;" * 50_000, "<a " * 50_000, "é<p" * 40_000])
def test_clean_takes_no_longer_than_the_caption_is_long(hostile):
    import time

    start = time.process_time()
    clean(hostile)
    assert time.process_time() - start < 5  # what is quadratic takes minutes


@pytest.mark.parametrize(
    ("title", "description", "expected"),
    [
        ("A holiday", "In Rome.", "A holiday. In Rome."),
        ("A holiday!", "In Rome", "A holiday! In Rome"),
        ("A holiday", "", "A holiday."),
        ("A holiday", None, "A holiday."),
        ("", "In Rome", "In Rome"),
        (None, None, ""),
        ("My+holiday%2C+2009", "caf%C3%A9", "My holiday, 2009. café"),
        ("I like C++", "1+1 is 2", "I like C++. 1+1 is 2"),
    ],
)
def test_join_of_title_and_description(title, description, expected):
    assert join(title, description) == expected


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le-bom", "utf-16-be-bom", "utf-32", "cp1252", "latin-1"]
)
def test_read_text_knows_the_usual_encodings(encoding):
    text = "a café in Köln"
    data = {
        "utf-16-le-bom": b"\xff\xfe" + text.encode("utf-16-le"),
        "utf-16-be-bom": b"\xfe\xff" + text.encode("utf-16-be"),
    }.get(encoding) or text.encode(encoding)
    assert read_text(data) == text


def test_read_text_takes_latin_1_last_and_never_raises():
    assert read_text(b"caf\xe9 \x93quoted\x94") == "café “quoted”"
    assert read_text(b"caf\xe9 \x81") == "café \x81"
    assert read_text(b"\xff\xfea\x00b") == "a\ufffd"  # cut in the middle of a character
    assert read_text(b"") == ""


def test_read_lines_is_a_caption_a_line():
    assert read_lines(b"a dog\r\n\r\nun caf\xc3\xa9\n  \n\x00\nlast") == ("a dog", "un café", "last")
    assert read_lines("one\u2028line".encode()) == ("one\u2028line",)
    assert read_lines(b"") == ()


def test_a_reference_to_a_character_with_a_number_of_thousands_of_digits():
    """Python refuses to read such a number: one caption would end the work."""
    for number in ("1" * 5000, "0" * 5000, "&#49;" * 5000):
        assert clean(f"a &#{number}; cat").endswith(" cat")
        assert clean(f"a &amp;#{number}; cat").endswith(" cat")

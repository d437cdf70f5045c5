import numpy as np
import pytest
from PIL import ImageFont

from dalle_mini.imaging.lettering import drawable, load_font, wrapped


@pytest.mark.parametrize(
    ("text", "drawn"),
    [
        ("a [red] apple_pie", "a [red] apple_pie"),
        ("🍎 pie", "[red apple] pie"),
        ("👩\u200d👩\u200d👧🏽1️⃣", "[family woman woman girl][medium skin tone][keycap 1]"),
        ("café nai\u0308ve — “x” © 5€", 'cafe naive -- "x" (c) 5EUR'),
        ("красное яблоко", "krasnoe iabloko"),
        ("日本", "Ri Ben"),
        ("שלום", "SHlvm"),
        ("a\u202eb\u200b\x1b[31m\0c\x7f", "ab[31mc"),
        ("a\n \u3000b", "a b"),
        ("𓀀 \ud83d", "[U+13000] [U+D83D]"),
        ("", ""),
    ],
)
def test_what_the_font_lacks_is_spelled(text, drawn):
    assert drawable(text) == drawn


def test_the_font_has_every_sign_that_is_drawn():
    font = load_font(18)
    box = bytes(font.getmask("\U0010ffff"))
    assert not [code for code in range(ord("!"), ord("~") + 1) if bytes(font.getmask(chr(code))) == box]


@pytest.mark.parametrize(
    "text", ["w" * 5000, "a quick brown fox " * 50, "日本" * 500, "i" * 40 + " W" * 40, "", "🍎" * 90]
)
def test_lines_fit(text):
    font = load_font(17)
    for width in (60, 300):
        lines = wrapped(text, font, width, 3)
        assert 1 <= len(lines) <= 3 and max(map(font.getlength, lines)) <= width
        assert lines[-1].endswith("...") == ("".join(lines).replace(" ", "") != drawable(text).replace(" ", ""))


def test_without_freetype_the_old_font_serves(monkeypatch):
    old = ImageFont.load_default_imagefont() if hasattr(ImageFont, "load_default_imagefont") else None

    def load_default(size=None):
        if size is not None:
            raise ImportError("The _imagingft C module is not installed")
        return old

    monkeypatch.setattr(ImageFont, "load_default", load_default)
    font = load_font(18)
    if font is not None:
        assert np.asarray(font.getmask("apple")).any() and wrapped("an apple pie", font, 40, 4)

"""Text on pictures, in the font that Pillow brings along: the same on every machine.

The font has the letters, digits and signs of ASCII alone. Everything else is spelled with them, so that no box is drawn
in place of a letter.
"""

import bisect
import unicodedata

import emoji
from PIL import ImageFont
from unidecode import UnidecodeError, unidecode

LONGEST = 2000  # characters of a text that are looked at: no picture has room for more


def load_font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font; one of a single size where Pillow was built without FreeType."""
    try:
        return ImageFont.load_default(size)
    except ImportError:
        return ImageFont.load_default()


def drawable(text: str) -> str:
    """A text in ASCII, with single spaces: emoji as their names in brackets, other scripts transliterated.

    A sign for which there is neither is its code point, as [U+13000].
    """
    text = emoji.replace_emoji(unicodedata.normalize("NFC", text[:LONGEST]), _named)
    return " ".join("".join(char if char.isascii() else _spelled(char) for char in text if _is_shown(char)).split())


def wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int, most: int) -> list[str]:
    """A text as `drawable` makes it, on at most `most` lines of `width` pixels; "..." ends the last if it is cut."""
    lines = [""]
    words = drawable(text).split()[::-1]
    while words and len(lines) <= most:
        word = words.pop()
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        elif lines[-1]:
            lines.append("")
            words.append(word)
        else:  # a word that is longer than a line
            fitting = bisect.bisect_right(range(1, len(word)), float(width), key=lambda end: font.getlength(word[:end]))
            lines[-1:] = [word[: max(1, fitting)], ""]
            words += [word[max(1, fitting) :]]
    if len(lines) <= most:
        return lines
    last = lines[most - 1]
    while last and font.getlength(f"{last} ...") > width:
        last = last[:-1].rstrip()
    return [*lines[: most - 1], f"{last} ..."]


def _named(characters: str, data: dict) -> str:
    if len(characters) == 1 and ord(characters) < 0x2190:  # the signs of copyright and the like are spelled
        return characters
    return f"[{data['en'].strip(':').replace('_', ' ')}]"


def _is_shown(char: str) -> bool:
    return char == "\n" or char == "\t" or " " <= char != "\x7f"


def _spelled(char: str) -> str:
    kind = unicodedata.category(char)
    if kind[0] in "MZ" or kind in ("Cc", "Cf"):  # marks on other letters, blanks, controls
        return " " if kind[0] == "Z" else ""
    try:  # Cs: half of a surrogate pair, of which unidecode warns
        return f"[U+{ord(char):04X}]" if kind == "Cs" else unidecode(char, errors="strict")
    except UnidecodeError:
        return f"[U+{ord(char):04X}]"

"""Captions as strangers write them -> plain text of one line, as the original prepared its own.

Shards keep this text. `text/normalize.py` makes of it later what the models read.
"""

import codecs
import re
import urllib.parse

# Conceptual Captions writes <PERSON> for a name; the normaliser knows it, so it is no tag. A sign that is followed by
# neither letter, slash nor mark is none either: "5 < 6".
_TAG = re.compile(r"<(?!person>)[a-z/!?][^<>]*>", re.IGNORECASE)
_LINE_END = re.compile(r"\r\n|\r|\n")
_NOTHING = re.compile(r"[\x00\u00ad\u200b\u2060\ufeff\ud800-\udfff\ufffe\uffff]")
_CONTROL = re.compile(r"[\x01-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]")
_URL_ENCODED = re.compile(r"\w\+\w|%[0-9A-Fa-f]{2}")
_BYTE_ORDER_MARKS = (  # the mark of UTF-32 begins like that of UTF-16
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def clean(caption: str) -> str:
    """A caption without HTML tags and entities, line breaks, extra spaces, NUL bytes and control characters.

    Text that was read in a wrong encoding once ("cafÃ©") is put right by ftfy. Half characters of JSON's escapes
    (lone surrogates) go, so that the result can always be written as UTF-8. `<PERSON>` of Conceptual Captions stays.
    """
    import ftfy  # takes longer to import than `dalle-mini --help` may take, and so does the next one's numpy

    from dalle_mini.text.normalize import unescape

    text = _NOTHING.sub("", caption)
    if not text.isascii():
        text = ftfy.fix_encoding(text)
    for _ in range(2):  # web captions are often escaped twice: &amp;amp;
        text = unescape(_TAG.sub(" ", text))
    text = _CONTROL.sub(" ", _NOTHING.sub("", _TAG.sub(" ", text)))
    return " ".join(text.split())


def join(title: str | None, description: str | None) -> str:
    """One caption of a row that has both, as YFCC's have: the title, a full stop where it lacks one, the description.

    Yahoo's own tables have their spaces and signs URL-encoded (`My+holiday%2C+2009`); that is undone.
    """
    title, description = (_url_decoded((text or "").strip()) for text in (title, description))
    if title and title[-1] not in ".!?":
        title += "."
    return f"{title} {description}".strip()


def _url_decoded(text: str) -> str:
    if " " in text or not _URL_ENCODED.search(text):
        return text
    return urllib.parse.unquote_plus(text)


def read_text(data: bytes) -> str:
    """A stranger's file as text: by its byte order mark, else UTF-8, else Windows-1252, else Latin-1; never raises."""
    for mark, encoding in _BYTE_ORDER_MARKS:
        if data.startswith(mark):
            return data.decode(encoding, "replace")
    for encoding in ("utf-8", "cp1252"):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            pass
    return data.decode("latin-1")


def read_lines(data: bytes) -> tuple[str, ...]:
    """The captions of a `.txt` file, one a line; blank lines are none. Encodings as `read_text`."""
    return tuple(line for line in _LINE_END.split(read_text(data)) if line.strip("\x00 \t\ufeff"))

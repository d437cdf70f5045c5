"""A stranger's image file before Pillow opens it: what decoding takes is counted, and only what makes pixels is left.

Metadata is left out of JPEG, PNG and TIFF files. Pillow reads much of it, which can fail, or take hours, where every
pixel is whole. The camera's rotation is all that is needed of it, and is read here.
"""

import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from dalle_mini.runtime.limits import exceeded, limits

MAGIC = re.compile(
    rb"(?P<JPEG>\xff\xd8\xff)|(?P<PNG>\x89PNG\r\n\x1a\n)|(?P<GIF>GIF8[79]a)|(?P<WEBP>RIFF....WEBP)|(?P<BMP>BM)"
    rb"|(?P<TIFF>II\*\0|MM\0\*|MM\*\0|II\0\*|MM\0\+|II\+\0)|(?P<PPM>P[0-6fy])",
    re.DOTALL,
)
METADATA = 1 << 20  # bytes of a text that are looked at for the rotation
PNM_HEADER = 1 << 14  # bytes; Pillow reads it a byte at a time

_MARKER = re.compile(rb"\xff[^\0\xff]")
_IN_SCANS = re.compile(rb"\xff[^\0\xff\xd0-\xd7]")
_BARE_MARKERS = {0x01, *range(0xD0, 0xDA)}  # JPEG's markers that no segment follows
_SCAN, _END, _SEQUENTIAL, _LOSSLESS = 0xDA, 0xD9, (0xC0, 0xC1, 0xC9), 0xC3
_FRAMES = {0xC0, 0xC1, 0xC2, _LOSSLESS, 0xC9, 0xCA}
_OF_PIXELS = {*range(0xC0, 0xD0), 0xDB, 0xDD}  # frames, Huffman and quantization tables, restart intervals
_OF_COLOURS = {0xE0: b"JFIF", 0xEE: b"Adobe"}  # what tells which colours the numbers are
_ORIENTATION, _XMP, _TILE_WIDTH, _TILE_LENGTH = 274, 700, 322, 323
_TIFF_PIXELS = {256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, _TILE_WIDTH, _TILE_LENGTH}
_TIFF_PIXELS |= {324, 325, 332, 338, 339, 347, *range(512, 522), 529, 530, 531, 532}
_TIFF_EXPECTED = {_ORIENTATION: 3, 282: 5, 283: 5, 296: 3, 34665: 0, 34853: 0, 40965: 0}  # what Pillow looks at: type
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_WHOLE = {1: "B", 3: "H", 4: "L", 6: "b", 8: "h", 9: "l", 16: "Q"}  # of TIFF's types
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
_PNM_NUMBER = re.compile(rb"(?:[ \t\n\v\f\r]|#[^\n\r]*[\n\r])*([0-9]{1,10})")
_PNM_COMMENT = re.compile(rb"#[^\n\r]*[\n\r]?")


class TooMuch(Exception):
    """An image file that would take longer to decode than an honest one; the text says why, and the way out."""


class ImageFile(NamedTuple):
    """A file as Pillow is to decode it.

    Attributes:
        format: Pillow's name of it; its plugins for others are not asked.
        data: the file, without metadata where that is left out.
        orientation: EXIF's, 1 to 8: how the picture is to be turned; 1 where nothing says so.
        sides: width and height in pixels, of those formats whose plugin takes memory before it tells them.
        numbers: what the pixels' numbers are, where Pillow may not read such ones.
    """

    format: str
    data: bytes
    orientation: int = 1
    sides: tuple[int, int] | None = None
    numbers: str = ""


def examine(data: bytes) -> ImageFile | None:
    """An image file's pixels and rotation, or None where it is of no format that is read.

    Takes time in proportion to the bytes. Damage is left for the decoder to find. Raises TooMuch.
    """
    magic = MAGIC.match(data)
    kind = magic and magic.lastgroup
    if kind is None:
        return None
    try:
        return _READERS[kind](data)
    except (IndexError, struct.error):  # cut short: the decoder says so
        return ImageFile(kind, data)


def _parts(what: str) -> Iterator[int]:
    """Counts the parts of a file. Raises TooMuch where there are more than any honest file has."""
    most = limits().image_parts
    yield from range(most)
    raise TooMuch(f"more than {most} {what} ({exceeded('image_parts')})")


def _jpeg(data: bytes) -> ImageFile:
    kept: list[bytes | memoryview] = [data[:2]]
    at, exif, xmp, in_one_scan, numbers = 2, b"", b"", 0, ""
    for _ in _parts("JPEG segments"):
        found = _MARKER.search(data, at)
        if found is None:
            break
        start, at = found.span()
        marker = data[at - 1]
        if marker in _BARE_MARKERS:
            continue
        if marker == _SCAN:
            if data[at + 2] < in_one_scan or not in_one_scan:
                _check_scans(data, start)
            kept.append(memoryview(data)[start:])
            break
        body, at = at + 2, at + max(2, int.from_bytes(data[at : at + 2], "big"))
        if marker in _SEQUENTIAL:
            in_one_scan = data[body + 5]  # components: where the first scan has all, libjpeg reads no other
        if marker in _FRAMES and (data[body] != 8 or marker == _LOSSLESS):
            numbers = f"JPEG of {data[body]} bits{', lossless' * (marker == _LOSSLESS)}"
        if marker in _OF_PIXELS or data.startswith(_OF_COLOURS.get(marker, b"\xff\xff"), body):
            kept.append(data[start:at])
        elif marker == 0xE1 and not exif and data.startswith(b"Exif\0\0", body):
            exif = data[body:at]
        elif marker == 0xE1 and not xmp and data.startswith(b"http://ns.adobe.com/xap/1.0/\0", body):
            xmp = data[body:at]
    return ImageFile("JPEG", b"".join(kept), _orientation(exif, xmp), numbers=numbers)


def _check_scans(data: bytes, at: int) -> None:
    most, scans = limits().jpeg_scans, 0
    for _ in _parts("JPEG segments"):
        found = _IN_SCANS.search(data, at)
        if found is None or data[found.end() - 1] == _END:  # what follows is not the picture's
            return
        scans += data[found.end() - 1] == _SCAN
        if scans > most:
            raise TooMuch(f"more than {most} scans ({exceeded('jpeg_scans')})")
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")


def _png(data: bytes) -> ImageFile:
    kept: list[bytes | memoryview] = [data[:8]]
    pixels, at, exif, xmp = [], 8, b"", b""
    for _ in _parts("PNG chunks"):
        name = data[at + 4 : at + 8]
        if len(name) < 4 or name == b"IEND" or not name.isalpha():
            break
        body, at = at + 8, at + 12 + int.from_bytes(data[at : at + 4], "big")
        if name == b"IDAT":
            pixels.append(memoryview(data)[body : at - 4])
        elif name in (b"IHDR", b"PLTE"):
            kept.append(data[body - 8 : at])
        elif name == b"tRNS":
            if zlib.crc32(data[body - 4 : at - 4]) == int.from_bytes(data[at - 4 : at], "big"):  # else as others do
                kept.append(data[body - 8 : at])
        elif name == b"eXIf":
            exif = exif or data[body : at - 4]
        elif name in (b"tEXt", b"zTXt", b"iTXt"):
            keyword, _, text = data[body : min(at - 4, body + METADATA)].partition(b"\0")
            if keyword == b"Raw profile type exif":
                exif = exif or _raw_profile(_inflated(text[1:]) if name == b"zTXt" else text)
            elif keyword == b"XML:com.adobe.xmp":
                xmp = xmp or _international(text)
    # One chunk of pixels, which Pillow reads in large pieces; of those chunks it looks at no checksum.
    size = sum(map(len, pixels))
    if pixels:
        kept += [struct.pack(">L", size & 0xFFFFFFFF), b"IDAT", *pixels, bytes(4), bytes(4), b"IEND\xaeB`\x82"]
    return ImageFile("PNG", b"".join(kept), _orientation(exif, xmp))


def _raw_profile(text: bytes) -> bytes:
    """ImageMagick's form: a blank line, the name, the length, and lines of hexadecimal digits."""
    try:
        return bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode("ascii", "replace"))
    except ValueError:
        return b""


def _international(text: bytes) -> bytes:
    """The text of a PNG's iTXt chunk; after the keyword come two bytes of the compression and two more names."""
    text, is_packed = text[2:].split(b"\0", 2)[-1], text[:1] == b"\1"
    return _inflated(text) if is_packed else text


def _inflated(data: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, METADATA)
    except zlib.error:
        return b""


def _gif(data: bytes) -> ImageFile:
    at = 13 + (3 << (data[10] & 7) + 1 if data[10] & 128 else 0)
    parts = _parts("GIF blocks before the image")
    for _ in parts:
        introducer = data[at]
        at += 1
        if introducer in b",;":
            break
        if introducer == ord("!"):
            at += 1
            while data[at]:
                at += 1 + data[at]
                next(parts)
            at += 1
    return ImageFile("GIF", data)


def _webp(data: bytes) -> ImageFile:
    sides, at, exif, xmp = None, 12, b"", b""
    for _ in _parts("WebP chunks"):
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if len(name) < 4:
            break
        if name == b"VP8X":
            width, height = (1 + int.from_bytes(data[at + 12 + i : at + 15 + i], "little") for i in (0, 3))
            sides = width, height
        elif name == b"EXIF":
            exif = exif or data[at + 8 : at + 8 + size]
        elif name == b"XMP ":
            xmp = xmp or data[at + 8 : at + 8 + min(size, METADATA)]
        at += 8 + size + size % 2
    return ImageFile("WEBP", data, _orientation(exif, xmp), sides)


def _bmp(data: bytes) -> ImageFile:
    header, width, height, _, _, compression = struct.unpack_from("<LllHHL", data, 14)
    if header >= 40 and compression in (1, 2):
        most = limits().rle_pixels
        if abs(width * height) > most or len(data) > most:
            raise TooMuch(f"a run-length encoded BMP of {width} x {abs(height)} pixels ({exceeded('rle_pixels')})")
    return ImageFile("BMP", data)


class _Directory(NamedTuple):
    order: str  # of bytes, as `struct` names it
    is_big: bool
    start: int
    stop: int
    entries: dict[int, tuple[int, int, bytes]]  # tag: type, count, and the number itself, or where it is


def _directory(data: bytes, what: str = "TIFF tags") -> _Directory:
    """The first directory of a TIFF file, or of EXIF, which is one. Raises struct.error where it is cut short."""
    order, is_big = "<" if data[:2] == b"II" else ">", 43 in data[2:4]
    word, entry = ("Q", "HHQ8s") if is_big else ("H", "HHL4s")
    (start,) = struct.unpack_from(order + ("Q" if is_big else "L"), data, 8 if is_big else 4)
    if start > len(data):
        raise struct.error("the directory lies after the end")
    (count,) = struct.unpack_from(order + word, data, start)
    if count > (most := limits().image_parts):
        raise TooMuch(f"more than {most} {what} ({exceeded('image_parts')})")
    place, size = start + struct.calcsize(word), struct.calcsize("<" + entry)
    count = min(count, (len(data) - place) // size)
    stop = place + count * size
    read = struct.iter_unpack(order + entry, data[place:stop])
    return _Directory(order, is_big, start, stop, {tag: (kind, number, value) for tag, kind, number, value in read})


def _number(directory: _Directory, tag: int) -> int | None:
    """A tag's first whole number, None where it is missing or no such number."""
    kind, count, value = directory.entries.get(tag, (0, 0, b""))
    form = directory.order + _WHOLE.get(kind, "")
    if not count or not 0 < struct.calcsize(form) <= len(value):
        return None
    return struct.unpack_from(form, value)[0]


def _tiff(data: bytes) -> ImageFile:
    directory = _directory(data)
    order, is_big, start, stop, entries = directory
    most, metadata, is_plain, xmp = limits().image_parts, 0, True, b""
    for tag, (kind, count, value) in entries.items():
        size = count * _TYPE_BYTES.get(kind, 1)
        if tag not in _TIFF_PIXELS:
            metadata += size
            if tag in _TIFF_EXPECTED:
                is_plain &= (kind, count) == (_TIFF_EXPECTED[tag], 1)
            elif tag == _XMP:
                is_plain &= kind in (1, 7)
                at = int.from_bytes(value, "little" if order == "<" else "big")
                xmp = data[at : at + min(size, METADATA)]
        elif size > 8 * most:
            raise TooMuch(f"more than {most} strips, tiles or values of tag {tag} ({exceeded('image_parts')})")
    if _TILE_WIDTH in entries:
        width, height, across, down = (_number(directory, tag) or 1 for tag in (256, 257, _TILE_WIDTH, _TILE_LENGTH))
        if -(-width // across) * -(-height // down) * across * down > 4 * limits().pixels:
            raise TooMuch(f"tiles of {across} x {down} pixels for {width} x {height} ({exceeded('pixels')})")
    orientation = _turn(_number(directory, _ORIENTATION), xmp)
    if orientation != 1 or not is_plain or metadata > METADATA:  # else not copied: the bytes are many
        entry = order + ("HHQ8s" if is_big else "HHL4s")
        kept = b"".join(struct.pack(entry, tag, *what) for tag, what in entries.items() if tag in _TIFF_PIXELS)
        kept = struct.pack(order + ("Q" if is_big else "H"), len(kept) // struct.calcsize(entry)) + kept
        stop += 8 if is_big else 4  # where the next directory is
        data = b"".join((memoryview(data)[:start], kept, bytes(stop - start - len(kept)), memoryview(data)[stop:]))
    bits, form, colours = (_number(directory, tag) for tag in (258, 339, 262))
    return ImageFile("TIFF", data, orientation, numbers=f"{bits} bits, sample format {form}, photometric {colours}")


def _orientation(exif: bytes, xmp: bytes = b"") -> int:
    while exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
    try:
        found = _number(_directory(exif, "EXIF tags"), _ORIENTATION) if exif[:2] in (b"II", b"MM") else None
    except (struct.error, TooMuch):
        found = None
    return _turn(found, xmp)


def _turn(orientation: int | None, xmp: bytes) -> int:
    if orientation is None and (found := _XMP_ORIENTATION.search(xmp)):
        orientation = int(found[1])
    return orientation if orientation is not None and 1 <= orientation <= 8 else 1


def _pnm(data: bytes) -> ImageFile:
    """Portable gray- and pixmaps, whose numbers Pillow reads one by one, as binary ones of 8 bits, or of 16."""
    kind, numbers, at = data[1] - ord("0"), [], 2
    if not 1 <= kind <= 6:
        return ImageFile("PPM", data)
    for _ in range(2 if kind in (1, 4) else 3):
        found = _PNM_NUMBER.match(data, at, PNM_HEADER)
        if found is None:
            return ImageFile("PPM", data[:PNM_HEADER])
        numbers.append(int(found[1]))
        at = found.end()
    width, height, white = (*numbers, 1)[:3]
    is_wide = white > 255 and kind in (2, 5)
    if not 0 < white < 1 << 16 or kind == 4 or (kind > 4 and white in (255, 65535 if is_wide else 255)):
        return ImageFile("PPM", data)
    bands = 3 if kind in (3, 6) else 1
    samples = _plain(data[at:], kind) if kind < 4 else _binary(data[at + 1 :], white)
    samples = samples[: width * height * bands]
    if samples.size and (samples.min() < 0 or samples.max() > white):
        return ImageFile("PPM", data[:PNM_HEADER])
    most = 65535 if is_wide else 255
    levels = np.rint(np.arange(white + 1) / white * most).astype(">u2" if is_wide else np.uint8)
    if kind == 1:
        levels = levels[::-1]  # in bitmaps 1 is black
    header = b"P%d %d %d %d\n" % (6 if bands == 3 else 5, width, height, most)
    return ImageFile("PPM", header + levels[samples].tobytes())


def _plain(text: bytes, kind: int) -> np.ndarray:
    if text.count(b"#") > (most := limits().image_parts):
        raise TooMuch(f"more than {most} comments ({exceeded('image_parts')})")
    text = _PNM_COMMENT.sub(b"", text)
    if kind == 1:
        bits = np.frombuffer(text.translate(None, b" \t\n\v\f\r"), np.uint8)
        return bits - np.uint8(ord("0"))  # whatever is neither 0 nor 1 is above
    with warnings.catch_warnings():  # of what is no number at the end
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            return np.fromstring(text, np.int32, sep=" ")
        except ValueError:
            return np.zeros(0, np.int32)


def _binary(data: bytes, white: int) -> np.ndarray:
    return np.frombuffer(data[: len(data) // 2 * 2], ">u2") if white > 255 else np.frombuffer(data, np.uint8)


_READERS = {"JPEG": _jpeg, "PNG": _png, "GIF": _gif, "WEBP": _webp, "BMP": _bmp, "TIFF": _tiff, "PPM": _pnm}

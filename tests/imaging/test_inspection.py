"""Strangers' picture files: odd metadata and numbers, and small files that would take hours."""

import io
import resource
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dalle_mini.errors import UserError
from dalle_mini.imaging import problems
from dalle_mini.imaging.decoding import decode_image, load_image
from dalle_mini.imaging.pixels import resize_and_crop
from dalle_mini.imaging.problems import BadImage

M = 1 << 20
RGB = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
RAMP = np.linspace(0, 1, 256).reshape(16, 16)
ROTATION = struct.pack(">HHLHH", 0x0112, 3, 1, 6, 0)


def encoded(kind, image=RGB, **options):
    Image.fromarray(image).save(file := io.BytesIO(), kind, **options)
    return file.getvalue()


def chunk(name, data, checksum=None):
    crc = zlib.crc32(name + data) if checksum is None else checksum
    return struct.pack(">L", len(data)) + name + data + struct.pack(">L", crc)


def png(*middle, bits=8, color=2, raw=None, sides=(32, 24)):
    raw = b"".join(b"\0" + row.tobytes() for row in RGB) if raw is None else raw
    head = chunk(b"IHDR", struct.pack(">LLBBBBB", *sides, bits, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(middle) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def exif(*entries):
    return b"MM\0*\0\0\0\x08" + struct.pack(">H", len(entries)) + b"".join(entries) + bytes(4)


def segment(marker, data):
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(data) + 2) + data


def in_jpeg(*segments):
    whole = encoded("JPEG")
    return whole[:2] + b"".join(segments) + whole[2:]


def tiff(numbers, bits, kind=1, photometric=1, *more, order="<"):
    """An uncompressed one of 16 x 16 pixels, with `more` entries (tag, type, count, value)."""
    entries = [(256, 3, 1, 16), (257, 3, 1, 16), (258, 3, 1, bits), (259, 3, 1, 1), (262, 3, 1, photometric)]
    entries += [(273, 4, 1, 8), (277, 3, 1, 1), (279, 4, 1, len(numbers)), (339, 3, 1, kind), *more]
    packed = (
        struct.pack(order + ("HHLHH" if entry[1] == 3 else "HHLL"), *entry, *([0] if entry[1] == 3 else []))
        for entry in sorted(entries)
    )
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "L", 8 + len(numbers))
    return head + numbers + struct.pack(order + "H", len(entries)) + b"".join(packed) + bytes(4)


def seconds(call):
    before = resource.getrusage(resource.RUSAGE_SELF)
    call()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


TEXT = zlib.compress(b"node graph " * 200_000)
SIGNED, FLOAT = struct.pack(">HHLl", 0x0100, 9, 1, -5), struct.pack(">HHLf", 0x0100, 11, 1, 1.5)


@pytest.mark.parametrize(
    "middle",
    [
        chunk(b"zTXt", b"workflow\0\0" + TEXT),
        chunk(b"iTXt", b"workflow\0\1\0\0\0" + TEXT),
        chunk(b"iCCP", b"icc\0\0" + TEXT),
        chunk(b"iCCP", b"icc\0\7"),
        chunk(b"tEXt", b"Comment\0hello", 0),
        chunk(b"gAMA", b"\0"),
        chunk(b"pHYs", b""),
        chunk(b"acTL", b"\0\0\0\0" * 2),
        chunk(b"fcTL", b""),
        chunk(b"eXIf", b"not exif at all"),
        chunk(b"tEXt", b"Raw profile type exif\0\nexif\n  12\nzzzz zzzz\n"),
        chunk(b"zTXt", b"Raw profile type exif\0\0not zlib"),
        chunk(b"tRNS", b"\0" * 6, 0),
        chunk(b"tIME", bytes(7)) * 70_000,
    ],
)
def test_a_png_is_its_pixels_whatever_else_is_in_it(middle):
    np.testing.assert_array_equal(np.asarray(decode_image(png(middle))), RGB)


@pytest.mark.parametrize(
    "block",
    [
        b"not exif at all",
        exif(SIGNED),
        exif(struct.pack(">HHLL", 0x8769, 4, 1, 8)),  # EXIF whose EXIF is itself
        exif(struct.pack(">HHLL", 0x011A, 5, 1, 99)),
        exif(struct.pack(">HHLL", 0x0112, 3, 1, 0xFFFF0000)),
        b"II*\0\xff\xff\xff\xff",
        b"MM\0+\0\x08\0\0" + b"\xff" * 8,
        b"",
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_odd_exif_is_passed_over(block, kind):
    if kind == "JPEG":
        data, expected = in_jpeg(segment(0xE1, b"Exif\0\0" + block)), encoded("JPEG")
    elif kind == "PNG":
        data, expected = png(chunk(b"eXIf", block)), png()
    else:
        expected = encoded("WEBP", lossless=True)
        data = encoded("WEBP", lossless=True, exif=block or b"x")
    np.testing.assert_array_equal(np.asarray(decode_image(data)), np.asarray(decode_image(expected)))


@pytest.mark.parametrize("beside", [b"", SIGNED, FLOAT, struct.pack(">HHLl", 0x0100, 8, 1, -5)])
def test_a_rotation_is_applied_whatever_stands_beside_it(tmp_path, beside):
    block = exif(*filter(None, [beside]), ROTATION)
    turned = np.rot90(RGB, -1)
    raw = b"\nexif\n 40\n" + block.hex().encode() + b"\n"
    for data in (
        png(chunk(b"eXIf", block)),
        png(chunk(b"tEXt", b"Raw profile type exif\0" + raw)),
        png(chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(raw))),
        png(chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>')),
        encoded("WEBP", lossless=True, exif=block),
        encoded("TIFF", compression="tiff_lzw", exif=block[:8] + b"\0\1" + ROTATION + bytes(4)),
    ):
        np.testing.assert_array_equal(np.asarray(decode_image(data)), turned)
    (tmp_path / "a.jpg").write_bytes(in_jpeg(segment(0xE1, b"Exif\0\0" + block)))
    assert load_image(tmp_path / "a.jpg").size == (24, 32)


def test_tags_of_a_tiff_that_are_not_its_pixels_are_passed_over():
    numbers = np.round(RAMP * 255).astype(np.uint8).tobytes()
    for more in (
        [(282, 2, 1, 0)],  # a resolution that is text
        [(34665, 4, 1, 0xFFFFFF)],
        [(34853, 3, 1, 7)],
        [(34853, 4, 1, 8), (274, 3, 1, 1)],
        [(700, 2, 1, 0)],
        [(256 + 7, 99, 9, 0)],
    ):
        image = np.asarray(decode_image(tiff(numbers, 8, 1, 1, *more)))
        np.testing.assert_array_equal(image[..., 0], np.round(RAMP * 255))


@pytest.mark.parametrize("order", "<>")
def test_numbers_of_more_than_8_bits_are_scaled(order):
    gray = np.round(RAMP * 255)

    def shown(scale, form, *fields, low=0.0):
        numbers = (low + RAMP * scale).astype(order + form).tobytes()
        return np.asarray(decode_image(tiff(numbers, 8 * np.dtype(form).itemsize, *fields, order=order)))[..., 0]

    for scale, form, kind, low in (
        *((65535, "u2", 1, 0), (60000, "i2", 2, -30000), (1e5, "i4", 2, 0), (4e9, "i4", 2, -2e9)),
        *((1, "f4", 3, 0), (1000, "f4", 3, -500), (6e38, "f4", 3, -3e38), (1e-6, "f4", 3, 0)),
    ):
        assert np.abs(shown(scale, form, kind, low=low) - gray).max() <= 1, (scale, form)
    assert np.abs(shown(1, "f4", 3, 0) - (255 - gray)).max() <= 1  # 0 is white
    for form in ("f8", "f2"):
        with pytest.raises(BadImage, match=problems.UNREAD_NUMBERS):
            shown(1, form, 3)


def test_12_bits_are_not_black_and_holes_are_no_range():
    values = np.round(RAMP * 4095).astype(int).reshape(-1, 2)
    packed = bytes(byte for a, b in values for byte in (a >> 4, (a & 15) << 4 | b >> 8, b & 255))
    image = np.asarray(decode_image(tiff(packed, 12)))[..., 0]
    assert np.abs(image - np.round(RAMP * 255)).max() <= 1
    holes = RAMP.astype("<f4")
    holes[3, 3], holes[4, 4], holes[5, 5] = np.nan, np.inf, -np.inf
    image = np.asarray(decode_image(tiff(holes.tobytes(), 32, 3)))[..., 0]
    assert image[15, 15] == image[4, 4] == 255 and image[3, 3] == image[5, 5] == image[0, 0] == 0
    for same in (0.5, np.nan):
        with pytest.raises(BadImage, match=problems.NO_RANGE):
            decode_image(tiff(np.full((16, 16), same, "<f4").tobytes(), 32, 3))


def test_every_mode_has_its_colours():
    red = Image.new("RGB", (16, 16), (255, 0, 0))
    for mode, kinds in {"CMYK": ("JPEG", "TIFF"), "YCbCr": ("TIFF",), "P": ("PNG", "GIF", "TIFF", "BMP")}.items():
        for kind in kinds:
            red.convert(mode).save(file := io.BytesIO(), kind)
            assert np.abs(np.asarray(decode_image(file.getvalue())).astype(int) - (255, 0, 0)).max() <= 2, (
                mode,
                kind,
            )
    Image.new("LAB", (16, 16), (255, 128, 128)).save(file := io.BytesIO(), "TIFF")
    assert np.asarray(decode_image(file.getvalue())).min() >= 250
    for mode in ("LA", "PA", "RGBA", "La", "RGBa"):
        image = Image.new(mode, (16, 16), 0)
        assert (resize_and_crop(image, 8) == 255).all(), mode
    clear = chunk(b"tRNS", b"\0\0")
    deep = b"".join(b"\0" + row.tobytes() for row in (RAMP * 65535).astype(">u2"))
    image = np.asarray(decode_image(png(clear, bits=16, color=0, raw=deep, sides=(16, 16))))[..., 0]
    assert image[0, 0] == 255 and image[0, 1] == 1 and image[15, 15] == 255


def test_a_large_picture_is_converted_in_bands(monkeypatch):
    alpha = np.random.default_rng(1).integers(0, 256, (24, 32, 4), np.uint8)
    deep = (np.random.default_rng(2).random((24, 32)) * 65535).astype(np.uint16)
    files = [encoded("PNG", alpha), encoded("PNG", deep), encoded("TIFF", deep.astype(np.float32))]
    files.append(encoded("PNG", RGB, transparency=(0, 0, 0)))
    whole = [np.asarray(decode_image(data)) for data in files]
    monkeypatch.setattr("dalle_mini.imaging.modes.BAND", 100)
    for data, expected in zip(files, whole, strict=True):
        np.testing.assert_array_equal(np.asarray(decode_image(data)), expected)


def test_bitmaps_graymaps_and_pixmaps_are_pillows():
    gray = RGB[..., 0].astype(int)
    for white in (1, 7, 255, 1023, 65535):
        scaled = RGB.astype(int) * white // 255
        words = ">u2" if white > 255 else np.uint8
        for kind, numbers in ((2, scaled[..., 0]), (3, scaled), (5, scaled[..., 0]), (6, scaled)):
            text = b" ".join(b"%d" % number for number in numbers.ravel())
            body = text if kind < 4 else numbers.astype(words).tobytes()
            data = b"P%d # by hand\n32 24\n%d\n" % (kind, white) + body
            with Image.open(io.BytesIO(data)) as image:
                expected = np.asarray(image)
            if image.mode == "I":
                expected = expected >> 8
            found = np.asarray(decode_image(data))
            np.testing.assert_array_equal(found if kind in (3, 6) else found[..., 0], expected)
    bits = b"P1 32 24\n" + b"".join(b"%d" % (value > 127) for value in gray.ravel())
    np.testing.assert_array_equal(np.asarray(decode_image(bits))[..., 0], np.where(gray > 127, 0, 255))
    for damaged in (b"P3 2 2 255\n1 2 3", b"P2 2 2 255\n1 2 3 999", b"P2 2 2 9\n1 2 x 4", b"P1 2 2\n1 0 2 0", b"P5 2"):
        with pytest.raises(BadImage, match=problems.IMAGE_DAMAGED):
            decode_image(damaged)


def scans(count, marker, side=2000):
    """Scans of zeros: each goes over every block of every component."""
    tables = segment(0xDB, b"\0" + b"\1" * 64) + segment(0xC4, b"\0" + bytes([1] + [0] * 15) + b"\0")
    tables += segment(0xC4, b"\x10" + bytes([1] + [0] * 15) + b"\0")
    frame = segment(marker, struct.pack(">BHHB", 8, side, side, 3) + b"\1\x11\0\2\x11\0\3\x11\0")
    one = segment(0xDA, b"\1\1\0\0\x3f\0" if marker == 0xC0 else b"\1\1\0\0\0\0") + bytes(side * side // 256 + 8)
    return b"\xff\xd8" + tables + frame + one * count + b"\xff\xd9"


JUNK = b"\xff\xe1\0\x48Exif\0\0" + b"x" * 64
GIF = encoded("GIF")[:781]
BIGTIFF = b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, M)
BOMBS = {
    "progressive": lambda: scans(1000, 0xC2),
    "sequential": lambda: scans(1000, 0xC0),
    "segments": lambda: in_jpeg(b"\xff\xe5\0\x02" * M),
    "exif": lambda: in_jpeg(JUNK * 200_000),
    "chunks": lambda: png(chunk(b"tEXt", b"a\0b") * M),
    "GIF extensions": lambda: GIF + b"!\xf9\0" * (4 * M),
    "GIF comment": lambda: GIF + b"!\xfe" + b"\1a" * (4 * M),
    "WebP chunks": lambda: encoded("WEBP", exif=b"x")[:30] + b"JUNK\0\0\0\0" * M,
    "TIFF strips": lambda: tiff(bytes(256), 8, 1, 1, (278, 4, 1, 1)).replace(
        struct.pack("<HHLL", 273, 4, 1, 8), struct.pack("<HHLL", 273, 4, 4 * M, 8)
    ),
    "TIFF bits": lambda: tiff(bytes(256), 8).replace(
        struct.pack("<HHL", 258, 3, 1), struct.pack("<HHL", 258, 3, 20 * M)
    ),
    "TIFF tiles": lambda: tiff(bytes(256), 8, 1, 1, (322, 4, 1, 1 << 16), (323, 4, 1, 1 << 16)),
    "BigTIFF tags": lambda: BIGTIFF + struct.pack("<HHQQ", 1000, 3, 1, 1) * M,
    "plain comments": lambda: b"P3 2000 2000 255\n" + b"#\n" * M,
    "RLE": lambda: b"BM" + bytes(12) + struct.pack("<LllHHLLLLLL", 40, 8000, 8000, 1, 8, 1, 0, 0, 0, 256, 0) + bytes(M),
}


@pytest.mark.parametrize("name", BOMBS)
def test_what_takes_long_is_counted_and_not_decoded(name):
    data = BOMBS[name]()

    def decode():
        with pytest.raises(BadImage) as caught:
            decode_image(data)
        assert caught.value.reason == problems.TOO_MUCH and "DALLE_MINI_LIMITS=" in caught.value.detail

    assert seconds(decode) < 1.5


@pytest.mark.parametrize(
    "data",
    [
        lambda: in_jpeg(b"\xff\xe0\0\x02" + b"a" * (20 * M)),
        lambda: in_jpeg(b"\xff" * (8 * M)),
        lambda: in_jpeg((b"\xff\xe1\xff\xffExif\0\0" + b"x" * 65527) * 200),
        lambda: encoded("JPEG") + b"\xff\xda" * M,
        lambda: png(chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(64 * M)))),
        lambda: png(raw=b"".join(b"\0" + row.tobytes() for row in RGB) + bytes(64 * M)),
        lambda: tiff(bytes(range(256)), 8, 1, 1, (282, 5, M, 8)) + bytes(8 * M),
        lambda: encoded("GIF") + encoded("GIF")[781:] * 1000,
        lambda: b"P2 16 16 255\n" + b"7 " * (4 * M),
    ],
)
def test_what_can_be_left_out_is_no_reason_to_drop_a_picture(data):
    data = data()
    assert seconds(lambda: decode_image(data)) < 1.5


def test_limits_are_raised_by_who_trusts_a_file(monkeypatch, tmp_path):
    (tmp_path / "many.jpg").write_bytes(scans(101, 0xC2, side=64))
    with pytest.raises(UserError, match=r"many\.jpg.*too long.*DALLE_MINI_LIMITS=jpeg_scans=N"):
        load_image(tmp_path / "many.jpg")
    monkeypatch.setenv("DALLE_MINI_LIMITS", "jpeg_scans=101 image_side=2000000")
    assert load_image(tmp_path / "many.jpg").size == (64, 64)
    (tmp_path / "long.ppm").write_bytes(b"P5 1048577 1 255\n" + bytes(1048577))
    assert load_image(tmp_path / "long.ppm").size == (1048577, 1)
    monkeypatch.setenv("DALLE_MINI_LIMITS", "image_bytes=100 pixels=100")
    for name, field in (("many.jpg", "image_bytes"), ("long.ppm", "image_bytes")):
        with pytest.raises(UserError, match=rf"{name}.*{field}=N"):
            load_image(tmp_path / name)
    with pytest.raises(BadImage, match=problems.TOO_MANY_PIXELS):
        decode_image(encoded("PNG"))


def test_more_pixels_than_pillow_opens_by_itself(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(BadImage, match=problems.TOO_MANY_PIXELS):
        decode_image(encoded("GIF"), 500)
    assert decode_image(encoded("GIF"), 1000).size == (32, 24)


def test_progressive_and_cut_pictures_as_ever():
    whole = encoded("JPEG", progressive=True, quality=95)
    assert decode_image(whole).size == (32, 24)
    info = PngInfo()
    info.add_text("a", "b")
    for data in (whole, encoded("PNG", pnginfo=info), encoded("TIFF"), encoded("BMP"), encoded("WEBP"), encoded("GIF")):
        with pytest.raises(BadImage) as caught:
            decode_image(data[: len(data) * 2 // 3])
        assert caught.value.reason in (problems.IMAGE_DAMAGED, problems.NOT_AN_IMAGE)
        assert decode_image(data + b"junk behind it").size == (32, 24)

"""Image files of strangers, whatever they hold."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import bad_dataset
from dalle_mini.errors import UserError
from dalle_mini.imaging import problems
from dalle_mini.imaging.decoding import decode_image, decode_scaled, load_image
from dalle_mini.imaging.pixels import resize_and_crop
from dalle_mini.imaging.problems import BadImage


def gradient(height, width):
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 255 // height, columns * 255 // width, (rows + columns) % 256], -1).astype(np.uint8)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp"])
def test_load_picture(tmp_path, suffix):
    Image.fromarray(gradient(20, 30)).save(path := tmp_path / f"picture.{suffix}")
    picture = load_image(path)
    assert (picture.mode, picture.size) == ("RGB", (30, 20))
    assert np.abs(np.asarray(picture).astype(int) - gradient(20, 30)).mean() < 40


def test_load_picture_lays_transparency_on_white(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(path := tmp_path / "clear.png")
    assert (np.asarray(load_image(path)) == 255).all()


def test_load_picture_says_nothing_of_many_pixels(tmp_path, monkeypatch, recwarn):
    Image.new("L", (40, 30)).save(path := tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert load_image(path).size == (40, 30)
    assert not list(recwarn)


def test_load_picture_scales_16_bits(tmp_path):
    Image.fromarray(np.full((4, 4), 0x8000, np.uint16)).save(path := tmp_path / "deep.png")
    assert (np.asarray(load_image(path)) == 0x80).all()


def test_load_picture_applies_the_cameras_rotation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show rotated by 90 degrees
    Image.fromarray(gradient(20, 30)).save(path := tmp_path / "turned.jpg", exif=exif)
    assert load_image(path).size == (20, 30)


def test_load_picture_refuses_before_decoding(tmp_path):
    Image.new("L", (3000, 2000)).save(path := tmp_path / "large.png")
    with pytest.raises(UserError, match=r"large\.png.*3000 x 2000 pixels"):
        load_image(path, max_pixels=5_000_000)


def test_load_picture_names_the_file_that_it_cannot_read(tmp_path):
    Image.fromarray(gradient(200, 300)).save(whole := tmp_path / "whole.png")
    (tmp_path / "short.png").write_bytes(whole.read_bytes()[:500])
    (tmp_path / "notes.png").write_text("not a picture")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    for name in ("short", "notes", "empty", "folder", "missing"):
        with pytest.raises(UserError, match=rf"{name}\.png") as caught:
            load_image(tmp_path / f"{name}.png")
        assert "\n" not in str(caught.value)


def encoded(image, kind, **options):
    import io

    image.save(file := io.BytesIO(), kind, **options)
    return file.getvalue()


def test_decode_image_is_load_picture_of_bytes(tmp_path):
    data = encoded(Image.fromarray(gradient(20, 30)), "PNG")
    (tmp_path / "a.png").write_bytes(data)
    np.testing.assert_array_equal(np.asarray(decode_image(data)), np.asarray(load_image(tmp_path / "a.png")))
    np.testing.assert_array_equal(np.asarray(decode_image(gradient(20, 30))), gradient(20, 30))


def test_decode_image_gives_a_reason_of_the_list():
    whole = encoded(Image.fromarray(gradient(200, 300)), "JPEG")
    for data, reason in (
        (b"", problems.EMPTY_FILE),
        (b"<svg></svg>", problems.NOT_AN_IMAGE),
        (whole[: len(whole) // 2], problems.IMAGE_DAMAGED),
        (whole[:20], problems.NOT_AN_IMAGE),
    ):
        with pytest.raises(BadImage) as caught:
            decode_image(data)
        assert caught.value.reason == reason
    for picture in (whole, gradient(200, 300)):
        with pytest.raises(BadImage, match=problems.TOO_MANY_PIXELS):
            decode_image(picture, max_pixels=59_999)
        with pytest.raises(BadImage, match="aspect"):
            decode_image(picture, problem=lambda width, height: "aspect" if (width, height) == (300, 200) else None)


def test_decode_image_scales_16_bits_of_every_format():
    deep = Image.fromarray(np.full((4, 4), 0x8000, np.uint16))
    for kind in ("PNG", "TIFF", "PPM"):
        assert (np.asarray(decode_image(encoded(deep, kind))) == 0x80).all()


def test_a_jpeg_file_is_decoded_no_larger_than_it_takes():
    for sides, needed, decoded in (
        *(((800, 400), 100, (200, 100)), ((800, 400), 101, (400, 200)), ((401, 399), 190, (201, 200))),
        *(((800, 400), 400, (800, 400)), ((800, 400), 5, (100, 50)), ((30, 20), 100, (30, 20))),
    ):
        image, shown = decode_scaled(encoded(Image.fromarray(gradient(*sides[::-1])), "JPEG", quality=95), needed)
        assert (image.size, shown, image.mode) == (decoded, sides, "RGB")
    whole = encoded(Image.fromarray(gradient(400, 800)), "JPEG", quality=95)
    exact, quick = (resize_and_crop(decode_scaled(whole, needed)[0], 64).astype(int) for needed in (None, 128))
    assert 0 < np.abs(exact - quick).mean() < 1.5
    png = encoded(Image.fromarray(gradient(400, 800)), "PNG")
    np.testing.assert_array_equal(np.asarray(decode_scaled(png, 64)[0]), gradient(400, 800))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_file_that_is_decoded_smaller_is_turned_all_the_same(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(gradient(401, 400)), "JPEG", exif=exif, quality=95)
    whole, shown = decode_scaled(data, None)
    quick, same = decode_scaled(data, 200)
    assert shown == same == whole.size == ((401, 400) if orientation > 4 else (400, 401))
    assert quick.size == tuple(-(-side // 2) for side in shown)
    assert np.abs(np.asarray(whole.resize(quick.size), int) - np.asarray(quick)).mean() < 3


def test_pixels_that_need_no_change_are_not_copied(monkeypatch):
    data = encoded(Image.fromarray(gradient(20, 30)), "JPEG")
    monkeypatch.setattr(Image.Image, "copy", None)
    monkeypatch.setattr(Image.Image, "convert", None)
    assert decode_image(data).size == (30, 20)


def test_pictures_are_opened_in_one_place():
    root = Path(__file__).parents[2]
    files = [file for place in ("src", "tools", "benchmarks") for file in (root / place).rglob("*") if file.is_file()]
    places = {
        str(file.relative_to(root))
        for file in files
        if file.suffix in (".py", ".ipynb", ".sh")
        for text in [file.read_text("utf-8")]
        if "Image.open" in text or "ImageFile.Parser" in text or "from PIL.Image import" in text
    }
    assert places == {"src/dalle_mini/imaging/decoding.py"}


def test_too_little_memory_is_no_damage(monkeypatch):
    """A picture within its bounds is not dropped because the machine is full: the run ends, and may go on later."""

    def full(*_):
        raise MemoryError

    picture = bad_dataset.packed(bad_dataset.photo(0))
    monkeypatch.setattr("PIL.JpegImagePlugin.JpegImageFile.load", full)
    with pytest.raises(MemoryError):
        decode_image(picture)

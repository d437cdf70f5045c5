"""Picture preprocessing against CLIPProcessor and torchvision (tests/golden), and what strangers' files may hold."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import bad_pile
from dalle_mini.errors import UserError
from dalle_mini.imaging import problems
from dalle_mini.imaging.images import (
    BadPicture,
    clip_pixels,
    decode_picture,
    decode_scaled,
    load_picture,
    resize_and_crop,
    to_uint8,
    white_cells,
)

GOLDEN = Path(__file__).parents[1] / "golden"
CONFIG = json.loads((GOLDEN / "clip" / "preprocessor_config.json").read_text())


def gradient(height, width):
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 255 // height, columns * 255 // width, (rows + columns) % 256], -1).astype(np.uint8)


def test_clip_pixels_are_those_of_the_published_processor():
    golden = np.load(GOLDEN / "clip" / "golden.npz")
    pixels = clip_pixels([golden[f"picture{i}_uint8"] for i in range(4)], CONFIG)
    assert pixels.dtype == np.float32
    np.testing.assert_array_equal(pixels, golden["pixel_values"].transpose(0, 2, 3, 1))


def test_clip_pixels_of_one_array_of_generated_pictures():
    golden = np.load(GOLDEN / "end_to_end" / "golden.npz")
    pixels = clip_pixels(golden["cs10_uint8"], CONFIG)
    np.testing.assert_array_equal(pixels, golden["cs10_clip_pixel_values"].transpose(0, 2, 3, 1))


def test_clip_pixels_reads_the_old_form_of_the_config_too():
    old = {name: CONFIG[name] for name in ("image_mean", "image_std", "resample", "do_resize")}
    picture = gradient(40, 31)
    np.testing.assert_array_equal(
        clip_pixels([picture], {**old, "size": 24, "crop_size": 24}), clip_pixels([picture], CONFIG)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"do_normalize": False}, "do_normalize=false"),
        ({"crop_size": {"height": 24, "width": 20}}, "crop_size"),
        ({"crop_size": 48}, "larger than size 24"),
        ({"size": 10**18}, r"size=10{18} is more than 4096 pixels \(limit preprocessing_side"),
        ({"crop_size": {"height": 8192, "width": 8192}}, "is more than 4096 pixels"),
        ({"size": None}, "size=None"),
        ({"image_mean": [0.5]}, "image_mean"),
        ({"resample": 99}, "resample"),
    ],
)
def test_clip_pixels_names_what_is_wrong_with_the_config(change, message):
    with pytest.raises(UserError, match=f"preprocessor_config.json.*{message}"):
        clip_pixels([gradient(30, 30)], {**CONFIG, **change})


def test_resize_and_crop_is_torchvisions():
    golden = np.load(GOLDEN / "image_preprocess" / "golden.npz")
    for i in range(4):
        np.testing.assert_array_equal(
            resize_and_crop(golden[f"image{i}_uint8"], 16), golden[f"image{i}_center_crop_uint8"]
        )


def test_resize_and_crop_of_a_very_long_strip_takes_its_middle():
    strip = np.zeros((2, 200_001, 3), np.uint8)
    strip[:, 99_000:101_000] = 200
    assert (resize_and_crop(strip, 32) == 200).all()
    assert (resize_and_crop(strip.transpose(1, 0, 2), 32) == 200).all()


@pytest.mark.parametrize("picture", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)])
def test_other_arrays_are_refused(picture):
    with pytest.raises(ValueError, match="uint8"):
        resize_and_crop(picture, 4)


def test_to_uint8_clips_and_truncates():
    golden = np.load(GOLDEN / "end_to_end" / "golden.npz")
    np.testing.assert_array_equal(to_uint8(golden["cs1_decoded"]), golden["cs1_uint8"])
    np.testing.assert_array_equal(to_uint8(np.array([-1, 0.999, 2])), [0, 254, 255])


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp"])
def test_load_picture(tmp_path, suffix):
    Image.fromarray(gradient(20, 30)).save(path := tmp_path / f"picture.{suffix}")
    picture = load_picture(path)
    assert (picture.mode, picture.size) == ("RGB", (30, 20))
    assert np.abs(np.asarray(picture).astype(int) - gradient(20, 30)).mean() < 40


def test_load_picture_lays_transparency_on_white(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(path := tmp_path / "clear.png")
    assert (np.asarray(load_picture(path)) == 255).all()


def test_load_picture_says_nothing_of_many_pixels(tmp_path, monkeypatch, recwarn):
    Image.new("L", (40, 30)).save(path := tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert load_picture(path).size == (40, 30)
    assert not list(recwarn)


@pytest.mark.parametrize("sides", [(64, 64), (100, 64), (64, 100), (300, 200), (7, 500), (16, 16), (3, 3)])
def test_white_cells_lie_where_a_picture_shows_them(sides):
    """Each white pixel alone: a resized square lights the same cells."""
    width, height = sides
    for x, y in ((width // 2, height // 2), (0, height // 2), (width // 2, 0), (width - 1, height - 1)):
        mask = Image.new("L", sides)
        mask.putpixel((x, y), 255)
        cells = white_cells(mask, 64, 4)
        shown = resize_and_crop(np.repeat(np.asarray(mask)[..., None], 3, axis=2), 64)[..., 0]
        brightest = np.unravel_index(shown.argmax(), shown.shape)
        if shown.max() > 30:  # else it is cropped away, or too small to survive a resize, as the cells do
            assert cells[brightest[0] // 16, brightest[1] // 16]
        assert cells.sum() <= (4 if min(sides) > 8 else 16)


def test_a_thin_line_and_transparency_in_a_mask():
    line = Image.new("L", (3000, 2000))
    line.paste(255, (0, 1000, 3000, 1001))
    assert white_cells(line, 64, 4).tolist() == [[False] * 4] * 2 + [[True] * 4] + [[False] * 4]
    clear = Image.new("RGBA", (64, 64), (255, 255, 255, 0))
    clear.paste((255, 255, 255, 255), (0, 0, 16, 16))
    assert white_cells(clear, 64, 4).nonzero() == (0, 0)


def test_load_picture_scales_16_bits(tmp_path):
    Image.fromarray(np.full((4, 4), 0x8000, np.uint16)).save(path := tmp_path / "deep.png")
    assert (np.asarray(load_picture(path)) == 0x80).all()


def test_load_picture_applies_the_cameras_rotation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show rotated by 90 degrees
    Image.fromarray(gradient(20, 30)).save(path := tmp_path / "turned.jpg", exif=exif)
    assert load_picture(path).size == (20, 30)


def test_load_picture_refuses_before_decoding(tmp_path):
    Image.new("L", (3000, 2000)).save(path := tmp_path / "large.png")
    with pytest.raises(UserError, match=r"large\.png.*3000 x 2000 pixels"):
        load_picture(path, max_pixels=5_000_000)


def test_load_picture_names_the_file_that_it_cannot_read(tmp_path):
    Image.fromarray(gradient(200, 300)).save(whole := tmp_path / "whole.png")
    (tmp_path / "short.png").write_bytes(whole.read_bytes()[:500])
    (tmp_path / "notes.png").write_text("not a picture")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    for name in ("short", "notes", "empty", "folder", "missing"):
        with pytest.raises(UserError, match=rf"{name}\.png") as caught:
            load_picture(tmp_path / f"{name}.png")
        assert "\n" not in str(caught.value)


def encoded(image, kind, **options):
    import io

    image.save(file := io.BytesIO(), kind, **options)
    return file.getvalue()


def test_decode_picture_is_load_picture_of_bytes(tmp_path):
    data = encoded(Image.fromarray(gradient(20, 30)), "PNG")
    (tmp_path / "a.png").write_bytes(data)
    np.testing.assert_array_equal(np.asarray(decode_picture(data)), np.asarray(load_picture(tmp_path / "a.png")))
    np.testing.assert_array_equal(np.asarray(decode_picture(gradient(20, 30))), gradient(20, 30))


def test_decode_picture_gives_a_reason_of_the_list():
    whole = encoded(Image.fromarray(gradient(200, 300)), "JPEG")
    for data, reason in (
        (b"", problems.EMPTY_FILE),
        (b"<svg></svg>", problems.NOT_A_PICTURE),
        (whole[: len(whole) // 2], problems.PICTURE_DAMAGED),
        (whole[:20], problems.NOT_A_PICTURE),
    ):
        with pytest.raises(BadPicture) as caught:
            decode_picture(data)
        assert caught.value.reason == reason
    for picture in (whole, gradient(200, 300)):
        with pytest.raises(BadPicture, match=problems.TOO_MANY_PIXELS):
            decode_picture(picture, max_pixels=59_999)
        with pytest.raises(BadPicture, match="aspect"):
            decode_picture(picture, problem=lambda width, height: "aspect" if (width, height) == (300, 200) else None)


def test_decode_picture_scales_16_bits_of_every_format():
    deep = Image.fromarray(np.full((4, 4), 0x8000, np.uint16))
    for kind in ("PNG", "TIFF", "PPM"):
        assert (np.asarray(decode_picture(encoded(deep, kind))) == 0x80).all()


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
    assert decode_picture(data).size == (30, 20)


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
    assert places == {"src/dalle_mini/imaging/images.py"}


def test_too_little_memory_is_no_damage(monkeypatch):
    """A picture within its bounds is not dropped because the machine is full: the run ends, and may go on later."""

    def full(*_):
        raise MemoryError

    picture = bad_pile.packed(bad_pile.photo(0))
    monkeypatch.setattr("PIL.JpegImagePlugin.JpegImageFile.load", full)
    with pytest.raises(MemoryError):
        decode_picture(picture)

"""Preprocessing against CLIPProcessor and torchvision (tests/golden)."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dalle_mini.errors import UserError
from dalle_mini.imaging.clip_pixels import clip_pixels
from dalle_mini.imaging.pixels import resize_and_crop, to_uint8, white_cells

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


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)])
def test_other_arrays_are_refused(image):
    with pytest.raises(ValueError, match="uint8"):
        resize_and_crop(image, 4)


def test_to_uint8_clips_and_truncates():
    golden = np.load(GOLDEN / "end_to_end" / "golden.npz")
    np.testing.assert_array_equal(to_uint8(golden["cs1_decoded"]), golden["cs1_uint8"])
    np.testing.assert_array_equal(to_uint8(np.array([-1, 0.999, 2])), [0, 254, 255])


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


def encoded(image, kind, **options):
    import io

    image.save(file := io.BytesIO(), kind, **options)
    return file.getvalue()

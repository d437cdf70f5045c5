"""Examples to crops: what is dropped, how crops lie, and that batches are full."""

import io

import numpy as np
import pytest
from PIL import Image

import noise_dataset
from dalle_mini.data.encode.crops import MANY_REJECTED, Preparation, Rejected, blocks, crop_count, random_crop
from dalle_mini.data.encode.filters import Filters
from dalle_mini.data.sources import reasons
from dalle_mini.data.sources.example import Example
from dalle_mini.imaging.pixels import resize_and_crop

ALL = Filters(min_side=None)


def gradient(width: int, height: int) -> Image.Image:
    """Red grows to the right and green downwards, so that a crop's values say where it lies."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 0 * x], axis=-1).astype(np.uint8))


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_a_picture_becomes_its_central_square():
    image = gradient(30, 20)
    ((row, crop),) = Preparation(8, ALL)(4, Example("a", png(image), ("  one<br>", "two", "one")))
    assert row == (4, "a", 0, "one", ("two",), 30, 20, None, None)
    np.testing.assert_array_equal(crop, resize_and_crop(image, 8))


def test_an_array_is_a_picture_too():
    image = np.asarray(gradient(8, 8))
    ((row, crop),) = Preparation(8, ALL)(0, Example("a", image, ("one",)))
    np.testing.assert_array_equal(crop, image)
    assert (row.width, row.height) == (8, 8)


def test_hashes_are_made_where_duplicates_are_looked_for():
    example = Example("a", png(gradient(40, 40)), ("one",))
    ((row, _),) = Preparation(8, Filters(min_side=None, duplicates="exact"))(0, example)
    assert 0 < row.exact < 2**64 and 0 < row.look < 2**64


def test_jpeg_files_are_decoded_at_twice_what_is_needed():
    file = io.BytesIO()
    gradient(96, 64).save(file, "JPEG", quality=95)
    example, image = Example("a", file.getvalue(), ("one",)), Image.open(file)

    def crops(**options) -> np.ndarray:
        made = Preparation(**{"resolution": 8, "filters": ALL} | options)(0, example)
        assert {(row.width, row.height) for row, _ in made} == {(96, 64)}
        return np.stack([crop for _, crop in made])

    exact = crops()
    np.testing.assert_array_equal(exact[0], resize_and_crop(image, 8))
    image = Image.open(file)
    image.draft(None, (16, 16))
    assert image.size == (24, 16)
    np.testing.assert_array_equal(crops(quick_jpeg=True)[0], resize_and_crop(image, 8))
    assert (exact != crops(quick_jpeg=True)).any()
    duplicates = Filters(min_side=None, duplicates="exact")
    np.testing.assert_array_equal(crops(quick_jpeg=True, filters=duplicates), exact)
    image = Image.open(file)
    image.draft(None, (24, 24))  # a random crop is of as little as 2/3 of the shortest side
    assert image.size == (48, 32)
    np.testing.assert_array_equal(
        crops(quick_jpeg=True, crops="random:3"), [random_crop(image, 8, 0, "a", n) for n in range(3)]
    )


@pytest.mark.parametrize(
    ("example", "reason", "detail"),
    [
        (Example("a", None, (), problem=reasons.CUT_SHORT), reasons.CUT_SHORT, ""),
        (Example("a", png(gradient(9, 9)), ()), reasons.NO_CAPTION, ""),
        (Example("a", b"<svg/>", ("one",)), reasons.NOT_AN_IMAGE, None),
        (Example("a", b"", ("one",)), reasons.EMPTY_FILE, ""),
        (Example("a", png(gradient(9, 9))[:60], ("one",)), reasons.IMAGE_DAMAGED, None),
        (Example("a", png(gradient(40, 9)), ("one",)), reasons.ASPECT_RATIO, "40 x 9"),
    ],
)
def test_what_cannot_be_used_has_a_reason(example, reason, detail):
    gone = Preparation(8, ALL)(2, example)
    assert isinstance(gone, Rejected) and (gone.position, gone.key, gone.reason) == (2, "a", reason)
    assert detail is None or gone.detail == detail


def test_random_crops_are_a_function_of_seed_key_and_number():
    image = gradient(300, 200)
    crops = {
        arguments: random_crop(image, 16, *arguments).tobytes()
        for arguments in [(0, "a", 0), (0, "a", 1), (0, "b", 0), (1, "a", 0)]
    }
    assert len(set(crops.values())) == 4
    assert random_crop(image, 16, 0, "a", 1).tobytes() == crops[0, "a", 1]


def test_random_crops_lie_anywhere_and_are_as_large_as_the_paper_says():
    image = gradient(600, 400)
    lefts, tops, sides = [], [], []
    for n in range(300):
        crop = random_crop(image, 16, 0, "key", n).astype(float)
        left, right = crop[8, 0, 0] / 255 * 600, crop[8, -1, 0] / 255 * 600
        side = (right - left) * 16 / 15
        lefts.append(left - side / 32)
        tops.append(crop[0, 8, 1] / 255 * 400 - side / 32)
        sides.append(side)
    assert 400 * 8 / 12 * 0.97 < min(sides) < 280 and 340 < max(sides) < 400 * 8 / 9 * 1.03
    assert min(lefts) < 15 and max(lefts) > 290 and min(tops) < 10 and max(tops) > 110


def test_a_small_picture_is_not_enlarged_for_a_crop():
    np.testing.assert_array_equal(random_crop(gradient(16, 16), 16, 0, "a", 0), np.asarray(gradient(16, 16)))


@pytest.mark.parametrize(
    "crops", ["", "centre", "random", "random:", "random:0", "random:-1", "random:1.5", "random:9999"]
)
def test_crops_that_there_are_not(crops):
    with pytest.raises(ValueError, match="--crops is"):
        crop_count(crops)
    assert crop_count("center") == 1 and crop_count("random:12") == 12


NOISE = Preparation(8, noise_dataset.FILTERS)


def read(part, batch_size, preparation=NOISE, **more):
    def new_batch():
        return np.empty((batch_size, 8, 8, 3), np.uint8)

    return list(blocks(part, preparation, batch_size, new_batch, **more))


def test_batches_are_full_but_the_last():
    part = noise_dataset.NoisePart(0)
    found = read(part, 4)
    assert [len(block.rows) for block in found] == [4, 2]
    assert sum(block.seen for block in found) == 7
    assert [gone.key for block in found for gone in block.rejected] == ["noise-3"]
    one = read(part, 100)[0]
    np.testing.assert_array_equal(np.concatenate([block.images for block in found]), one.images)
    assert [row for block in found for row in block.rows] == one.rows
    crops = Preparation(8, noise_dataset.FILTERS, "random:3")
    assert [len(block.rows) for block in read(part, 4, crops)] == [4, 4, 4, 4, 2]


def test_a_dataset_of_nothing_but_junk_is_told_of_on_the_way():
    class Junk:
        def examples(self):
            return (Example(str(n), b"junk", ("one",)) for n in range(2 * MANY_REJECTED + 5))

    found = read(Junk(), 4)
    assert [len(block.rejected) for block in found] == [MANY_REJECTED, MANY_REJECTED, 5]
    assert [len(block.images) for block in found] == [0, 0, 0]
    assert sum(block.seen for block in found) == 2 * MANY_REJECTED + 5


def test_where_a_reader_is_and_what_it_skips():
    places = []
    found = read(noise_dataset.NoisePart(0), 100, skip=frozenset({5}), place=places.append)
    assert places == list(range(8))
    assert (5, "noise-5", reasons.IMAGE_DAMAGED, "decoding it ended the process") in found[0].rejected

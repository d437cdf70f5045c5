"""Augmentations: what they keep, how far they go, and that they are functions of their generator."""

import numpy as np
import pytest

from dalle_mini.data.images.augment import colour_jitter, damaged, flipped, noisy, random_resized_crops


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture
def pictures():
    return rng(9).integers(0, 256, (6, 16, 16, 3), np.uint8)


@pytest.mark.parametrize(
    "augment",
    [
        lambda images, rng: random_resized_crops(images, 0.5, rng),
        flipped,
        lambda images, rng: colour_jitter(images, 0.2, rng),
        lambda images, rng: noisy(images, 0.1, rng),
        lambda images, rng: damaged(images, 0.5, 4, rng),
    ],
)
def test_equal_generators_make_equal_pictures(augment, pictures):
    before = pictures.copy()
    one, same, other = (augment(pictures, rng(seed)) for seed in (1, 1, 2))
    assert one.shape == pictures.shape and one.dtype == np.uint8
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    np.testing.assert_array_equal(pictures, before)  # not in place


def test_crops_are_parts_of_a_picture():
    """Crops of a ramp in both directions are ramps again, flatter by the share of the side that is seen."""
    rows, columns = np.mgrid[:64, :64]
    ramp = np.stack([rows * 4, columns * 4, 0 * rows], axis=-1).astype(np.uint8)
    crops = random_resized_crops(np.repeat(ramp[None], 200, axis=0), 0.25, rng()).astype(float)
    seen = [(crop[-8, 8, 0] - crop[8, 8, 0]) / (4 * 48) for crop in crops]  # inner pixels: edges are filtered
    wide = [(crop[8, -8, 1] - crop[8, 8, 1]) / (4 * 48) for crop in crops]
    areas, aspects = np.multiply(seen, wide), np.divide(wide, seen)
    assert areas.min() > 0.23 and areas.max() < 1.03 and areas.std() > 0.1
    assert aspects.min() > 0.72 and aspects.max() < 1.4 and aspects.std() > 0.1
    corners = crops[:, 8, 8, :2]
    assert corners.min() < 40 and corners.max() > 100
    np.testing.assert_array_equal(random_resized_crops(ramp[None], 1.0, rng(5)).shape, (1, 64, 64, 3))


def test_half_of_the_pictures_are_mirrored():
    pictures = rng().integers(0, 256, (200, 4, 4, 3), np.uint8)
    made = flipped(pictures, rng())
    mirrored = (made == pictures[:, :, ::-1]).all(axis=(1, 2, 3))
    same = (made == pictures).all(axis=(1, 2, 3))
    assert (mirrored ^ same).all()
    assert 70 < mirrored.sum() < 130


def test_colours_vary_about_what_they_are():
    grey = np.full((300, 4, 4, 3), 100, np.uint8)
    made = colour_jitter(grey, 0.2, rng()).astype(float)
    np.testing.assert_array_equal(made.std(axis=(1, 2, 3)), 0)  # of grey only the brightness varies
    factors = made[:, 0, 0, 0] / 100
    assert factors.min() < 0.82 and factors.max() > 1.18 and factors.min() >= 0.79 and factors.max() <= 1.21
    red = np.zeros((50, 4, 4, 3), np.uint8)
    red[..., 0] = 200
    red = colour_jitter(red, 0.2, rng())
    assert (red[..., 0].min(axis=(1, 2)) > red[..., 1:].max(axis=(1, 2, 3))).all()  # and remains red
    np.testing.assert_array_equal(colour_jitter(grey, 0.0, rng()), grey)


def test_noise_has_its_deviation():
    grey = np.full((20, 32, 32, 3), 128, np.uint8)
    assert noisy(grey, 0.1, rng()).std() / 255 == pytest.approx(0.1, rel=0.03)


def test_damage():
    pictures = np.repeat(np.repeat(rng().integers(0, 256, (64, 8, 8, 3), np.uint8), 4, axis=1), 4, axis=2)
    copies = damaged(pictures, 0.5, 4, rng(1))
    assert copies.shape == pictures.shape and copies.dtype == np.uint8
    cells = (copies != pictures).reshape(64, 8, 4, 8, 4, 3)
    wrong = cells.any(axis=(2, 4, 5))
    np.testing.assert_array_equal(cells.all(axis=(2, 4)).any(axis=-1), wrong)  # whole cells
    share = wrong.mean(axis=(1, 2))
    assert 0.15 < share.mean() < 0.3  # half of at most 0.5, less the cells that came upon themselves
    assert share.max() < 0.65
    few = damaged(pictures, 1e-9, 4, rng()) != pictures
    assert few.reshape(64, 8, 4, 8, 4, 3).any(axis=(2, 4, 5)).sum() <= 64

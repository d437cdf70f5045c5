"""The same pictures and those that look alike, against a plain search through all pairs."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from dalle_mini.data.encode.duplicates import duplicates, image_hashes, near_duplicates


def plain(hashes, distance):
    kept, found = [], []
    for value in hashes.tolist():
        near = [i for i in kept if (int(hashes[i]) ^ value).bit_count() <= distance]
        found.append(near[0] if near else -1)
        if not near:
            kept.append(len(found) - 1)
    return found


@pytest.mark.parametrize("distance", [0, 1, 2, 3, 5, 8])
@pytest.mark.parametrize("kind", ["random", "crowded", "equal", "chain"])
def test_near_duplicates_are_those_of_a_plain_search(kind, distance):
    rng = np.random.default_rng(distance)
    hashes = rng.integers(0, 2**64, 400, dtype=np.uint64)
    if kind == "crowded":  # a few dozen neighbours each, at all distances about the limit
        hashes = hashes[rng.integers(0, 12, 400)]
        for _ in range(distance + 1):
            hashes ^= np.uint64(1) << rng.integers(0, 64, 400, dtype=np.uint64)
    elif kind == "equal":
        hashes = hashes[rng.integers(0, 30, 400)]
    elif kind == "chain":  # each is near the last, and no longer near the first
        hashes = np.cumsum(np.uint64(1) << rng.permutation(64).astype(np.uint64))
        hashes = np.concatenate([hashes, hashes[::-1]])
    assert near_duplicates(hashes, distance).tolist() == plain(hashes, distance)


def test_near_duplicates_among_many():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 200_000, dtype=np.uint64)
    hashes[150_000:] = hashes[:50_000] ^ np.uint64(1 << 63 | 1 << 40 | 1)
    found = near_duplicates(hashes, 3)
    assert (found[:150_000] == -1).all()
    assert (found[150_000:] == np.arange(50_000)).all()
    assert (near_duplicates(hashes, 2) == -1).all()


def test_duplicates_name_the_first():
    assert duplicates(np.array([b"x", b"y", b"x", b"z", b"y"], "S16")).tolist() == [-1, -1, 0, -1, 1]
    assert duplicates(np.array([], np.uint64)).tolist() == []
    assert near_duplicates(np.array([], np.uint64), 3).tolist() == []


def scene(seed):
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return small.resize((320, 240), Image.Resampling.BICUBIC)


def test_picture_hashes_of_a_picture_and_its_likes(tmp_path):
    picture = scene(0)
    exact, look = image_hashes(picture)
    assert len(exact) == 16
    assert 0 <= look < 2**64
    assert image_hashes(np.asarray(picture)) == (exact, look)
    picture.save(tmp_path / "x.jpg", quality=60)
    alike = [picture.resize((160, 120)), Image.open(tmp_path / "x.jpg"), picture.filter(ImageFilter.GaussianBlur(1))]
    for other in alike:
        other_exact, other_look = image_hashes(other)
        assert other_exact != exact
        assert (look ^ other_look).bit_count() <= 3
    others = [image_hashes(scene(seed))[1] for seed in range(1, 30)]
    assert min((look ^ other).bit_count() for other in others) > 8


def test_the_same_pixels_of_other_sides_are_another_picture():
    flat = np.zeros((10, 20, 3), np.uint8)
    assert image_hashes(flat)[0] != image_hashes(flat.transpose(1, 0, 2))[0]

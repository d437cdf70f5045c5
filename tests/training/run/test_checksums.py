"""Checksums of arrays. That they are the same on every mesh, `test_checkpoint.py` shows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dalle_mini.training.run.checksums import _sum, checksums


def sums(*arrays):
    return checksums({str(i): jnp.asarray(array) for i, array in enumerate(arrays)})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32", "uint32", "int8", "uint16", "bool"])
def test_every_bit_and_every_place_counts(dtype):
    rng = np.random.default_rng(3)
    array = np.asarray(
        jnp.asarray(rng.integers(0, 2, (6, 4)) if dtype == "bool" else rng.normal(size=(6, 4)) * 9, dtype)
    )
    if dtype == "bool":
        others = [array ^ (np.arange(24).reshape(6, 4) == place) for place in range(24)]
    else:
        others = []
        for place in range(24):
            for bit in range(8 * array.dtype.itemsize):
                data = array.copy()
                data.reshape(-1).view(np.uint8)[place * array.dtype.itemsize + bit // 8] ^= 1 << (bit % 8)
                others.append(data)
    totals = [tuple(total) for total in np.asarray(jax.vmap(_sum)(np.stack([array, *others])))]
    assert len({*totals}) == len(totals)
    assert [f"{high:08x}{low:08x}" for high, low in totals[:1]] == sums(array)
    moved = sums(array[::-1].copy(), np.roll(array, 1, axis=1), array.reshape(-1)[::-1].reshape(4, 6))
    assert not {*moved} & {*sums(array)}


def test_zeros_of_different_places_and_signs():
    assert len(set(sums(np.zeros(4, np.float32), -np.zeros(4, np.float32), np.zeros(5, np.float32)))) == 3
    assert sums(np.zeros((0, 3), np.float32)) == ["0" * 16]
    assert checksums({}) == []

from collections import Counter

import numpy as np
import pytest
from scipy.stats import binom, chi2

from dalle_mini.data.tokens.mixture import Mixture
from dalle_mini.errors import UserError


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 1000, 4097])
def test_every_row_exactly_once_an_epoch(size):
    order = Mixture([size], seed=3)
    for epoch in range(3):
        assert sorted(order.rows(epoch * size, size)) == list(range(size))


def test_any_part_of_the_order_is_the_same_however_it_is_asked_for():
    order = Mixture([700, 300], seed=1, weights=[2, 1])
    whole = order.rows(0, 5000)
    cuts = np.random.default_rng(0).choice(5000, 40, replace=False)
    for start, stop in np.sort(cuts.reshape(20, 2), axis=1)[::-1]:
        np.testing.assert_array_equal(order.rows(start, stop - start), whole[start:stop])


def test_the_order_stays_what_it_is():
    """A run that is continued with a later version must find its rows where they were."""
    assert Mixture([1000], seed=0).rows(998, 4).tolist() == [81, 758, 549, 870]
    assert Mixture([10, 5], seed=7, weights=[1, 3]).rows(2**40, 6).tolist() == [4, 10, 12, 11, 1, 11]


SIZE, BLOCKS = 20_000, 10
# A permutation drawn evenly from all gives a table of blocks by blocks whose chi-square has (BLOCKS - 1)**2 degrees of
# freedom (margins are fixed). Each assertion below would fail for one such permutation in a million.
LIMIT = chi2.isf(1e-6, (BLOCKS - 1) ** 2)


def dependence(one: np.ndarray, other: np.ndarray) -> float:
    """Chi-square of the table of two numberings of the same rows, each cut into blocks."""
    table = np.histogram2d(one, other, bins=BLOCKS)[0]
    expected = len(one) / BLOCKS**2
    return float(((table - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("size", [SIZE, 2**16])
def test_the_shuffle_is_global(size, seed):
    order = Mixture([size], seed)
    first, second = order.rows(0, size), order.rows(size, size)
    places = np.arange(size)
    assert dependence(places, first) < LIMIT  # where a row lies does not tell when it comes
    assert dependence(places % BLOCKS, first % BLOCKS) < LIMIT  # nor do its last digits
    when = np.argsort(first), np.argsort(second)
    assert dependence(*when) < LIMIT  # nor does when it came in the epoch before
    assert dependence(np.argsort(Mixture([size], seed + 1).rows(0, size)), when[0]) < LIMIT  # nor another seed's order
    # Neighbours stay neighbours with probability 2 / size each.
    together = int((np.abs(np.diff(first)) == 1).sum())
    assert together <= binom.isf(1e-6, size - 1, 2 / size)


def test_a_shuffle_in_a_window_would_be_noticed():
    chance = np.random.default_rng(0)
    windows = [start + chance.permutation(2000) for start in range(0, SIZE, 2000)]
    assert dependence(np.arange(SIZE), np.concatenate(windows)) > 100 * LIMIT


def test_small_orders_are_all_equally_likely():
    orders = Counter(tuple(Mixture([4], seed).rows(0, 4).tolist()) for seed in range(2400))
    assert len(orders) == 24
    assert sum((count - 100) ** 2 / 100 for count in orders.values()) < chi2.isf(1e-6, 23)


@pytest.mark.parametrize("weights", [[1, 1], [0.7, 0.3], [5, 1, 1e-3], [1, 2, 3, 4]])
def test_proportions_of_a_mixture(weights):
    sizes = [200, 50, 1000, 7][: len(weights)]
    order = Mixture(sizes, seed=2, weights=weights)
    ends = np.cumsum(sizes)
    rows = order.rows(0, 20_000)
    which = np.searchsorted(ends, rows, side="right")
    shares = np.array(weights) / sum(weights)
    for count in (1, 10, 777, 20_000):
        found = np.bincount(which[:count], minlength=len(sizes))
        # one off for each data set, and what is lost by counting in 2**20 shares
        assert np.all(np.abs(found - shares * count) <= len(sizes) + count * len(sizes) / 2**20)
    for number, size in enumerate(sizes):  # each has its own epochs
        mine = rows[which == number] - (ends[number] - size)
        for epoch in range(len(mine) // size):
            assert sorted(mine[epoch * size : (epoch + 1) * size]) == list(range(size))


@pytest.mark.parametrize("weights", [[1], [1, 0], [1, -1], [1, float("nan")], [1, float("inf")], [1, "2"], [1, True]])
def test_bad_weights(weights):
    with pytest.raises(UserError, match=r"^weights: "):
        Mixture([10, 10], 0, weights)

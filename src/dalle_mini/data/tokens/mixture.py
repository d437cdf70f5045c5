"""Which row stands where in a run: a global shuffle of every epoch, of one data set or of a weighted mixture.

Position p of a run is row p % batch_size of batch p // batch_size. The row there is a function of (sizes, weights,
seed, p) alone, so there is no iterator to save: any process finds any part of any batch, in any order.
"""

import math
from collections.abc import Sequence

import numpy as np

from dalle_mini.errors import UserError

_SHARES = 2**20  # weights become whole shares of this; a position times it stays within 63 bits for 2**43 positions
_ROUNDS = 8


class Mixture:
    """An endless order of the rows of one or several data sets, numbered through in the order that they are given.

    Args:
        sizes: rows of each data set.
        seed: of the shuffle.
        weights: how often a row comes from each data set, in any unit. None takes them all as one: every row of
            every data set comes exactly once an epoch. With weights each data set has epochs of its own, in each of
            which every row of it comes exactly once, and is shuffled anew for the next. Among the first n rows of the
            run there are `n * weight / sum(weights)` of it, give or take one for each data set of the mixture.
    """

    def __init__(self, sizes: Sequence[int], seed: int, weights: Sequence[float] | None = None):
        self._seed = seed
        self._shares: tuple[int, ...]
        self._sizes: tuple[int, ...]
        if weights is None:
            self._shares, self._sizes = (_SHARES,), (sum(sizes),)
        else:
            self._shares, self._sizes = _whole_shares(weights, len(sizes)), tuple(sizes)

    def rows(self, start: int, count: int) -> np.ndarray:
        """The rows at `count` positions from `start` on, int64 [count]."""
        taken = self._taken(np.arange(start, start + count + 1))
        rows, first = np.empty(count, np.int64), 0
        for part, (size, before) in enumerate(zip(self._sizes, taken, strict=True)):
            places = np.arange(before[0], before[-1])
            epochs, places = places // size, places % size
            for epoch in np.unique(epochs).tolist():
                these = epochs == epoch
                key = np.random.SeedSequence(self._seed, spawn_key=(part, epoch))
                places[these] = shuffled(places[these], size, key)
            rows[np.diff(before) > 0] = first + places
            first += size
        return rows

    def _taken(self, positions: np.ndarray) -> list[np.ndarray]:
        """How many of the rows ahead of each position are of each data set.

        One data set after the other takes its share, rounded up, of what those before it left over. So the counts add
        up to the position, and none is more than one off for each of those.
        """
        left, shares = positions.astype(np.int64), _SHARES
        counts = []
        for share in self._shares:
            rest = left * (shares - share) // shares
            counts.append(left - rest)
            left, shares = rest, shares - share
        return counts


def shuffled(places: np.ndarray, size: int, key: np.random.SeedSequence) -> np.ndarray:
    """The rows at some places of a permutation of `size` rows that is computed, not stored, int64 [n].

    A Feistel network (Luby and Rackoff 1988) permutes the next power of two; what falls outside goes through it again
    until it falls inside (cycle walking, Black and Rogaway 2002). Grain's `shuffle`, of the same kind, has four rounds
    of a lightweight cipher and neighbouring keys for neighbouring epochs: of 65,536 rows the orders of two epochs then
    depend on each other (chi-square p < 1e-100), and it takes ten times as long, a row at a time.
    """
    bits = max(2, (size - 1).bit_length())
    keys = key.generate_state(_ROUNDS, np.uint64)
    found = _feistel(places.astype(np.uint64), bits, keys)
    while (outside := found >= size).any():
        found[outside] = _feistel(found[outside], bits, keys)
    return found.astype(np.int64)


def _feistel(numbers: np.ndarray, bits: int, keys: np.ndarray) -> np.ndarray:
    """A permutation of the numbers of so many bits, uint64 [n]."""
    low_bits = bits // 2
    low, high = numbers & np.uint64(2**low_bits - 1), numbers >> np.uint64(low_bits)
    for number, key in enumerate(keys):
        if number % 2:
            low = low ^ (_mixed(high ^ key) >> np.uint64(64 - low_bits))
        else:
            high = high ^ (_mixed(low ^ key) >> np.uint64(64 - (bits - low_bits)))
    return high << np.uint64(low_bits) | low


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): every bit of the result depends on every bit."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def _whole_shares(weights: Sequence[float], number: int) -> tuple[int, ...]:
    """Weights as whole numbers, at least 1 each, that add up to `_SHARES`."""
    weights = list(weights)
    if len(weights) != number:
        raise UserError(f"weights: {len(weights)} of them for {number} data sets; give one for each")
    for weight in weights:
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
            raise UserError(f"weights: {weight!r} is not a number above 0; leave the data set out instead")
    exact = np.array(weights, np.float64) / max(weights)
    exact *= _SHARES / exact.sum()
    shares = np.maximum(np.floor(exact), 1).astype(int)
    shares[np.argmax(shares)] += _SHARES - shares.sum()
    return tuple(shares.tolist())

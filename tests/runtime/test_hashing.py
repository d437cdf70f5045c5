"""Hashes that decide shares: the same in every version, whatever the set's other members are."""

import hashlib

import numpy as np

from dalle_mini.runtime.hashing import hash_64, hash_64s, in_share, is_chosen, short_hash

NAMES = [f"cats/{number}" for number in range(2000)]


def test_a_name_has_the_same_hash_for_ever():
    assert hash_64("cats/tom") == 0x47DACF8FF4BF8880
    digest = hashlib.sha256(b"cats/tom").digest()
    assert hash_64s("cats/tom", 3) == [int.from_bytes(digest[at : at + 8], "big") for at in (0, 8, 16)]
    assert short_hash("cats/tom") == short_hash(b"cats/tom") == digest.hex()[:16]
    assert hash_64("\udce9") == int.from_bytes(hashlib.sha256(b"\xed\xb3\xa9").digest()[:8], "big")  # not UTF-8


def test_a_share_of_names_is_chosen_and_stays_in_larger_ones():
    chosen = {share: {name for name in NAMES if is_chosen(name, share)} for share in (0.0, 0.1, 0.5, 1.0)}
    assert not chosen[0.0] and chosen[1.0] == {*NAMES}
    assert 150 < len(chosen[0.1]) < 250 and chosen[0.1] < chosen[0.5]
    hashes = np.array([hash_64(name) for name in NAMES], np.uint64)
    assert {name for name, inside in zip(NAMES, in_share(hashes, 0.1), strict=True) if inside} == chosen[0.1]

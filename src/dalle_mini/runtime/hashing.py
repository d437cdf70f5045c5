"""Hashes that decide: short names for content, and shares of a set that depend on its members' names alone.

Everything here is SHA-256, so a decision is the same on every machine, in every process and in every version.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, overload

if TYPE_CHECKING:
    import numpy as np

BITS = 64


def short_hash(content: bytes | str) -> str:
    """The first 16 hexadecimal digits of a content's SHA-256. Text is hashed as UTF-8, with halves of characters."""
    return _digest(content).hex()[:16]


def hash_64(name: str) -> int:
    """The first 64 bits of a name's SHA-256."""
    return hash_64s(name, 1)[0]


def hash_64s(name: str, count: int) -> list[int]:
    """Up to four independent numbers of 64 bits that a name decides."""
    digest, size = _digest(name), BITS // 8
    return [int.from_bytes(digest[size * i : size * (i + 1)], "big") for i in range(count)]


def is_chosen(name: str, share: float) -> bool:
    """Whether a name is among the `share` (from 0 to 1) of all names that its hash singles out.

    A name that is chosen for a share is chosen for every larger one. So a set that grows, or loses members, keeps its
    division.
    """
    return in_share(hash_64(name), share)


@overload
def in_share(hashes: int, share: float) -> bool: ...
@overload
def in_share(hashes: np.ndarray, share: float) -> np.ndarray: ...
def in_share(hashes, share):
    """`is_chosen` of names that are hashed already: one `hash_64`, or uint64 [n] of them -> bool [n]."""
    return hashes < share * 2.0**BITS


def _digest(content: bytes | str) -> bytes:
    if isinstance(content, str):
        content = content.encode("utf-8", "surrogatepass")
    return hashlib.sha256(content).digest()

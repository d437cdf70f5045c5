"""Images that a dataset holds more than once: the same pixels, or nearly the same look."""

import hashlib
from itertools import combinations, pairwise

import numpy as np
from PIL import Image

from dalle_mini.errors import UserError
from dalle_mini.runtime.installing import install_line

BITS = 64
HASHED_SIDE = 256  # pixels; a larger picture is first halved, thirded ... by averaging, which is quick


def image_hashes(image: Image.Image | np.ndarray) -> tuple[bytes, int]:
    """(exact, perceptual) hashes of a decoded RGB picture, or uint8 [H, W, 3]; of 16 bytes and 64 bits.

    The first is the same for the same sides and pixels, however the file was packed. The second is pHash
    (https://www.hackerfactor.com/blog/index.php?/archives/432-Looks-Like-It.html), made by ImageHash of 8 x 8 low
    frequencies of the gray picture: resizing, compressing and small retouches change few of its bits. It knows no
    colours, and pictures without any structure, such as plain areas, are all alike to it.
    """
    try:
        import imagehash
    except ImportError:
        raise UserError(f"finding duplicates needs ImageHash: {install_line('data')}") from None

    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    exact = hashlib.blake2b(repr(image.size).encode(), digest_size=16)
    exact.update(image.tobytes())
    gray = image.convert("L")
    factor = min(gray.size) // HASHED_SIDE
    bits = imagehash.phash(gray.reduce(factor) if factor > 1 else gray).hash
    return exact.digest(), int.from_bytes(np.packbits(bits).tobytes(), "big")


def duplicates(hashes: np.ndarray) -> np.ndarray:
    """Which example each is the same as: int64 [n], the index of the first with its hash, or -1 for the first itself.

    `hashes` is any array [n] that sorts: uint64, or `S16` of `image_hashes`' exact ones.
    """
    values = np.asarray(hashes)
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    first = first[inverse.reshape(-1)]
    return np.where(first == np.arange(len(values)), -1, first)


def near_duplicates(hashes: np.ndarray, distance: int) -> np.ndarray:
    """Which earlier example each looks like: int64 [n], or -1 for those that are kept.

    In the order of `hashes` (uint64 [n]), an example is kept unless one that is kept differs from it in at most
    `distance` bits; the earliest such is named. So the result depends on the order alone, and two that are kept are
    always farther apart. Exact: of hashes cut into some more blocks than there may be differing bits, several blocks
    must agree, and only those that agree in some such choice of blocks are compared (Manku et al. 2007, "Detecting
    near-duplicates for web crawling"). Memory is some 100 bytes a hash; time grows a little faster than n where hashes
    are spread out, and with the square of the number of those that are much alike but not equal.
    """
    hashes = np.asarray(hashes, np.uint64)
    original = duplicates(hashes)
    first = np.flatnonzero(original < 0)  # of equal ones only the first can be kept
    found = _kept_neighbours(hashes[first], distance)
    original[first] = np.where(found < 0, -1, first[found])
    # A copy of one that is dropped is as near to the one that is kept.
    copies = np.flatnonzero((original >= 0) & ~np.isin(np.arange(len(hashes)), first))
    into = original[original[copies]]
    original[copies] = np.where(into < 0, original[copies], into)
    return original


def _kept_neighbours(hashes: np.ndarray, distance: int) -> np.ndarray:
    """`near_duplicates` of hashes that all differ."""
    found = np.full(len(hashes), -1, np.int64)
    if distance < 1 or len(hashes) < 2:
        return found
    pairs = np.unique(np.concatenate([_pairs(hashes, mask, distance) for mask in _masks(len(hashes), distance)]))
    for pair in pairs.tolist():  # by the later one, then the earlier
        one, other = divmod(pair, len(hashes))
        if found[one] < 0 and found[other] < 0:
            found[one] = other
    return found


def _masks(count: int, distance: int) -> list[np.uint64]:
    """Choices of bits, one of which any two hashes within the distance agree in: enough bits to tell `count` apart."""
    agreeing = 1
    while agreeing < 3 and BITS * agreeing / (distance + agreeing) < np.log2(count):
        agreeing += 1
    edges = [BITS * block // (distance + agreeing) for block in range(distance + agreeing + 1)]
    blocks = [(1 << stop) - (1 << start) for start, stop in pairwise(edges)]
    return [np.uint64(sum(chosen)) for chosen in combinations(blocks, agreeing)]


def _pairs(hashes: np.ndarray, mask: np.uint64, distance: int) -> np.ndarray:
    """All that agree in the masked bits and are within the distance: later index times n plus earlier index."""
    masked = hashes & mask
    order = np.argsort(masked, kind="stable")  # indices rise within a group
    masked, values = masked[order], hashes[order]
    start = np.arange(len(order))
    pairs = [np.empty(0, np.int64)]
    step = 0
    while True:  # the neighbours at 1, 2, 3 ... places within a group
        step += 1
        start = start[start + step < len(order)]
        start = start[masked[start] == masked[start + step]]
        if not len(start):
            return np.concatenate(pairs)
        near = start[np.bitwise_count(values[start] ^ values[start + step]) <= distance]
        pairs.append(order[near + step] * len(hashes) + order[near])

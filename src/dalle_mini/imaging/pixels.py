"""Resizing as the published models' training images were resized, masks, and float <-> uint8."""

import numpy as np
from PIL import Image, ImageOps

from dalle_mini.imaging.modes import as_image, to_rgb

LONGEST_STRIP = 16  # sides' ratio; what lies farther out never survives a centre crop


def resize_and_crop(image: Image.Image | np.ndarray, size: int) -> np.ndarray:
    """Shortest side to `size` (Lanczos), then the central square: uint8 [size, size, 3].

    The training images of the published VQGAN and of DALL·E mini went through this preprocessing.
    """
    image = resize_shortest(as_image(image), size, Image.Resampling.LANCZOS)
    left, top = (round((side - size) / 2) for side in image.size)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def white_cells(mask: Image.Image, size: int, cells: int) -> np.ndarray:
    """Which of `cells` x `cells` squares of what `resize_and_crop` shows hold any white pixel of a mask: bool.

    The mask itself is looked at, not a resized one, in which a thin line would be gray. Transparent pixels are black.
    """
    white = np.asarray(to_rgb(mask, "black").convert("L")) >= 128
    for start, stop in reversed(_central_square(mask.size, size)):  # rows to the second axis, then columns
        edges = np.linspace(start, stop, cells + 1)
        firsts, lasts = np.floor(edges[:-1] + 1e-6).astype(int), np.ceil(edges[1:] - 1e-6).astype(int)
        white = np.stack([white[first:last].any(axis=0) for first, last in zip(firsts, lasts, strict=True)], axis=1)
    return white


def _central_square(sides: tuple[int, int], size: int) -> list[tuple[float, float]]:
    """The square of an image of these sides that `resize_and_crop` shows: (start, stop) of each, in its pixels."""
    border = [max(0, side - LONGEST_STRIP * min(sides)) // 2 for side in sides]
    inner = [side - 2 * cut for side, cut in zip(sides, border, strict=True)]
    square = []
    for cut, side in zip(border, inner, strict=True):
        resized = int(size * side / min(inner))
        start = round((resized - size) / 2)
        square.append((cut + start * side / resized, cut + (start + size) * side / resized))
    return square


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Float images in [0, 1] of any shape -> uint8, clipped, and truncated (not rounded) as the original does."""
    return (np.clip(np.asarray(images, np.float32), 0, 1) * 255).astype(np.uint8)


def resize_shortest(image: Image.Image, size: int, resample: Image.Resampling) -> Image.Image:
    width, height = image.size
    # A strip of 1 x 60 million pixels passes the decode limit, but resized whole it would not fit in memory.
    strip = LONGEST_STRIP * min(width, height)
    if max(width, height) > strip:
        image = ImageOps.crop(image, (max(0, width - strip) // 2, max(0, height - strip) // 2))
        width, height = image.size
    if width <= height:
        return image.resize((size, int(size * height / width)), resample)
    return image.resize((int(size * width / height), size), resample)

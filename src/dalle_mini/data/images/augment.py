"""Changes to training images that keep a network from learning them by heart.

Everything works on uint8 [n, S, S, 3] and draws from the generator that it is given: equal generators, equal pictures.
"""

import math

import numpy as np
from PIL import Image

ASPECTS = (3 / 4, 4 / 3)  # of crops, width to height
TRIES = 10  # for a crop that fits
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # Rec. 601


def random_resized_crops(images: np.ndarray, least: float, rng: np.random.Generator) -> np.ndarray:
    """A part of each picture, resized (bicubically) to the whole's size.

    Its area is from the share `least` to all of the picture's, its sides' ratio within `ASPECTS` (Szegedy et al. 2015).
    """
    side = images.shape[1]
    crops = np.empty_like(images)
    for crop, image in zip(crops, images, strict=True):
        width, height = _box(side, least, rng)
        left, top = (rng.random() * (side - length) for length in (width, height))
        box = (left, top, left + width, top + height)
        crop[:] = Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC, box=box)
    return crops


def _box(side: int, least: float, rng: np.random.Generator) -> tuple[float, float]:
    low, high = map(math.log, ASPECTS)
    for _ in range(TRIES):
        area = rng.uniform(least, 1)
        aspect = math.exp(rng.uniform(low, high))
        width, height = side * math.sqrt(area * aspect), side * math.sqrt(area / aspect)
        if width <= side and height <= side:
            return width, height
    return side, side


def flipped(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Half of the pictures mirrored."""
    return np.where(rng.random((len(images), 1, 1, 1)) < 0.5, images[:, :, ::-1], images)


def colour_jitter(images: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Brightness, contrast and saturation of each picture times a factor from 1 - strength to 1 + strength.

    In this order. Hues stay: captions name colours.
    """
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, (3, len(images), 1, 1, 1)).astype(
        np.float32
    )
    pixels = images * brightness
    mean = (pixels @ LUMA).mean(axis=(1, 2))[:, None, None, None]
    pixels = mean + contrast * (pixels - mean)
    grey = (pixels @ LUMA)[..., None]
    return _as_uint8(grey + saturation * (pixels - grey))


def noisy(images: np.ndarray, deviation: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise of a standard deviation, of pixels in [0, 1]."""
    return _as_uint8(images + rng.standard_normal(images.shape, np.float32) * (255 * deviation))


def damaged(images: np.ndarray, most: float, cell: int, rng: np.random.Generator) -> np.ndarray:
    """Copies in which some cells are wrong, uint8 [n, S, S, 3]: as a decoder errs, whose wrong tokens tear shapes.

    In half of the copies a wrong cell is one of its own neighbours', at most two cells away; in the others it is the
    same place of another picture. At least one cell of each and about the share `most` at most are wrong.
    """
    count, side, _, channels = images.shape
    grid = side // cell
    cells = images.reshape(count, grid, cell, grid, cell, channels).swapaxes(2, 3)
    image, row, column = np.indices((count, grid, grid))
    near = np.broadcast_to(rng.random((count, 1, 1)) < 0.5, image.shape)
    shift = rng.integers(-2, 3, (2, *image.shape)) * near
    source = (
        np.where(near, image, rng.integers(0, count, image.shape)),
        np.clip(row + shift[0], 0, grid - 1),
        np.clip(column + shift[1], 0, grid - 1),
    )
    wrong = rng.random(image.shape) < rng.uniform(0, most, (count, 1, 1))
    wrong[np.arange(count), *rng.integers(0, grid, (2, count))] = True
    cells = np.where(wrong[..., None, None, None], cells[source], cells)
    return cells.swapaxes(2, 3).reshape(images.shape)


def _as_uint8(pixels: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)

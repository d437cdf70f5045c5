"""The pixels that CLIP looks at, as a published `preprocessor_config.json` asks for them."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from dalle_mini.errors import UserError, shown
from dalle_mini.imaging.modes import as_image
from dalle_mini.imaging.pixels import resize_shortest
from dalle_mini.runtime.limits import exceeded, limits


def clip_pixels(images: Iterable[Image.Image | np.ndarray], preprocessor_config: Mapping[str, Any]) -> np.ndarray:
    """CLIP's input: float32 [n, size, size, 3], resized, cropped and normalised.

    `images` are PIL images or uint8 arrays [height, width, 3] (or one array [n, height, width, 3]), of any sizes;
    `preprocessor_config` is the content of a published `preprocessor_config.json`, old or new. Shortest edge to
    `size`, centre crop to `crop_size`, times `rescale_factor`, minus `image_mean`, over `image_std`.

    Raises:
        UserError: the config lacks one of these or turns a step off.
    """
    factor, mean, std = clip_normalisation(preprocessor_config)
    squares = clip_squares(images, preprocessor_config)
    pixels = np.empty(squares.shape, np.float32)
    for row, square in zip(pixels, squares, strict=True):
        row[:] = ((square * factor).astype(np.float32) - mean) / std
    return pixels


def clip_squares(images: Iterable[Image.Image | np.ndarray], preprocessor_config: Mapping[str, Any]) -> np.ndarray:
    """The images that `clip_pixels` normalises: uint8 [n, size, size, 3], resized and cropped; otherwise as there."""
    for step in ("do_resize", "do_center_crop", "do_rescale", "do_normalize"):
        if not preprocessor_config.get(step, True):
            raise UserError(f"preprocessor_config.json: {step}=false is not supported")
    shortest, crop = clip_sizes(preprocessor_config)
    try:
        resample = Image.Resampling(preprocessor_config.get("resample", Image.Resampling.BICUBIC))
    except ValueError as error:
        raise UserError(f"preprocessor_config.json: resample is unusable ({error})") from error
    squares = np.empty((len(images := list(images)), crop, crop, 3), np.uint8)
    for square, image in zip(squares, images, strict=True):
        image = resize_shortest(as_image(image), shortest, resample)
        left, top = ((side - crop) // 2 for side in image.size)
        square[:] = np.asarray(image.crop((left, top, left + crop, top + crop)))
    return squares


def clip_normalisation(preprocessor_config: Mapping[str, Any]) -> tuple[float, np.ndarray, np.ndarray]:
    """(factor, mean [3], std [3]): pixels 0 to 255 become (pixel * factor - mean) / std.

    Raises:
        UserError: a `preprocessor_config.json` lacks one of them.
    """
    config = preprocessor_config
    try:
        mean, std = (np.asarray(config[name], np.float32).reshape(3) for name in ("image_mean", "image_std"))
        return float(config.get("rescale_factor", 1 / 255)), mean, std
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"preprocessor_config.json: image_mean, image_std or rescale_factor is unusable ({error})"
        ) from error


def clip_sizes(preprocessor_config: Mapping[str, Any]) -> tuple[int, int]:
    """(shortest edge, side of the crop) of a `preprocessor_config.json`, in pixels; UserError if they make no sense."""

    def side(name: str, *keys: str) -> int:
        value = preprocessor_config.get(name)
        sides = {value.get(key) for key in keys} if isinstance(value, Mapping) else {value}
        if len(sides) != 1 or not isinstance(number := sides.pop(), int) or number < 1:
            raise UserError(f"preprocessor_config.json: {name}={shown(value)} is not a supported size")
        if number > limits().preprocessing_side:
            raise UserError(
                f"preprocessor_config.json: {name}={shown(value)} is more than {limits().preprocessing_side} pixels "
                f"({exceeded('preprocessing_side')})"
            )
        return number

    shortest, crop = side("size", "shortest_edge"), side("crop_size", "height", "width")
    if crop > shortest:
        raise UserError(f"preprocessor_config.json: crop_size {crop} is larger than size {shortest}")
    return shortest, crop

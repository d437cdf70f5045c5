"""Images of every mode that Pillow reads -> RGB of 8 bits, a band at a time where the image is large."""

from collections.abc import Callable, Iterator
from typing import cast

import numpy as np
from PIL import Image, ImageOps

from dalle_mini.errors import UserError
from dalle_mini.imaging import problems
from dalle_mini.imaging.problems import MESSAGES, BadImage

BAND = 1 << 22  # pixels that are converted at once, where a copy of all would take gigabytes


def as_image(image: Image.Image | np.ndarray) -> Image.Image:
    """A PIL image of any mode, or uint8 [H, W, 3], as a PIL image of mode RGB.

    Raises:
        UserError: its numbers have no range (`problems.NO_RANGE`).
        ValueError: the array has another dtype or shape.
    """
    if isinstance(image, Image.Image):
        try:
            return to_rgb(image)
        except BadImage as bad:
            raise UserError(MESSAGES[bad.reason]) from None
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"an image must be uint8 [height, width, 3], got {image.dtype} {list(image.shape)}")
    return Image.fromarray(image)


def _bands(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    """Boxes of whole rows that make up the image."""
    rows = max(1, BAND // image.width)
    for top in range(0, image.height, rows):
        yield 0, top, image.width, min(top + rows, image.height)


def _converted(image: Image.Image, mode: str, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """`convert` of one band after the other, so that what lies between is never as large as the image."""
    if image.width * image.height <= BAND:
        return convert(image)
    result = Image.new(mode, image.size)
    for box in _bands(image):
        result.paste(convert(image.crop(box)), box)
    return result


def eight_bits(image: Image.Image) -> Image.Image:
    """Scale the numbers of an image that are larger than bytes to bytes; Pillow would cut them off at 255."""
    if not image.mode.startswith(("I", "F")):
        return image
    tags = getattr(image, "tag_v2", {})
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format != "TIFF"):
        bits = int(tags.get(258, (16,))[0])  # 12 are numbers up to 4095
        clear = image.info.get("transparency")

        def convert(band: Image.Image) -> Image.Image:
            numbers = np.asarray(band)
            gray = Image.fromarray((np.clip(numbers, 0, (1 << bits) - 1) >> (bits - 8)).astype(np.uint8))
            if isinstance(clear, int):
                gray.putalpha(Image.fromarray(np.where(numbers == clear, 0, 255).astype(np.uint8)))
            return gray

        gray = _converted(image, "LA" if isinstance(clear, int) else "L", convert)
    else:
        gray = _by_range(image)
    return ImageOps.invert(gray) if tags.get(262) == 0 else gray  # TIFF's numbers of which 0 is white


def _by_range(image: Image.Image) -> Image.Image:
    """Make the least number black and the greatest white: floats and 32-bit numbers tell no other range."""
    least, most = np.inf, -np.inf
    for box in _bands(image):
        numbers = np.asarray(image.crop(box))
        numbers = numbers[np.isfinite(numbers)]
        if numbers.size:
            least, most = min(least, float(numbers.min())), max(most, float(numbers.max()))
    if not least < most:
        raise BadImage(problems.NO_RANGE)

    def convert(band: Image.Image) -> Image.Image:
        numbers = np.nan_to_num(np.asarray(band, np.float64), nan=least, posinf=most, neginf=least)
        return Image.fromarray(np.rint((numbers - least) * (255 / (most - least))).astype(np.uint8))

    return _converted(image, "L", convert)


def to_rgb(image: Image.Image, background: str = "white") -> Image.Image:
    """An image of any mode in RGB, on `background` where it is transparent. Raises BadImage for `NO_RANGE`."""
    image = eight_bits(image)
    if image.mode == "RGB" and not image.has_transparency_data:
        return image  # Pillow would make a copy of it
    if image.mode == "LAB":
        return _lab_to_rgb(image)

    def convert(band: Image.Image) -> Image.Image:
        if band.has_transparency_data:
            if band.mode == "La":
                band = band.convert("LA")
            band = band.convert("RGBA")
            band = Image.alpha_composite(Image.new("RGBA", band.size, background), band)
        return band.convert("RGB")

    return _converted(image, "RGB", convert)


def _lab_to_rgb(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    made = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    return cast(Image.Image, made)  # None is for inPlace alone

"""A stranger's image file -> an upright PIL image of mode RGB, within limits."""

import errno
import functools
import io
import os
import warnings
from collections.abc import Callable

import numpy as np
from PIL import Image

from dalle_mini.errors import UserError
from dalle_mini.imaging import problems
from dalle_mini.imaging.inspection import TooMuch, examine
from dalle_mini.imaging.modes import as_image, eight_bits, to_rgb
from dalle_mini.imaging.problems import MESSAGES, BadImage
from dalle_mini.runtime import files
from dalle_mini.runtime.limits import exceeded, limits

TURNS = {  # EXIF's orientations: how to turn an image so that it stands upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
LYING = (5, 6, 7, 8)  # of an image whose width is shown as its height


def load_image(
    path: str | os.PathLike[str], max_pixels: int | None = None, *, background: str = "white"
) -> Image.Image:
    """Decode a stranger's image file into a PIL image of mode RGB.

    The camera's rotation is applied, transparency is laid on `background`, and an animation gives its first frame.

    Args:
        max_pixels: the most that it may have, by default the limit `pixels`. Its header is asked before anything is
            decoded.

    Raises:
        UserError: the file, which is named, cannot be read, is no image of a common format, is damaged or cut short,
            would take too long, or has too many pixels.
    """
    try:
        data = files.read_bytes(path, limits().image_bytes)
        return _decoded(data, None, max_pixels, background=background)[0]
    except OSError as error:
        way_out = f" ({exceeded('image_bytes')})" if error.errno == errno.EFBIG else ""
        raise UserError(f"{path}: cannot read the image: {files.reason(error)}{way_out}") from error
    except ValueError as error:  # a name with a zero byte
        raise UserError(f"{path!r}: cannot read the image: {error}") from error
    except BadImage as bad:
        raise UserError(f"{path}: {MESSAGES.get(bad.reason, bad.reason)}{bad.detail and ': '}{bad.detail}") from bad


def decode_image(
    image: bytes | np.ndarray,
    max_pixels: int | None = None,
    problem: Callable[[int, int], str | None] = lambda width, height: None,
) -> Image.Image:
    """Decode an example's image, a file's bytes or uint8 [H, W, 3], into a PIL image of mode RGB, as `load_image`.

    Args:
        max_pixels: as of `load_image`.
        problem: is asked with width and height in pixels before anything is decoded (the camera's rotation may swap
            them still), and gives a reason not to go on, or None.

    Raises:
        BadImage: for that reason, for too many pixels, and for bytes that are no image, are damaged or take too long.
        MemoryError: the machine lacks memory. Nothing else is ever raised.
    """
    return decode_scaled(image, None, max_pixels, problem)[0]


def decode_scaled(
    image: bytes | np.ndarray,
    needed: int | None,
    max_pixels: int | None = None,
    problem: Callable[[int, int], str | None] = lambda width, height: None,
) -> tuple[Image.Image, tuple[int, int]]:
    """Decode as `decode_image`, and tell width and height of the image as it is shown, before it was made smaller.

    With `needed` a JPEG file is decoded at 1/2, 1/4 or 1/8 of its size where no side gets less than so many pixels:
    libjpeg leaves out the frequencies that only the full size shows, which takes a fraction of the time.
    """
    if isinstance(image, np.ndarray):
        height, width = image.shape[:2]
        _check_sides(width, height, max_pixels, problem)
        return as_image(image), (width, height)
    return _decoded(image, needed, max_pixels, problem)


def decode_rgba(image: bytes) -> Image.Image:
    """Decode a file's bytes into a PIL image of mode RGBA, as `decode_image`, with its transparency."""
    return _decoded(image, None, None, background=None)[0]


def _decoded(
    data: bytes,
    needed: int | None,
    max_pixels: int | None,
    problem: Callable[[int, int], str | None] = lambda width, height: None,
    background: str | None = "white",
) -> tuple[Image.Image, tuple[int, int]]:
    """Pillow opens files here and nowhere else."""
    if not data:
        raise BadImage(problems.EMPTY_FILE)
    try:
        file = examine(data)
        if file is None:
            raise BadImage(problems.NOT_AN_IMAGE)
        check = functools.partial(_check_sides, max_pixels=max_pixels, problem=problem)
        if file.sides is not None:
            check(*file.sides)
        if (most := max_pixels or limits().pixels) > (Image.MAX_IMAGE_PIXELS or most):  # Pillow's own limit
            Image.MAX_IMAGE_PIXELS = most
        with warnings.catch_warnings():  # of many pixels, and of odd metadata
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(file.data), formats=(file.format,)) as image:
                width, height = image.size
                check(width, height)
                if needed is not None:
                    image.draft(None, (needed, needed))
                image.load()
                upright = eight_bits(image)
                if file.orientation in TURNS:
                    upright = upright.transpose(TURNS[file.orientation])
                shown = upright.convert("RGBA") if background is None else to_rgb(upright, background)
                return shown, (height, width) if file.orientation in LYING else (width, height)
    except (BadImage, MemoryError):  # the image is within its bounds: it is the machine that lacks memory
        raise
    except TooMuch as error:
        raise BadImage(problems.TOO_MUCH, str(error)) from None
    except Image.DecompressionBombError:
        raise BadImage(problems.TOO_MANY_PIXELS) from None
    except Image.UnidentifiedImageError:
        assert file is not None  # Pillow was asked
        raise BadImage(problems.UNREAD_NUMBERS if file.numbers else problems.NOT_AN_IMAGE, file.numbers) from None
    except Exception as error:  # on damaged data Pillow's decoders raise nearly every type there is
        raise BadImage(problems.IMAGE_DAMAGED, files.reason(error)) from error


def _check_sides(width: int, height: int, max_pixels: int | None, problem: Callable[[int, int], str | None]) -> None:
    most, longest = max_pixels or limits().pixels, limits().image_side
    if width * height > most:
        way_out = f" ({exceeded('pixels')})" if max_pixels is None else ""
        raise BadImage(problems.TOO_MANY_PIXELS, f"{width} x {height} pixels, more than {most}{way_out}")
    if max(width, height) > longest:
        raise BadImage(problems.TOO_MANY_PIXELS, f"{width} x {height} pixels ({exceeded('image_side')})")
    if reason := problem(width, height):
        raise BadImage(reason)

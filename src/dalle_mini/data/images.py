"""Pictures in and out: decoding with limits, the two published ways of resizing, and float <-> uint8."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

from dalle_mini.data import reasons
from dalle_mini.errors import UserError, shown
from dalle_mini.runtime.limits import exceeded, limits

MAX_PIXELS = 2**26  # 67 megapixels: 200 MB once decoded
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
LYING = (5, 6, 7, 8)  # EXIF's orientations of a picture whose width is shown as its height
LONGEST_STRIP = 16  # sides' ratio; what lies farther out never survives a centre crop


def load_picture(
    path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS, *, background: str = "white"
) -> Image.Image:
    """Decode a stranger's picture into a PIL image of mode RGB.

    The camera's rotation is applied, transparency is laid on `background`, and of an animation the first frame is
    taken. Raises UserError, naming the file, if it cannot be read, is no picture of a common format, is damaged or cut
    short, or has more than `max_pixels` pixels (judged from its header, before anything is decoded).
    """
    try:
        with _opened(path) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise UserError(
                    f"{path}: the picture has {width} x {height} pixels, more than {max_pixels}; scale it down"
                )
            return _to_rgb(_upright(image), background)
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(f"{path}: the picture has more than {max_pixels} pixels; scale it down") from error
    except Image.UnidentifiedImageError as error:
        raise UserError(f"{path}: not a picture that can be read (formats: {', '.join(FORMATS)})") from error
    except Exception as error:  # on damaged data Pillow's decoders raise nearly every type there is
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(f"{path}: cannot read the picture: {reason}") from error


class BadPicture(Exception):
    """A picture of a pile that is not used: `reason` is one of `reasons.py`."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


def decode_picture(
    picture: bytes | np.ndarray,
    max_pixels: int = MAX_PIXELS,
    problem: Callable[[int, int], str | None] = lambda width, height: None,
) -> Image.Image:
    """Decode an example's picture, a file's bytes or uint8 [H, W, 3], into a PIL image of mode RGB, as `load_picture`.

    `problem` is asked with the sides in pixels before anything is decoded (the camera's rotation may swap them still)
    and gives a reason not to go on. Raises BadPicture for that reason, for more than `max_pixels` pixels, and for
    bytes that are no picture or a damaged one; never anything else.
    """
    return decode_scaled(picture, None, max_pixels, problem)[0]


def decode_scaled(
    picture: bytes | np.ndarray,
    needed: int | None,
    max_pixels: int = MAX_PIXELS,
    problem: Callable[[int, int], str | None] = lambda width, height: None,
) -> tuple[Image.Image, tuple[int, int]]:
    """As `decode_picture`, and width and height of the picture as it is shown, before anything made it smaller.

    With `needed` a JPEG file is decoded at 1/2, 1/4 or 1/8 of its size where no side gets less than so many pixels:
    libjpeg leaves out the frequencies that only the full size shows, which takes a fraction of the time.
    """
    if isinstance(picture, np.ndarray):
        height, width = picture.shape[:2]
        if reason := _too_many(width, height, max_pixels) or problem(width, height):
            raise BadPicture(reason)
        return _as_image(picture), (width, height)
    if not picture:
        raise BadPicture(reasons.EMPTY_FILE)
    try:
        with warnings.catch_warnings():  # of odd metadata Pillow warns, once a picture
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(picture), formats=FORMATS) as image:
                width, height = image.size
                if reason := _too_many(width, height, max_pixels) or problem(width, height):
                    raise BadPicture(reason)
                if needed is not None:
                    image.draft(None, (needed, needed))
                upright = _upright(image)
                sides = (height, width) if _orientation(image) in LYING else (width, height)
                return _to_rgb(upright), sides
    except BadPicture:
        raise
    except Image.DecompressionBombError:
        raise BadPicture(reasons.TOO_MANY_PIXELS) from None
    except Image.UnidentifiedImageError:
        raise BadPicture(reasons.NOT_A_PICTURE) from None
    except Exception as error:  # on damaged data Pillow's decoders raise nearly every type there is
        raise BadPicture(reasons.PICTURE_DAMAGED) from error


def _too_many(width: int, height: int, max_pixels: int) -> str | None:
    return reasons.TOO_MANY_PIXELS if width * height > max_pixels else None


def _opened(path: str | os.PathLike[str]) -> Image.Image:
    with warnings.catch_warnings():  # of many pixels Pillow only warns; the caller has a limit of its own
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(path, formats=FORMATS)


def resize_and_crop(image: Image.Image | np.ndarray, size: int) -> np.ndarray:
    """Shortest side to `size` (Lanczos), then the central square: uint8 [size, size, 3].

    The preprocessing that the published VQGAN's and DALL·E mini's training pictures went through.
    """
    image = _resize_shortest(_as_image(image), size, Image.Resampling.LANCZOS)
    left, top = (round((side - size) / 2) for side in image.size)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def white_cells(mask: Image.Image, size: int, cells: int) -> np.ndarray:
    """Which of `cells` x `cells` squares of what `resize_and_crop` shows hold any white pixel of a mask: bool.

    The mask itself is looked at, not a resized one, in which a thin line would be gray. What is transparent is black.
    """
    white = np.asarray(_to_rgb(mask, "black").convert("L")) >= 128
    for start, stop in reversed(_central_square(mask.size, size)):  # rows to the second axis, then columns
        edges = np.linspace(start, stop, cells + 1)
        firsts, lasts = np.floor(edges[:-1] + 1e-6).astype(int), np.ceil(edges[1:] - 1e-6).astype(int)
        white = np.stack([white[first:last].any(axis=0) for first, last in zip(firsts, lasts, strict=True)], axis=1)
    return white


def _central_square(sides: tuple[int, int], size: int) -> list[tuple[float, float]]:
    """What `resize_and_crop` shows of a picture of these sides: (start, stop) of each, in its pixels."""
    border = [max(0, side - LONGEST_STRIP * min(sides)) // 2 for side in sides]
    inner = [side - 2 * cut for side, cut in zip(sides, border, strict=True)]
    square = []
    for cut, side in zip(border, inner, strict=True):
        resized = int(size * side / min(inner))
        start = round((resized - size) / 2)
        square.append((cut + start * side / resized, cut + (start + size) * side / resized))
    return square


def clip_pixels(images: Iterable[Image.Image | np.ndarray], preprocessor_config: Mapping[str, Any]) -> np.ndarray:
    """What CLIP looks at: float32 [n, size, size, 3], resized, cropped and normalised.

    `images` are PIL images or uint8 arrays [height, width, 3] (or one array [n, height, width, 3]), of any sizes;
    `preprocessor_config` is the content of a published `preprocessor_config.json`, old or new. Shortest edge to
    `size`, centre crop to `crop_size`, times `rescale_factor`, minus `image_mean`, over `image_std`.
    Raises UserError where the config lacks one of these or turns a step off.
    """
    factor, mean, std = clip_normalisation(preprocessor_config)
    squares = clip_squares(images, preprocessor_config)
    pixels = np.empty(squares.shape, np.float32)
    for row, square in zip(pixels, squares, strict=True):
        row[:] = ((square * factor).astype(np.float32) - mean) / std
    return pixels


def clip_squares(images: Iterable[Image.Image | np.ndarray], preprocessor_config: Mapping[str, Any]) -> np.ndarray:
    """What `clip_pixels` normalises: uint8 [n, size, size, 3], resized and cropped; arguments and errors as there."""
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
        image = _resize_shortest(_as_image(image), shortest, resample)
        left, top = ((side - crop) // 2 for side in image.size)
        square[:] = np.asarray(image.crop((left, top, left + crop, top + crop)))
    return squares


def clip_normalisation(preprocessor_config: Mapping[str, Any]) -> tuple[float, np.ndarray, np.ndarray]:
    """(factor, mean [3], std [3]): pixels 0 to 255 become (pixel * factor - mean) / std.

    Raises UserError where a `preprocessor_config.json` lacks one of them.
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


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Float pictures in [0, 1] of any shape -> uint8, clipped, and truncated (not rounded) as the original does."""
    return (np.clip(np.asarray(images, np.float32), 0, 1) * 255).astype(np.uint8)


def _as_image(image: Image.Image | np.ndarray) -> Image.Image:
    if isinstance(image, Image.Image):
        return _to_rgb(image)
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"a picture must be uint8 [height, width, 3], got {image.dtype} {list(image.shape)}")
    return Image.fromarray(image)


def _upright(image: Image.Image) -> Image.Image:
    """The picture as the camera was held: decoded, and turned where its EXIF says so. Others are not copied."""
    image.load()
    return image if _orientation(image) == 1 else ImageOps.exif_transpose(image)


def _orientation(image: Image.Image) -> int:
    return image.getexif().get(ExifTags.Base.Orientation, 1)


def _to_rgb(image: Image.Image, background: str = "white") -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits, under either name: Pillow's own conversion saturates instead of scaling
        image = Image.fromarray((np.clip(np.asarray(image), 0, 2**16 - 1) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    return image if image.mode == "RGB" else image.convert("RGB")  # Pillow would make a copy of it


def _resize_shortest(image: Image.Image, size: int, resample: Image.Resampling) -> Image.Image:
    width, height = image.size
    # A strip of 1 x 60 million pixels passes the decode limit, but resized whole it would not fit in memory.
    strip = LONGEST_STRIP * min(width, height)
    if max(width, height) > strip:
        image = ImageOps.crop(image, (max(0, width - strip) // 2, max(0, height - strip) // 2))
        width, height = image.size
    if width <= height:
        return image.resize((size, int(size * height / width)), resample)
    return image.resize((int(size * width / height), size), resample)

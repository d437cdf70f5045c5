"""Pictures in and out: decoding with limits, the two published ways of resizing, and float <-> uint8."""

from __future__ import annotations

import errno
import functools
import io
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from dalle_mini.errors import UserError, shown
from dalle_mini.imaging import problems
from dalle_mini.imaging.inspection import TooMuch, examine
from dalle_mini.runtime import files
from dalle_mini.runtime.limits import exceeded, limits

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
TURNS = {  # EXIF's orientations: how to turn a picture so that it stands upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
LYING = (5, 6, 7, 8)  # of a picture whose width is shown as its height
LONGEST_STRIP = 16  # sides' ratio; what lies farther out never survives a centre crop
BAND = 1 << 22  # pixels that are converted at once, where a copy of all would take gigabytes


def load_picture(
    path: str | os.PathLike[str], max_pixels: int | None = None, *, background: str = "white"
) -> Image.Image:
    """Decode a stranger's picture into a PIL image of mode RGB.

    The camera's rotation is applied, transparency is laid on `background`, and of an animation the first frame is
    taken. Raises UserError, naming the file, if it cannot be read, is no picture of a common format, is damaged or cut
    short, would take too long, or has more than `max_pixels` pixels (default: the limit `pixels`; judged from its
    header, before anything is decoded).
    """
    try:
        data = files.read_bytes(path, limits().image_bytes)
        return _decoded(data, None, max_pixels, background=background)[0]
    except OSError as error:
        way_out = f" ({exceeded('image_bytes')})" if error.errno == errno.EFBIG else ""
        raise UserError(f"{path}: cannot read the picture: {files.reason(error)}{way_out}") from error
    except ValueError as error:  # a name with a zero byte
        raise UserError(f"{path!r}: cannot read the picture: {error}") from error
    except BadPicture as bad:
        raise UserError(f"{path}: {MESSAGES.get(bad.reason, bad.reason)}{bad.detail and ': '}{bad.detail}") from bad


MESSAGES = {
    problems.EMPTY_FILE: "cannot read the picture: the file is empty",
    problems.NOT_A_PICTURE: f"not a picture that can be read (formats: {', '.join(FORMATS)})",
    problems.PICTURE_DAMAGED: "cannot read the picture",
    problems.TOO_MANY_PIXELS: "the picture is too large; scale it down",
    problems.TOO_MUCH: "the picture would take too long to decode",
    problems.UNREAD_NUMBERS: "the picture's numbers are of a kind that is not read",
    problems.NO_RANGE: "the picture's numbers, floats or of 32 bits, are all the same, so that none is black or white",
}


class BadPicture(Exception):
    """A picture of a pile that is not used: `reason` is one of `problems.py`, `detail` what more there is to say."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason)
        self.reason, self.detail = reason, detail


def decode_picture(
    picture: bytes | np.ndarray,
    max_pixels: int | None = None,
    problem: Callable[[int, int], str | None] = lambda width, height: None,
) -> Image.Image:
    """Decode an example's picture, a file's bytes or uint8 [H, W, 3], into a PIL image of mode RGB, as `load_picture`.

    `problem` is asked with the sides in pixels before anything is decoded (the camera's rotation may swap them still)
    and gives a reason not to go on. Raises BadPicture for that reason, for more than `max_pixels` pixels (default: the
    limit `pixels`), and for bytes that are no picture, a damaged one, or one that takes too long; never anything
    else but MemoryError.
    """
    return decode_scaled(picture, None, max_pixels, problem)[0]


def decode_scaled(
    picture: bytes | np.ndarray,
    needed: int | None,
    max_pixels: int | None = None,
    problem: Callable[[int, int], str | None] = lambda width, height: None,
) -> tuple[Image.Image, tuple[int, int]]:
    """As `decode_picture`, and width and height of the picture as it is shown, before anything made it smaller.

    With `needed` a JPEG file is decoded at 1/2, 1/4 or 1/8 of its size where no side gets less than so many pixels:
    libjpeg leaves out the frequencies that only the full size shows, which takes a fraction of the time.
    """
    if isinstance(picture, np.ndarray):
        height, width = picture.shape[:2]
        _check_sides(width, height, max_pixels, problem)
        return _as_image(picture), (width, height)
    return _decoded(picture, needed, max_pixels, problem)


def _decoded(
    data: bytes,
    needed: int | None,
    max_pixels: int | None,
    problem: Callable[[int, int], str | None] = lambda width, height: None,
    background: str = "white",
) -> tuple[Image.Image, tuple[int, int]]:
    """The one place where Pillow opens a file."""
    if not data:
        raise BadPicture(problems.EMPTY_FILE)
    try:
        file = examine(data)
        if file is None:
            raise BadPicture(problems.NOT_A_PICTURE)
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
                upright = _eight_bits(image)
                if file.orientation in TURNS:
                    upright = upright.transpose(TURNS[file.orientation])
                return _to_rgb(upright, background), (height, width) if file.orientation in LYING else (width, height)
    except (BadPicture, MemoryError):  # the picture is within its bounds: it is the machine that lacks memory
        raise
    except TooMuch as error:
        raise BadPicture(problems.TOO_MUCH, str(error)) from None
    except Image.DecompressionBombError:
        raise BadPicture(problems.TOO_MANY_PIXELS) from None
    except Image.UnidentifiedImageError:
        raise BadPicture(problems.UNREAD_NUMBERS if file.numbers else problems.NOT_A_PICTURE, file.numbers) from None
    except Exception as error:  # on damaged data Pillow's decoders raise nearly every type there is
        raise BadPicture(problems.PICTURE_DAMAGED, files.reason(error)) from error


def _check_sides(width: int, height: int, max_pixels: int | None, problem: Callable[[int, int], str | None]) -> None:
    most, longest = max_pixels or limits().pixels, limits().image_side
    if width * height > most:
        way_out = f" ({exceeded('pixels')})" if max_pixels is None else ""
        raise BadPicture(problems.TOO_MANY_PIXELS, f"{width} x {height} pixels, more than {most}{way_out}")
    if max(width, height) > longest:
        raise BadPicture(problems.TOO_MANY_PIXELS, f"{width} x {height} pixels ({exceeded('image_side')})")
    if reason := problem(width, height):
        raise BadPicture(reason)


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
        try:
            return _to_rgb(image)
        except BadPicture as bad:
            raise UserError(MESSAGES[bad.reason]) from None
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"a picture must be uint8 [height, width, 3], got {image.dtype} {list(image.shape)}")
    return Image.fromarray(image)


def _bands(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    """Boxes of whole rows that make up the picture."""
    rows = max(1, BAND // image.width)
    for top in range(0, image.height, rows):
        yield 0, top, image.width, min(top + rows, image.height)


def _converted(image: Image.Image, mode: str, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """`convert` of one band after the other, so that what lies between is never as large as the picture."""
    if image.width * image.height <= BAND:
        return convert(image)
    result = Image.new(mode, image.size)
    for box in _bands(image):
        result.paste(convert(image.crop(box)), box)
    return result


def _eight_bits(image: Image.Image) -> Image.Image:
    """Of a picture whose numbers are larger than bytes one whose numbers are; Pillow would cut them off at 255."""
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
    """Of floats, and of whole numbers of 32 bits, the least is black and the greatest white: nothing else is known."""
    least, most = np.inf, -np.inf
    for box in _bands(image):
        numbers = np.asarray(image.crop(box))
        numbers = numbers[np.isfinite(numbers)]
        if numbers.size:
            least, most = min(least, float(numbers.min())), max(most, float(numbers.max()))
    if not least < most:
        raise BadPicture(problems.NO_RANGE)

    def convert(band: Image.Image) -> Image.Image:
        numbers = np.nan_to_num(np.asarray(band, np.float64), nan=least, posinf=most, neginf=least)
        return Image.fromarray(np.rint((numbers - least) * (255 / (most - least))).astype(np.uint8))

    return _converted(image, "L", convert)


def _to_rgb(image: Image.Image, background: str = "white") -> Image.Image:
    image = _eight_bits(image)
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
    return ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")


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

"""A thing in another colour: "a blue cat". Only art of one dominant hue is painted, and only the pixels of that hue.

The eyes, the outline and the white belly keep their colours, and the shading stays: the dominant hue's mean saturation
and brightness become those of the wanted colour, and lighter and darker pixels move with them.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

# Hue (turns), saturation and brightness of what each word means.
COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.995, 0.86, 0.86),
    "orange": (0.075, 0.93, 0.98),
    "yellow": (0.135, 0.78, 1.0),
    "green": (0.36, 0.70, 0.66),
    "blue": (0.60, 0.80, 0.90),
    "purple": (0.765, 0.66, 0.72),
    "pink": (0.92, 0.42, 0.98),
    "brown": (0.065, 0.64, 0.50),
    "black": (0.65, 0.16, 0.19),
    "white": (0.60, 0.05, 0.96),
    "gray": (0.60, 0.05, 0.56),
}
WORKING = 64  # pixels: the width at which art is measured
BINS = 72  # of hues
NEAR = 0.085  # turns of hue around the dominant one that are painted whole
FADE = 0.05  # turns more over which painting fades out
COLORED, LIT = 0.28, 0.16  # the least saturation and brightness of a pixel that has a hue
SHARE = 0.38  # of what is drawn has the dominant hue, or the art is not painted
OTHERS = 0.34  # of what is drawn may have another hue


@dataclass(frozen=True)
class Dominant:
    """The hue of most of a thing: its hue (turns), the mean saturation and brightness there, and its share."""

    hue: float
    saturation: float
    brightness: float
    share: float
    others: float

    @property
    def paintable(self) -> bool:
        return self.share >= SHARE and self.others <= OTHERS


def dominant(image: Image.Image) -> Dominant | None:
    """The dominant hue of an RGBA image, or None where it is nearly all gray."""
    small = image.convert("RGBa").resize((WORKING, WORKING), Image.Resampling.BOX).convert("RGBA")
    pixels = np.asarray(small, np.float32) / 255
    hue, saturation, brightness = _hsv(pixels[..., :3])
    alpha = pixels[..., 3]
    ink = float(alpha.sum())
    weight = alpha * ((saturation > COLORED) & (brightness > LIT))
    if ink == 0 or weight.sum() < 0.1 * ink:
        return None
    counts = np.bincount((hue * BINS).astype(int).ravel() % BINS, (weight * saturation).ravel(), BINS)
    reach = round(NEAR * BINS)
    around = sum((reach + 1 - abs(shift)) * np.roll(counts, shift) for shift in range(-reach, reach + 1))
    centre = (int(np.argmax(around)) + 0.5) / BINS
    mine = weight * (np.abs(_turn(hue - centre)) <= NEAR)
    total = float(mine.sum())
    mean_hue = (centre + float((_turn(hue - centre) * mine).sum()) / total) % 1.0
    mean_saturation, mean_brightness = (float((one * mine).sum()) / total for one in (saturation, brightness))
    return Dominant(mean_hue, mean_saturation, mean_brightness, total / ink, float(weight.sum() - total) / ink)


def painted(image: Image.Image, color: str, found: Dominant) -> Image.Image:
    """An RGBA image with its dominant hue, which `dominant` found, replaced by a key of `COLORS`."""
    pixels = np.array(image)
    there = pixels[..., 3] > 0
    rgb = pixels[there][:, :3].astype(np.float32) / 255  # [drawn, 3]
    hue, saturation, brightness = _hsv(rgb)
    off = _turn(hue - np.float32(found.hue))
    share = np.clip((NEAR + FADE - np.abs(off)) / FADE, 0, 1)
    share *= np.clip((saturation - 0.08) / 0.12, 0, 1)  # gray has no hue
    wanted_hue, wanted_saturation, wanted_brightness = COLORS[color]
    new = _rgb(
        (wanted_hue + 0.4 * off) % 1.0,
        _moved(saturation, found.saturation, wanted_saturation),
        _moved(brightness, found.brightness, wanted_brightness),
    )
    rgb += share[..., None] * (new - rgb)
    pixels[there, :3] = np.rint(np.clip(rgb, 0, 1) * 255)
    return Image.fromarray(pixels)


def _moved(values: np.ndarray, mean: float, wanted: float) -> np.ndarray:
    """Values of 0 to 1 so that 0 stays, `mean` becomes `wanted`, and what is above keeps its distance."""
    mean = min(max(mean, 0.01), 0.99)
    return np.interp(values, [0.0, mean, 1.0], [0.0, wanted, min(1.0, wanted + 1.0 - mean)]).astype(np.float32)


def _turn(difference: np.ndarray) -> np.ndarray:
    """Differences of hues as -0.5 to 0.5 turns."""
    return (difference + 0.5) % 1.0 - 0.5


def _hsv(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hue, saturation and brightness, each [...], of colours [..., 3]; all from 0 to 1."""
    most, least = rgb.max(axis=-1), rgb.min(axis=-1)
    spread = most - least
    safe = np.where(spread > 0, spread, 1)
    red, green, blue = (rgb[..., channel] for channel in range(3))
    hue = np.where(
        most == red,
        (green - blue) / safe,
        np.where(most == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    return hue / 6 % 1.0, spread / np.where(most > 0, most, 1), most


def _rgb(hue: np.ndarray, saturation: np.ndarray, brightness: np.ndarray) -> np.ndarray:
    """The inverse of `_hsv`."""
    step = (np.array([5.0, 3.0, 1.0], np.float32) + hue[..., None] * 6) % 6
    return brightness[..., None] * (1 - saturation[..., None] * np.clip(np.minimum(step, 4 - step), 0, 1))

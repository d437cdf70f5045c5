"""A request's fields as a checked order: the prompt, the settings and the image to start from."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image

from dalle_mini.errors import UserError
from dalle_mini.generation.canvas import cells_to_draw, check_kept
from dalle_mini.imaging.decoding import decode_image, decode_rgba
from dalle_mini.imaging.pixels import resize_and_crop
from dalle_mini.imaging.problems import MESSAGES, BadImage
from dalle_mini.serving.drawing import About, Start
from dalle_mini.serving.problems import Problem
from dalle_mini.settings import MAX_CANDIDATES, GenerationSettings, check_prompts, check_whole

LONGEST_PROMPT = 20_000  # characters; the model reads far fewer
KNOBS = ("seed", "guidance", "temperature", "top_k", "top_p", "negative_prompt", "decode")
FIELDS = ("prompt", "n", "candidates", *KNOBS, "first", "stay", "image", "mask", "keep_top", "vary", "tokens")


@dataclasses.dataclass(frozen=True)
class Order:
    """A client's order.

    Attributes:
        prompt: as it was given.
        settings: with the model's own values; `keep` images are returned.
        first: the number of the first candidate.
        stay: draw on if nobody watches any more.
        start: what the images start from, if from something.
        text_tokens: of the prompt.
    """

    prompt: str
    settings: GenerationSettings
    first: int = 0
    stay: bool = False
    start: Start | None = None
    text_tokens: int = 0

    @property
    def asked(self) -> dict[str, Any]:
        """The order without its image, for JSON."""
        told: dict[str, Any] = {"prompt": self.prompt, "n": self.settings.keep, "candidates": self.settings.candidates}
        told |= {name: getattr(self.settings, name) for name in KNOBS} | {"first": self.first, "stay": self.stay}
        if self.start is not None:
            start = self.start
            told |= {"keep_top": start.keep_top, "vary": start.vary, "mask": list(start.cells)}
        return told

    def address(self, candidate: int, about: About, kept: Sequence[int] | None = None) -> str:
        """The fragment of the page's address that draws one image again; `kept` are the tokens that it started from."""
        settings = self.settings
        parts = {"p": self.prompt, "s": settings.seed, "i": candidate, "m": about.weights}
        for letter, name in (("g", "guidance"), ("t", "temperature"), ("k", "top_k")):
            if getattr(settings, name) != getattr(about, name):
                parts[letter] = getattr(settings, name)
        if settings.top_p is not None:
            parts["q"] = settings.top_p
        if settings.negative_prompt.strip():
            parts["x"] = settings.negative_prompt
        if kept is not None and self.start is not None:
            parts["c"] = base64.urlsafe_b64encode(np.asarray(kept, "<i2").tobytes()).decode()
            if self.start.vary:
                parts["v"] = self.start.vary
        return "&".join(f"{letter}={quote(str(value), safe='')}" for letter, value in parts.items())


def read_order(fields: Mapping[str, Any], about: About, most: int, pixels: int) -> Order:
    """The order that a JSON object asks for. `most` candidates, and so many pixels of an image, are allowed.

    Raises:
        Problem: a field is wrong; its name is told.
    """
    for name in fields:
        if name not in FIELDS:
            raise Problem(400, f"there is no field {str(name)[:60]!r}: known are {', '.join(FIELDS)}", str(name)[:60])
    prompt = read_prompt(fields)
    settings = read_settings(fields, most)
    first, stay = fields.get("first") or 0, fields.get("stay")
    check("first", check_whole, "first", first, 0, MAX_CANDIDATES - settings.candidates)
    if not isinstance(stay, bool | None):
        raise Problem(400, "stay must be true or false", "stay")
    return Order(prompt, settings, first, bool(stay), read_start(fields, about, pixels))


def check(param: str, function, *arguments):
    """`function(*arguments)`, whose UserError is told as a problem of the field."""
    try:
        return function(*arguments)
    except UserError as error:
        named = next((name for name in FIELDS if str(error).startswith(f"{name} ")), param)
        raise Problem(400, str(error), named) from None


def read_prompt(fields: Mapping[str, Any], default: str | None = None) -> str:
    prompt = fields.get("prompt", default)
    if prompt is None:
        raise Problem(400, "prompt is missing: say what to draw", "prompt", "missing_required_parameter")
    if not isinstance(prompt, str):
        raise Problem(400, "prompt must be text", "prompt")
    check_length("prompt", prompt)
    return check("prompt", check_prompts, [prompt])[0]


def check_length(name: str, text: Any) -> None:
    """Raises Problem for text that is far longer than what the model reads."""
    if isinstance(text, str) and len(text) > LONGEST_PROMPT:
        raise Problem(400, f"{name} has {len(text)} characters, more than {LONGEST_PROMPT}", name)


def read_settings(fields: Mapping[str, Any], most: int, n: int | None = None) -> GenerationSettings:
    """The settings, in which None stands for the model's own; `n` is how many images are returned if none is asked."""
    given = {name: fields[name] for name in KNOBS if fields.get(name) is not None}
    keep = n if fields.get("n") is None else fields["n"]
    check_length("negative_prompt", fields.get("negative_prompt"))
    candidates = fields.get("candidates")
    if keep is not None:
        check("n", check_whole, "n", keep, 1, most)
    if candidates is None:
        candidates = min(most, max(keep or 1, GenerationSettings.candidates))
    check("candidates", check_whole, "candidates", candidates, 1, most)
    if keep is not None and keep > candidates:
        raise Problem(400, f"n is {keep}, but only {candidates} candidates are drawn", "n")
    return check("settings", lambda: GenerationSettings(candidates=candidates, keep=keep, **given))


def read_start(fields: Mapping[str, Any], about: About, pixels: int) -> Start | None:
    """The canvas that the images start from, by the fields image, tokens, mask, keep_top and vary."""
    image, tokens, mask = (fields.get(name) for name in ("image", "tokens", "mask"))
    top, vary = fields.get("keep_top"), fields.get("vary") or 0.0
    if image is None and tokens is None:
        for name in ("mask", "keep_top", "vary"):
            if fields.get(name):
                raise Problem(400, f"{name} needs an image, or the tokens of one", name)
        return None
    if image is not None and tokens is not None:
        raise Problem(400, "give either image or tokens", "tokens")
    for name, value in (("keep_top", top), ("vary", vary)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise Problem(400, f"{name} must be a number", name)
    if tokens is not None:
        return tokens_to_start(tokens, mask, top, vary, about)
    picture = opened(decoded_base64(image, "image"), "image", pixels)
    if isinstance(mask, list):
        cells = read_cells(mask, about)
    else:
        cells = () if mask is None else mask_cells(decoded_base64(mask, "mask"), picture.size, about, pixels)
    return start_of(picture, cells, top, vary, about)


def start_of(picture: Image.Image, cells: Sequence[int], top: float | None, vary: float, about: About) -> Start:
    check("vary", check_kept, top, bool(cells), vary, ("keep_top", "mask", "vary"))
    return Start(np.asarray(resize_and_crop(picture, about.resolution)), None, tuple(cells), top, float(vary))


def tokens_to_start(tokens: Any, mask: Any, top: float | None, vary: float, about: About) -> Start:
    if not isinstance(tokens, list) or len(tokens) != about.image_length:
        raise Problem(400, f"tokens must be a list of {about.image_length} numbers", "tokens")
    for token in tokens:
        check("tokens", check_whole, "tokens has a number that", token, -1, about.codebook_size - 1)
    if mask is not None and not isinstance(mask, list):
        raise Problem(400, "with tokens, mask is a list of token cells", "mask")
    cells = read_cells(mask or [], about)
    check("vary", check_kept, top, bool(cells) or -1 in tokens, vary, ("keep_top", "mask", "vary"))
    return Start(None, tuple(tokens), cells, top, float(vary))


def read_cells(cells: Sequence[Any], about: About) -> tuple[int, ...]:
    if len(cells) > about.image_length:
        raise Problem(400, f"mask has more than {about.image_length} cells", "mask")
    for cell in cells:
        check("mask", check_whole, "a cell of mask", cell, 0, about.image_length - 1)
    return tuple(sorted(set(cells)))


def mask_cells(data: bytes, size: tuple[int, int], about: About, pixels: int) -> tuple[int, ...]:
    """The cells that a mask's file has drawn anew: its transparent parts if it has any, else its white ones.

    Raises:
        Problem: it is no image of that size, or has nothing drawn.
    """
    mask = opened(data, "mask", pixels, transparent=True)
    alpha = np.asarray(mask.getchannel("A"))
    drawn = alpha < 128 if (alpha < 255).any() else np.asarray(mask.convert("L")) >= 128
    cells = check("mask", cells_to_draw, drawn, size, about.resolution, about.grid)
    return tuple(np.flatnonzero(cells).tolist())


def opened(data: bytes, param: str, pixels: int, *, transparent: bool = False) -> Image.Image:
    """A stranger's image within the limits. Raises Problem."""
    try:
        if transparent:
            decode_image(data, pixels)  # counts the pixels
            return decode_rgba(data)
        return decode_image(data, pixels)
    except BadImage as bad:
        reason = f"{MESSAGES.get(bad.reason, bad.reason)}{bad.detail and ': '}{bad.detail}"
        raise Problem(400, f"{param}: {reason}", param, "invalid_image") from None
    except MemoryError:
        raise Problem(503, f"{param}: the server lacks the memory to read it", param, wait=30) from None


def decoded_base64(text: Any, param: str) -> bytes:
    if not isinstance(text, str):
        raise Problem(400, f"{param} must be text: base64 of a file", param)
    if text[:5] == "data:":
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Problem(400, f"{param} is not base64 of a file; addresses are not fetched", param) from None


def packed_start(start: Start) -> tuple[dict[str, Any], bytes | None]:
    """A start for the store: what JSON holds, and the pixels as a PNG."""
    told = dataclasses.asdict(start) | {"pixels": None}
    if start.pixels is None:
        return told, None
    Image.fromarray(start.pixels).save(buffer := io.BytesIO(), "PNG")
    return told, buffer.getvalue()


def unpacked_start(told: Mapping[str, Any], png: bytes | None) -> Start:
    pixels = None if png is None else np.asarray(decode_image(png))
    tokens = None if told["tokens"] is None else tuple(told["tokens"])
    return Start(pixels, tokens, tuple(told["cells"]), told["keep_top"], told["vary"])

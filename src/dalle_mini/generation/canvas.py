"""Images that start from a given one: tokens that are kept, and places to draw anew.

The decoder writes tokens row by row and sees only those that come before. So tokens that are kept above and to the left
of a place shape what is drawn there. Tokens that are kept below it do not, and may not meet it smoothly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from PIL import Image

from dalle_mini.errors import UserError
from dalle_mini.imaging.pixels import white_cells
from dalle_mini.runtime.hashing import short_hash

DRAWN = -1  # in a list of tokens: one is drawn here
VARYING = 2**31 - 1  # folded into an image's key for the choice of places, apart from the steps' own numbers


@dataclasses.dataclass(frozen=True)
class Canvas:
    """Tokens that every candidate of a prompt keeps.

    Attributes:
        tokens: of an image, row by row; `DRAWN` (-1) where each candidate draws its own.
        vary: the part of the other tokens that each candidate draws anew, at places of its own, 0 to 1.

    Raises:
        UserError: nothing would be drawn, or a token is no number of a token.
    """

    tokens: Sequence[int]
    vary: float = 0.0

    def __post_init__(self):
        object.__setattr__(self, "tokens", tuple(int(token) for token in self.tokens))
        if any(token < DRAWN for token in self.tokens):
            raise UserError(f"a canvas holds {min(self.tokens)}: tokens are 0 or more, and -1 where one is drawn")
        if not 0 <= self.vary <= 1:
            raise UserError(f"vary is {self.vary!r}: it is a fraction, from 0 to 1")
        if DRAWN not in self.tokens and not self.vary:
            raise UserError("nothing would be drawn: keep less of the image (top, mask), or vary some of it")

    def forced(self, keys: jax.Array) -> np.ndarray:
        """The forced tokens of candidates with these keys, [C]: int32 [C, image_length], -1 where one is drawn.

        They depend on a candidate's key alone.
        """
        tokens = np.broadcast_to(np.asarray(self.tokens, np.int32), (len(keys), len(self.tokens)))
        if not self.vary:
            return tokens
        keys = jax.vmap(lambda key: jax.random.fold_in(key, VARYING))(keys)
        noise = np.asarray(jax.vmap(lambda key: jax.random.uniform(key, (len(self.tokens),)))(keys))
        return np.where(noise < self.vary, DRAWN, tokens).astype(np.int32)

    def check_fits(self, image_length: int, codebook_size: int) -> None:
        """Check the canvas against a model.

        Raises:
            UserError: the model has another number of tokens, or a token is beyond its codebook.
        """
        if len(self.tokens) != image_length:
            raise UserError(f"the canvas has {len(self.tokens)} tokens, the model's images have {image_length}")
        if max(self.tokens) >= codebook_size:
            raise UserError(f"the canvas has token {max(self.tokens)}, the codebook only {codebook_size}")

    @property
    def digest(self) -> str:
        """A short hash of what it holds, for comparing."""
        return short_hash(repr((self.tokens, self.vary)))


def check_kept(top: float | None, masked: bool, vary: float, names: Sequence[str] = ("top", "mask", "vary")) -> None:
    """Check the numbers of `DalleMini.canvas`, which the user knows by `names`.

    Raises:
        UserError: a number is out of its range, or nothing would be drawn.
    """
    if top is not None and not 0 < top < 1:
        raise UserError(f"{names[0]} is {top!r}: it is the part of the image that is kept, between 0 and 1")
    if not 0 <= vary <= 1:
        raise UserError(f"{names[2]} is {vary!r}: it is a fraction, from 0 to 1")
    if top is None and not masked and not vary:
        less, some = f"keep less of the image ({names[0]}, {names[1]})", f"vary some of it ({names[2]})"
        raise UserError(f"nothing would be drawn: {less}, or {some}")


# The dimensions of arrays, and the sizes of those behind height and width.
SHAPES = {"picture": ((3, 3),), "mask": ((2,), (3, 3))}


def as_image(picture: Image.Image | np.ndarray, what: str = "picture") -> Image.Image:
    """An array as a PIL image.

    Raises:
        UserError: it has not the type or shape of a picture or, if `what` is "mask", of a mask.
    """
    if isinstance(picture, Image.Image):
        return picture
    if not isinstance(picture, np.ndarray):
        raise UserError(f"the {what} is {type(picture).__name__}: it must be a file, a PIL image or an array")
    if what == "mask" and picture.ndim == 2 and picture.dtype == bool:
        return Image.fromarray(picture.astype(np.uint8) * 255)
    if picture.dtype == np.uint8 and picture.size and (picture.ndim, *picture.shape[2:]) in SHAPES[what]:
        return Image.fromarray(picture)
    wanted = " or ".join(f"uint8 [{', '.join(('height', 'width', *map(str, one[1:])))}]" for one in SHAPES[what])
    also = ", or bool, such as mask > 0.5" if what == "mask" else ""
    raise UserError(f"the {what} is an array of {picture.dtype} {list(picture.shape)}: it must be {wanted}{also}")


def cells_to_draw(mask: Image.Image | np.ndarray, size: tuple[int, int], resolution: int, grid: int) -> np.ndarray:
    """Which tokens a mask has drawn anew, bool [grid, grid]: any white pixel in one is enough.

    `size` is the picture's, width and height; `resolution` and `grid` are the image tokenizer's.

    Raises:
        UserError: the mask has another size, or is nowhere white.
    """
    image = as_image(mask, "mask")
    if image.size not in ((grid, grid), size):
        raise UserError(
            f"the mask is {image.width} x {image.height}: it must be as large as the image, "
            f"{size[0]} x {size[1]}, or {grid} x {grid}, a pixel a token"
        )
    cells = white_cells(image, resolution, grid)
    if not cells.any():
        raise UserError("the mask is empty in the image's central square: paint the part to redraw white")
    return cells


def below(tokens: np.ndarray, top: float) -> np.ndarray:
    """Keep the upper part of a square picture, in whole rows of tokens; `top` is a fraction of its height."""
    side = int(len(tokens) ** 0.5)
    rows = min(max(round(top * side), 1), side - 1)  # something is kept, and something is drawn
    return np.where(np.arange(len(tokens)) < rows * side, tokens, DRAWN)

"""What a picture starts from when it does not start from nothing: tokens that are kept, and places to draw anew.

The decoder writes tokens row by row and sees, of the picture, only what comes before. So what is kept above and to the
left of a place shapes what is drawn there; what is kept below it does not, and may not meet it smoothly.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

import jax
import numpy as np

from dalle_mini.errors import UserError

DRAWN = -1  # in a list of tokens: one is drawn here
VARYING = 2**31 - 1  # folded into a picture's key for the choice of places, apart from the steps' own numbers


@dataclasses.dataclass(frozen=True)
class Canvas:
    """Tokens that every candidate of a prompt keeps.

    Attributes:
        tokens: of a picture, row by row; `DRAWN` (-1) where each candidate draws its own.
        vary: how much of the tokens that are there each candidate draws anew, at places of its own, 0 to 1.
    Raises UserError where nothing would be drawn, or a token is no number of a token.
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
            raise UserError("nothing would be drawn: keep less of the picture (top, mask), or vary some of it")

    def given(self, keys: jax.Array) -> np.ndarray:
        """What candidates of these keys, [C], keep: int32 [C, image_length]. It depends on a candidate's key alone."""
        tokens = np.broadcast_to(np.asarray(self.tokens, np.int32), (len(keys), len(self.tokens)))
        if not self.vary:
            return tokens
        keys = jax.vmap(lambda key: jax.random.fold_in(key, VARYING))(keys)
        noise = np.asarray(jax.vmap(lambda key: jax.random.uniform(key, (len(self.tokens),)))(keys))
        return np.where(noise < self.vary, DRAWN, tokens).astype(np.int32)

    def check_fits(self, image_length: int, codebook_size: int) -> None:
        """Raises UserError where a model has another number of tokens, or a token is beyond its codebook."""
        if len(self.tokens) != image_length:
            raise UserError(f"the canvas has {len(self.tokens)} tokens, the model's pictures have {image_length}")
        if max(self.tokens) >= codebook_size:
            raise UserError(f"the canvas has token {max(self.tokens)}, the codebook only {codebook_size}")

    @property
    def digest(self) -> str:
        """For comparing: the first 16 hex digits of the SHA-256 of what it holds."""
        return hashlib.sha256(repr((self.tokens, self.vary)).encode()).hexdigest()[:16]


def below(tokens: np.ndarray, top: float) -> np.ndarray:
    """Keep the upper part of a square picture, in whole rows of tokens; `top` is a fraction of its height.

    Raises UserError where `top` is no such fraction.
    """
    side = int(len(tokens) ** 0.5)
    if not 0 < top < 1:
        raise UserError(f"top is {top!r}: it is the part of the picture that is kept, between 0 and 1")
    rows = min(max(round(top * side), 1), side - 1)  # something is kept, and something is drawn
    return np.where(np.arange(len(tokens)) < rows * side, tokens, DRAWN)


def inside(tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Keep what is outside a mask, bool [height, width] in pixels or in tokens; any of it masks a token.

    Raises UserError where the mask has no such size or masks nothing.
    """
    side = int(len(tokens) ** 0.5)
    height, width = mask.shape
    if height != width or height % side:
        raise UserError(
            f"the mask is {width} x {height}: it must be as large as the picture, or {side} x {side} tokens"
        )
    cell = height // side
    drawn = mask.reshape(side, cell, side, cell).any(axis=(1, 3)).reshape(-1)
    if not drawn.any():
        raise UserError("the mask is empty: paint white what is to be drawn anew")
    return np.where(drawn, DRAWN, tokens)

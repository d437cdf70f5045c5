"""The protocol of networks that turn images into tokens and back. `VQGAN` is the first."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import jax

from dalle_mini.models.config import VQGANConfig
from dalle_mini.weights.folder import load_config


class TokenGrid(Protocol):
    """The sizes of an image tokenizer. They are known from its config, before the weights are read."""

    @property
    def grid(self) -> int:
        """Tokens on a side of a square image: h = w = grid."""

    @property
    def codebook_size(self) -> int:
        """Number of different tokens, 0 to codebook_size - 1."""

    @property
    def resolution(self) -> int:
        """Pixels on a side of a square image: H = W = resolution, a multiple of `grid`."""

    @property
    def widest(self) -> int:
        """Numbers in the largest feature map of one image's decoding, for planning memory."""


class ImageTokenizer(TokenGrid, Protocol):
    """Images to discrete tokens and back. Every image is float in [0, 1]; tokens are row by row."""

    @property
    def pixel_range(self) -> tuple[float, float]:
        """The lowest and the highest pixel value that the network itself computes with."""

    def encode(self, images: jax.Array) -> jax.Array:
        """Images, float [batch, H, W, 3] in [0, 1], to tokens, int32 [batch, h * w]."""
        ...

    def decode(self, tokens: jax.Array, width: int | None = None) -> jax.Array:
        """Tokens, int [batch, n] in rows of `width` (None: a square grid), to images, float32 [batch, H, W, 3].

        The images are not clipped to [0, 1].

        Raises:
          ValueError: n is not a square, or not whole rows of `width`.
        """
        ...

    def decode_soft(self, probabilities: jax.Array, width: int | None = None) -> jax.Array:
        """Probabilities, float [batch, n, codebook_size], to images as `decode` makes them; differentiable."""
        ...


def token_grid(folder: Path) -> TokenGrid:
    """The sizes of the image tokenizer in a folder, from its config alone.

    Raises:
      UserError: the config is missing, damaged or of another network.
    """
    return VQGANConfig.from_dict(load_config(folder))

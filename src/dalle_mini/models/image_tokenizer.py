"""The protocol of networks that turn images into tokens and back, and how one is loaded. `VQGAN` is the first."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Protocol

import jax
import jax.numpy as jnp

from dalle_mini.models.vqgan import VQGAN
from dalle_mini.weights.folder import load_config
from dalle_mini.weights.pretrained import class_of

NETWORKS = (VQGAN,)  # all image tokenizers; the first also reads the files that do not say what they are


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

    @property
    def token_rule(self) -> str:
        """What decides an image's tokens besides the parameters, for their fingerprint; "" for the nearest code."""


class ImageTokenizer(TokenGrid, Protocol):
    """Images to discrete tokens and back. Every image is float in [0, 1]; tokens are row by row.

    Attributes:
      encoding_parts: the modules whose parameters decide an image's tokens, in the order of the fingerprint.
    """

    encoding_parts: ClassVar[tuple[str, ...]]

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

    def save_pretrained(self, folder: str | Path, dtype=None) -> None:
        """Write config and weights into a folder, as `weights.pretrained.Pretrained` does."""
        ...


def load_image_tokenizer(folder: Path, dtype=jnp.float32) -> ImageTokenizer:
    """The image tokenizer in a folder, of the class that its config names.

    Args:
      dtype: of the parameters and of the computation, whatever the file stores.

    Raises:
      UserError: a file is missing, damaged or of another network.
    """
    return class_of(folder, NETWORKS).from_pretrained(folder, dtype)


def token_grid(folder: Path) -> TokenGrid:
    """The sizes of the image tokenizer in a folder, from its config alone.

    Raises:
      UserError: the config is missing, damaged or of another network.
    """
    return class_of(folder, NETWORKS).config_class.from_dict(load_config(folder))

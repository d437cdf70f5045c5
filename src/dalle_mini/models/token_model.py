"""The protocol of networks that write images token by token, and how one is loaded. `DalleBart` is the first.

Shapes: R captions of S tokens, C candidate images of each, W new positions of each, V the size of the vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from dalle_mini.models.dalle_bart import DalleBart
from dalle_mini.settings import SamplingParams
from dalle_mini.weights.folder import load_config
from dalle_mini.weights.pretrained import class_of

NETWORKS = (DalleBart,)  # all token models; the first also reads the files that do not say what they are


class TokenModelConfig(Protocol):
    """The sizes and the sampling rule of a token model, which its config tells before the weights are read."""

    @property
    def encoder_vocab_size(self) -> int:
        """Number of different tokens of a caption."""

    @property
    def text_length(self) -> int:
        """S: tokens of every caption, which are padded and cut to it."""

    @property
    def normalize_text(self) -> bool:
        """Whether captions are normalised ahead of the tokenizer."""

    @property
    def image_vocab_size(self) -> int:
        """Number of different tokens of an image, at least as many as the image tokenizer's codes."""

    @property
    def image_length(self) -> int:
        """Tokens of an image."""

    @property
    def cache_width(self) -> int:
        """Numbers that the cache keeps of one position of one row."""

    @property
    def sampling(self) -> SamplingParams:
        """The sampling rule where the user asks for nothing else."""


class TokenModel(Protocol):
    """Caption tokens to image token logits, all positions at once or step by step with a cache.

    The context and the cache are pytrees of arrays that only the network looks into. The loop relies on their first
    axes alone: R in every leaf of a context, R C in every leaf of a cache, caption after caption. It may reshape that
    axis in between, and split it among devices.
    """

    @property
    def config(self) -> TokenModelConfig:
        """The config that it was built with."""

    @property
    def dtype(self) -> jnp.dtype:
        """The type of its products with weights, as it was loaded."""

    @property
    def image_length(self) -> int:
        """Tokens of an image."""

    @property
    def vocabulary_size(self) -> int:
        """V: ids that have a logit. The last is the start token's, which is never drawn by default."""

    @property
    def start_token(self) -> int:
        """The id that goes in ahead of an image's first token."""

    def __call__(self, input_ids: jax.Array, attention_mask: jax.Array, decoder_input_ids: jax.Array) -> jax.Array:
        """Teacher forcing: int [R, S], int [R, S] and int [R, T], which begins with the start token, to logits.

        Returns:
          float32 [R, T, V]: at each position the logits of the next token.
        """
        ...

    def prefill(self, input_ids: jax.Array, attention_mask: jax.Array, candidates: int, room: int) -> tuple[Any, Any]:
        """Read the captions, int [R, S] each.

        Returns:
          The context, and an empty cache for `candidates` images of each caption with room for so many positions.
        """
        ...

    def step(self, tokens: jax.Array, context: Any, cache: Any, position: jax.Array | int) -> tuple[jax.Array, Any]:
        """Write the tokens, int [R, C, W], at `position` and those behind it.

        `position` is one for all images, or each image's own, int [R, C]; it may be traced. All positions before it
        are written, and those of the window are within the room. Positions that were written before are written over.

        Returns:
          Logits float32 [R, C, W, V] of the tokens that follow, and the cache with the W positions filled.
        """
        ...

    def grow(self, cache: Any, room: int) -> Any:
        """The cache with room for so many positions, no fewer than it has; what is written stays."""
        ...

    def rollback(self, cache: Any, length: jax.Array | int) -> Any:
        """The cache as it was when the first `length` positions were written: the next step is at `length`."""
        ...

    def save_pretrained(self, folder: str | Path, dtype=None) -> None:
        """Write config and weights into a folder, as `weights.pretrained.Pretrained` does."""
        ...


def load_token_model(folder: Path, dtype=jnp.float32) -> TokenModel:
    """The token model in a folder, of the class that its config names.

    Args:
      dtype: of the parameters and of the computation, whatever the file stores.

    Raises:
      UserError: a file is missing, damaged or of another network.
    """
    return class_of(folder, NETWORKS).from_pretrained(folder, dtype)


def token_model_config(folder: Path) -> TokenModelConfig:
    """The config of the token model in a folder, without its weights.

    Raises:
      UserError: the config is missing, damaged or of another network.
    """
    return class_of(folder, NETWORKS).config_class.from_dict(load_config(folder))


def token_model_shapes(config: TokenModelConfig, dtype) -> tuple[nnx.GraphDef, nnx.State]:
    """The structure and the shapes of the token model of a config."""
    network = next(one for one in NETWORKS if one.config_class is type(config))
    return network.shapes(config, dtype)

"""CLIP scores of candidate pictures, and the order they give."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dalle_mini.data.images import clip_pixels, clip_sizes
from dalle_mini.errors import UserError
from dalle_mini.models.clip import CLIP
from dalle_mini.text import CaptionTokenizer


class ClipRanker:
    """Judges pictures by how well they fit their prompt, as the published pipeline does.

    Args:
        clip: the model.
        tokenizer: CLIP's own tokenizer.
        preprocessor_config: the content of CLIP's `preprocessor_config.json`.
        chunk: pictures a compiled call scores; fewer are padded, so that nothing recompiles and a picture's score
            does not depend on how many others came with it.
    """

    def __init__(self, clip: CLIP, tokenizer: CaptionTokenizer, preprocessor_config: Mapping[str, Any], chunk: int = 8):
        size, expected = clip_sizes(preprocessor_config)[1], clip.config.vision.image_size
        if size != expected:
            raise UserError(
                f"preprocessor_config.json: crop_size is {size}, but CLIP's config.json says image_size {expected}"
            )
        tokenizer.check_vocab_size(clip.config.text.vocab_size)
        self.clip, self.tokenizer, self.preprocessor_config, self.chunk = clip, tokenizer, preprocessor_config, chunk
        graphdef, self._state = nnx.split(clip)

        @jax.jit
        def text_embeds(state: nnx.State, input_ids: jax.Array, attention_mask: jax.Array) -> jax.Array:
            return nnx.merge(graphdef, state).text_embeds(input_ids, attention_mask)

        @jax.jit
        def image_logits(state: nnx.State, pixels: jax.Array, text: jax.Array) -> jax.Array:
            clip = nnx.merge(graphdef, state)
            return clip.logits(clip.image_embeds(pixels), text)

        self._text_embeds, self._image_logits = text_embeds, image_logits

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], dtype: jnp.dtype = jnp.float32) -> Self:
        """Load from a folder with CLIP's weights, `config.json`, `tokenizer.json` and `preprocessor_config.json`.

        Raises UserError, naming the file, for whatever is missing or does not fit.
        """
        file = Path(folder) / "preprocessor_config.json"
        try:
            preprocessor_config = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{file}: cannot be read ({error}); CLIP's folder must have this file") from error
        if not isinstance(preprocessor_config, dict):
            raise UserError(f"{file}: must hold a JSON object")
        return cls(
            CLIP.from_pretrained(folder, dtype=dtype), CaptionTokenizer.from_pretrained(folder), preprocessor_config
        )

    def scores(self, images: np.ndarray, prompt: str) -> np.ndarray:
        """CLIP's logits_per_image, float32 [n]: higher fits better.

        `images` is uint8 [n, height, width, 3]. `prompt` is the user's own text, not normalised; it is padded and,
        beyond the model's positions (77 in the published one), truncated.
        """
        max_length = self.clip.config.text.max_position_embeddings
        text = self._text_embeds(self._state, *self.tokenizer([prompt], max_length=max_length))  # [1, projection_dim]
        scores = np.empty(len(images), np.float32)
        for start in range(0, len(images), self.chunk):
            pixels = clip_pixels(images[start : start + self.chunk], self.preprocessor_config)
            count = len(pixels)
            pixels = np.pad(pixels, ((0, self.chunk - count), (0, 0), (0, 0), (0, 0)))
            scores[start : start + count] = self._image_logits(self._state, pixels, text)[:count, 0]
        return scores

    @staticmethod
    def rank(scores: np.ndarray, keep: int) -> np.ndarray:
        """Indices int [keep] of the best scores, best first; of equal ones the earlier comes first."""
        if not 1 <= keep <= len(scores):
            raise UserError(f"keep is {keep}, but must be from 1 to the number of candidates, {len(scores)}")
        return np.argsort(-np.asarray(scores), kind="stable")[:keep]

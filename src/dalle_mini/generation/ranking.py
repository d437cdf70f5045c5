"""CLIP scores of candidate images, and the order they give."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Self, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from msgspec import Meta

from dalle_mini.errors import UserError
from dalle_mini.imaging.clip_pixels import clip_pixels, clip_sizes
from dalle_mini.models.clip import CLIP
from dalle_mini.runtime.cores import side_by_side, workers
from dalle_mini.runtime.parsing import ParseError, check, read_object
from dalle_mini.runtime.xla import Jit
from dalle_mini.text import CaptionTokenizer
from dalle_mini.weights.bundle import PREPROCESSOR, RANKER
from dalle_mini.weights.hub.repository import blaming_cache, resolve

# The steps of CLIP's processor where a model comes without a `preprocessor_config.json`; the size is the model's own.
PREPROCESSING = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,  # bicubic
}


Colour = Annotated[list[Annotated[float, Meta(ge=-1e6, le=1e6)]], Meta(min_length=3, max_length=3)]


class Preprocessing(TypedDict, total=False):
    """The fields of a `preprocessor_config.json` that are read."""

    image_mean: Colour
    image_std: Colour
    size: int | dict[str, int]
    crop_size: int | dict[str, int]


class ClipRanker:
    """Scores images by how well they fit their prompt, as the published pipeline does.

    Args:
        clip: the model.
        tokenizer: CLIP's own tokenizer.
        preprocessor_config: the content of CLIP's `preprocessor_config.json`.
        chunk: images that a compiled call scores; fewer are padded, so that nothing recompiles and an image's score
            does not depend on how many others came with it.
    """

    def __init__(self, clip: CLIP, tokenizer: CaptionTokenizer, preprocessor_config: Mapping[str, Any], chunk: int = 8):
        size, expected = clip_sizes(preprocessor_config)[1], clip.config.vision.image_size
        if size != expected:
            raise UserError(
                f"preprocessor_config.json: crop_size is {size}, but CLIP's config.json says image_size {expected}"
            )
        tokenizer.check_vocab_size(clip.config.text.vocab_size)
        end = clip.config.text.eos_token_id
        if end not in (2, None, tokenizer.end_id):
            raise UserError(
                f"CLIP's config.json says eos_token_id {end}, but its tokenizer ends texts with {tokenizer.end_id}; "
                "tokenizer and model do not belong together, unless the config is wrong"
            )
        self.clip, self.tokenizer, self.preprocessor_config, self.chunk = clip, tokenizer, preprocessor_config, chunk
        graphdef, self._state = nnx.split(clip)

        @partial(Jit, kept=(graphdef,))
        def text_embeds(state: nnx.State, input_ids: jax.Array, attention_mask: jax.Array) -> jax.Array:
            return nnx.merge(graphdef, state).text_embeds(input_ids, attention_mask)

        @partial(Jit, kept=(graphdef,))
        def image_embeds(state: nnx.State, pixels: jax.Array) -> jax.Array:
            return nnx.merge(graphdef, state).image_embeds(pixels)

        @partial(Jit, kept=(graphdef,))
        def logits(state: nnx.State, images: jax.Array, text: jax.Array) -> jax.Array:
            return nnx.merge(graphdef, state).logits(images, text)

        self._text_embeds, self._image_embeds, self._logits = text_embeds, image_embeds, logits

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        dtype: jnp.dtype = jnp.float32,
        *,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """Load from a folder, or a repository of the Hub, with CLIP's weights, `config.json` and tokenizer.

        `source` and what follows the dtype are as in `weights.hub.resolve`.
        OpenAI's values stand in for those that a `preprocessor_config.json` lacks, or a folder without one.

        Raises:
            UserError: something is missing or does not fit; the message names the file.
        """
        folder = resolve(
            source, RANKER, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only
        )
        with blaming_cache(folder):
            clip = CLIP.from_pretrained(folder, dtype=dtype)
            preprocessor_config = read_preprocessing(folder, clip.config.vision.image_size)
        return cls(clip, CaptionTokenizer.from_pretrained(folder), preprocessor_config)

    def scores(self, images: np.ndarray, prompt: str) -> np.ndarray:
        """CLIP's logits_per_image, float32 [n]: higher fits better.

        `images` is uint8 [n, height, width, 3]. `prompt` is the user's own text, not normalised; it is padded and,
        beyond the model's positions (77 in the published one), truncated.
        """
        return self.scores_of([images], [prompt])[0]

    def scores_of(
        self, images: Sequence[np.ndarray], prompts: Sequence[str], scored: Callable[[int], None] | None = None
    ) -> list[np.ndarray]:
        """For each prompt the `scores` of its images: the same numbers, in fewer calls.

        The images of all prompts share the calls of the network. `scored(count)` is called when so many more images
        have their scores.
        """
        every = [(number, place) for number, some in enumerate(images) for place in range(len(some))]
        threads = len(workers(jax.local_devices()[:1]))
        different = list(dict.fromkeys(prompts))
        texts = dict(zip(different, side_by_side(self._text, different, threads), strict=True))

        def of_chunk(start: int) -> np.ndarray:
            some = every[start : start + self.chunk]
            pixels = clip_pixels([images[number][place] for number, place in some], self.preprocessor_config)
            pixels = np.pad(pixels, ((0, self.chunk - len(some)), (0, 0), (0, 0), (0, 0)))
            embeds = self._image_embeds(self._state, pixels)
            found = {
                prompt: np.asarray(self._logits(self._state, embeds, texts[prompt]))[:, 0]
                for prompt in {prompts[number] for number, _ in some}
            }
            return np.array([found[prompts[number]][row] for row, (number, _) in enumerate(some)], np.float32)

        scores = [np.empty(len(some), np.float32) for some in images]
        left = iter(every)
        for found in side_by_side(of_chunk, range(0, len(every), self.chunk), threads):
            for score, (number, place) in zip(found, left, strict=False):
                scores[number][place] = score
            if scored is not None:
                scored(len(found))
        return scores

    def compile(self) -> None:
        """Be ready for the first call of `scores`."""
        ids = self._read("")
        size = self.clip.config.vision.image_size
        pixels = np.zeros((self.chunk, size, size, 3), np.float32)
        self._text_embeds.lower(self._state, *ids).compile()
        self._image_embeds.lower(self._state, pixels).compile()
        text = self._text_embeds.eval_shape(self._state, *ids)
        self._logits.lower(self._state, self._image_embeds.eval_shape(self._state, pixels), text).compile()

    def _text(self, prompt: str) -> jax.Array:
        return self._text_embeds(self._state, *self._read(prompt))  # [1, projection_dim]

    def _read(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        return self.tokenizer([text], max_length=self.clip.config.text.max_position_embeddings)

    @staticmethod
    def rank(scores: np.ndarray, keep: int) -> np.ndarray:
        """Indices int [keep] of the best scores, best first; of equal ones the earlier comes first."""
        if not 1 <= keep <= len(scores):
            raise UserError(f"keep is {keep}, but must be from 1 to the number of candidates, {len(scores)}")
        return np.argsort(-np.asarray(scores), kind="stable")[:keep]


def read_preprocessing(folder: Path, size: int) -> dict[str, Any]:
    """A folder's `preprocessor_config.json`; values that it lacks are OpenAI's, for images of `size`.

    Raises:
        UserError: it cannot be read.
    """
    file = folder / PREPROCESSOR
    if not file.exists():
        return openai_preprocessing(size)
    found = read_object(file, "config_bytes")
    try:
        return {**openai_preprocessing(size), **check(found, Preprocessing)}
    except ParseError as error:
        raise UserError(f"{file}: {error}") from None


def openai_preprocessing(size: int) -> dict[str, Any]:
    """A `preprocessor_config.json` as OpenAI's models have it, for images of `size` pixels a side."""
    sizes = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
    return {"image_processor_type": "CLIPImageProcessor", **sizes, **PREPROCESSING}

"""How one image is drawn, as plainly as it can be said: read this first.

One prompt, one image; for every token the network reads everything again. `decode.py` does the same for many images at
once and much faster, and the tests hold its tokens against these.
"""

from __future__ import annotations

import jax
import numpy as np
from flax import nnx

from dalle_mini.generation.sampling import guidance_at, guide, is_guided, mask_beyond, resolve, sample
from dalle_mini.models.token_model import TokenModel
from dalle_mini.settings import SAMPLERS, SamplingParams

Text = tuple[np.ndarray, np.ndarray]  # input_ids and attention_mask, int [text_length] each


def draw_image(
    model: TokenModel,
    text: Text,
    key: jax.Array,
    sampling: SamplingParams | None = None,
    *,
    uncond: Text | None = None,
    codebook_size: int | None = None,
    forced: np.ndarray | None = None,
    sampler: str = SAMPLERS[0],
) -> np.ndarray:
    """Draw the tokens of one image.

    Args:
      model: as loaded.
      text: the caption.
      key: the image's JAX key; step t draws with `fold_in(key, t)`.
      sampling: one number each; None is the published rule.
      uncond: the empty caption, or what not to draw; needed where the guidance is not 1.
      codebook_size: ids from here on are never drawn; None leaves out the start token alone.
      forced: int [image_length]: tokens that are kept, and -1 where one is drawn.
      sampler: one of `SAMPLERS`.

    Returns:
      int32 [image_length].
    """
    length = model.image_length
    codebook_size = model.vocabulary_size - 1 if codebook_size is None else codebook_size
    sampling = resolve(sampling or SamplingParams(), 1, codebook_size, model.config.sampling.top_k)
    tokens = np.zeros(length, np.int32)
    for t in range(length):
        # The decoder's input is the tokens so far behind the start token; causal, it ignores the zeros that follow.
        shifted = np.concatenate([[model.start_token], tokens[:-1]])
        logits = _logits(model, *text, shifted, t)
        if is_guided(sampling):
            if uncond is None:
                raise ValueError(f"guidance {sampling.guidance} needs uncond")
            logits = guide(logits, _logits(model, *uncond, shifted, t), guidance_at(sampling, t, length))
        logits = mask_beyond(logits, codebook_size)
        step_key, top_k = jax.random.fold_in(key, t), int(sampling.top_k[0])
        row = step_key[None, None], logits[None, None], sampling
        token = sample(*row, most=top_k, unlimited=top_k == 0, sampler=sampler)
        tokens[t] = forced[t] if forced is not None and forced[t] >= 0 else token[0, 0]
    return tokens


@nnx.jit
def _logits(model: TokenModel, input_ids, attention_mask, decoder_input_ids, t) -> jax.Array:
    """Logits [vocabulary_size] of the token at position t."""
    return model(input_ids[None], attention_mask[None], decoder_input_ids[None])[0, t]

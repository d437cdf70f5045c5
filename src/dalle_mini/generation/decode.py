"""The decoding loop: one compiled program from caption tokens to image tokens.

What makes it quick: keys and values of past positions are cached; those of the caption are computed once a prompt and
shared by its candidates; the conditional and the unconditional rows run in one batch, so each weight is read once a
step; layers are unstacked ahead of the loop, since slicing a stack copies every weight at every token.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from dalle_mini.generation.sampling import guide, mask_beyond, sample, warp
from dalle_mini.models.dalle_bart import DalleBart, KVCache, unstack_layers


def generate_tokens(
    model: DalleBart,
    input_ids: jax.Array,
    attention_mask: jax.Array,
    keys: jax.Array,
    *,
    guidance: float = 10.0,
    uncond_input_ids: jax.Array | None = None,
    uncond_attention_mask: jax.Array | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    codebook_size: int | None = None,
) -> jax.Array:
    """Sample the image tokens of P captions.

    Args:
      input_ids, attention_mask: int [P, text_length].
      keys: JAX keys [P], one picture a caption, or [P, C], C candidates of each. A picture depends on its own key and
        caption alone: step t draws with `fold_in(key, t)`.
      guidance: super conditioning scale; 1 is the caption alone, and needs no unconditional rows.
      uncond_input_ids, uncond_attention_mask: int [P, text_length], the empty caption's.
      temperature: divides the logits.
      top_k: None is the model config's (50 as published), 1 is greedy, 0 is no limit.
      top_p: None is no limit.
      codebook_size: ids from here on are never sampled; None is the model's `image_vocab_size`, which leaves out the
        start token.

    Returns:
      int32 [*keys.shape, image_length], without the start token. There is no end token: every picture is full.

    Raises:
      ValueError: guidance is not 1 and the unconditional rows are missing.
    """
    guided = guidance != 1.0
    if guided:
        if uncond_input_ids is None or uncond_attention_mask is None:
            raise ValueError(f"guidance {guidance} needs uncond_input_ids and uncond_attention_mask")
        input_ids = jnp.concatenate([jnp.asarray(input_ids), jnp.asarray(uncond_input_ids)])
        attention_mask = jnp.concatenate([jnp.asarray(attention_mask), jnp.asarray(uncond_attention_mask)])
    graphdef, params = nnx.split(model)
    tokens = _generate(
        params,
        jnp.asarray(input_ids),
        jnp.asarray(attention_mask),
        keys[:, None] if keys.ndim == 1 else keys,
        guidance,
        temperature,
        top_p,
        graphdef=graphdef,
        guided=guided,
        top_k=model.config.top_k if top_k is None else top_k,
        codebook_size=model.config.image_vocab_size if codebook_size is None else codebook_size,
    )
    return tokens.reshape(*keys.shape, -1)


@partial(jax.jit, static_argnames=("graphdef", "guided", "top_k", "codebook_size"))
def _generate(
    params, input_ids, attention_mask, keys, guidance, temperature, top_p, *, graphdef, guided, top_k, codebook_size
):
    model: DalleBart = nnx.merge(graphdef, params)
    config = model.config
    prompts, candidates = keys.shape
    rows = len(input_ids)  # twice the prompts if guided: conditional, then unconditional

    states = model.encode(input_ids, attention_mask)
    cross_mask = attention_mask[:, None, None, :].astype(bool)
    layers = unstack_layers(model.decoder.layers, config.decoder_layers)
    cross = [layer.cross_attn.keys_values(states) for layer in layers]
    heads, length = config.decoder_attention_heads, config.image_length
    empty = jnp.zeros((rows, candidates, heads, length, config.d_model // heads), states.dtype)
    caches = [KVCache(empty, empty) for _ in layers]

    def step(t, carry):
        token, caches, tokens = carry
        x = model.decoder.embed(jnp.tile(token, (rows // prompts, 1)), t)  # [rows, C, D]
        filled = []
        for layer, layer_cross, cache in zip(layers, cross, caches, strict=True):
            x, cache = layer.step(x, layer_cross, cross_mask, cache, t)
            filled.append(cache)
        logits = model.logits(model.decoder.final_ln(x))  # [rows, C, V]
        if guided:
            logits = guide(logits[:prompts], logits[prompts:], guidance)
        logits = warp(mask_beyond(logits, codebook_size), temperature=temperature, top_k=top_k, top_p=top_p)
        token = sample(jax.vmap(jax.vmap(lambda key: jax.random.fold_in(key, t)))(keys), logits)
        return token, filled, tokens.at[..., t].set(token)

    start = jnp.full((prompts, candidates), config.decoder_start_token_id, jnp.int32)
    tokens = jnp.zeros((prompts, candidates, length), jnp.int32)
    return jax.lax.fori_loop(0, length, step, (start, caches, tokens))[2]

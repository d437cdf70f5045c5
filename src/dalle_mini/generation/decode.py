"""The decoding loop: caption tokens to image tokens, in two compiled programs.

`_prefill` does what is done once a caption, `_advance` draws some tokens more; between two calls of it the caller may
look at what there is.

What makes it quick: keys and values of past positions are cached; those of the caption are computed once a prompt and
shared by its candidates; the conditional and the unconditional rows run in one batch, so each weight is read once a
step; layers are unstacked ahead of the loop, since slicing a stack copies every weight at every token.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from dalle_mini.generation.sampling import guide, mask_beyond, sample, warp
from dalle_mini.models.dalle_bart import DalleBart, layer_graphdefs, unstack_layers
from dalle_mini.models.layers import KVCache

PROGRESS_EVERY = 16  # steps; a call of a compiled program costs less than a thousandth of them


class DecodeState(NamedTuple):
    """What the loop carries. P prompts of C candidates; R rows are 2 P with guidance, else P."""

    position: jax.Array  # int32 [], tokens drawn so far
    token: jax.Array  # int32 [P, C], the last one
    tokens: jax.Array  # int32 [P, C, image_length]
    caches: list[KVCache]  # of each layer, [R, C, H, T, K]


class Prefilled(NamedTuple):
    """What stays the same through the loop."""

    layers: list[Any]  # each layer's own parameters
    cross: list[Any]  # each layer's keys and values of the captions, [R, H, S, K]
    cross_mask: jax.Array  # bool [R, 1, 1, S]


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
    progress: Callable[[int], None] | None = None,
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
      progress: called every `PROGRESS_EVERY` steps with the number of tokens that each picture has so far.

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
    keys_2d = keys[:, None] if keys.ndim == 1 else keys
    fixed, state = _prefill(params, jnp.asarray(input_ids), jnp.asarray(attention_mask), keys_2d, graphdef=graphdef)
    length = model.config.image_length
    for stop in range(PROGRESS_EVERY, length + PROGRESS_EVERY, PROGRESS_EVERY) if progress else [length]:
        state = _advance(
            params,
            fixed,
            state,
            keys_2d,
            min(stop, length),
            guidance,
            temperature,
            top_p,
            graphdef=graphdef,
            guided=guided,
            top_k=model.config.top_k if top_k is None else top_k,
            codebook_size=model.config.image_vocab_size if codebook_size is None else codebook_size,
        )
        if progress:
            progress(int(state.position))  # waits for it
    return state.tokens.reshape(*keys.shape, length)


@partial(jax.jit, static_argnames="graphdef")
def _prefill(params, input_ids, attention_mask, keys, *, graphdef) -> tuple[Prefilled, DecodeState]:
    model: DalleBart = nnx.merge(graphdef, params)
    config = model.config
    states = model.encode(input_ids, attention_mask)
    layers = unstack_layers(model.decoder.layers, config.decoder_layers)
    fixed = Prefilled(
        layers=[nnx.state(layer) for layer in layers],
        cross=[layer.cross_attn.keys_values(states) for layer in layers],
        cross_mask=attention_mask[:, None, None, :].astype(bool),
    )
    heads, length = config.decoder_attention_heads, config.image_length
    empty = jnp.zeros((len(input_ids), keys.shape[1], heads, length, config.d_model // heads), states.dtype)
    state = DecodeState(
        position=jnp.zeros((), jnp.int32),
        token=jnp.full(keys.shape, config.decoder_start_token_id, jnp.int32),
        tokens=jnp.zeros((*keys.shape, length), jnp.int32),
        caches=[KVCache(empty, empty) for _ in layers],
    )
    return fixed, state


@partial(jax.jit, static_argnames=("graphdef", "guided", "top_k", "codebook_size"), donate_argnames="state")
def _advance(
    params, fixed, state, keys, stop, guidance, temperature, top_p, *, graphdef, guided, top_k, codebook_size
) -> DecodeState:
    """Draw the tokens up to position `stop`."""
    model: DalleBart = nnx.merge(graphdef, params)
    graphdefs = layer_graphdefs(model.decoder.layers, len(fixed.layers))
    layers = [nnx.merge(*parts) for parts in zip(graphdefs, fixed.layers, strict=True)]
    prompts = len(keys)

    def step(t, state: DecodeState) -> DecodeState:
        token = jnp.tile(state.token, (len(fixed.cross_mask) // prompts, 1))  # the same for both rows of a caption
        x = model.decoder.embed(token, t)  # [R, C, D]
        caches = []
        for layer, cross, cache in zip(layers, fixed.cross, state.caches, strict=True):
            x, cache = layer.step(x, cross, fixed.cross_mask, cache, t)
            caches.append(cache)
        logits = model.logits(model.decoder.finish(x))  # [R, C, V]
        if guided:
            logits = guide(logits[:prompts], logits[prompts:], guidance)
        logits = warp(mask_beyond(logits, codebook_size), temperature=temperature, top_k=top_k, top_p=top_p)
        token = sample(jax.vmap(jax.vmap(lambda key: jax.random.fold_in(key, t)))(keys), logits)
        return DecodeState(t + 1, token, state.tokens.at[..., t].set(token), caches)

    return jax.lax.fori_loop(state.position, stop, step, state)

"""The decoding loop: caption tokens to image tokens, in two compiled programs.

`_prefill` does what is done once a caption, `_advance` draws some tokens more; between two calls of it the caller may
look at what there is.

What makes it quick: keys and values of past positions are cached, and the cache grows with what has been written;
those of the caption are computed once a prompt and shared by its candidates; the conditional and the unconditional rows
run in one batch, so each weight is read once a step; and the weights lie as `prepare` puts them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dalle_mini.generation.prepare import prepare
from dalle_mini.generation.sampling import draw, guide, mask_beyond, sample, warp
from dalle_mini.models.dalle_bart import DalleBart
from dalle_mini.models.layers import KVCache

PROGRESS_EVERY = 16  # steps; a call of a compiled program costs less than a thousandth of them
# Lengths that a large cache grows through: each is a program to compile, and saves reading what is not there yet.
CACHES, LARGE_CACHE = 4, 1 << 22  # of a picture's row, in numbers


class DecodeState(NamedTuple):
    """What the loop carries. P prompts of C candidates; R rows are 2 P with guidance, else P."""

    position: jax.Array  # int32 [], tokens drawn so far
    token: jax.Array  # int32 [P, C], the last one
    tokens: jax.Array  # int32 [P, C, image_length]
    caches: list[KVCache]  # of each layer, [R, C, H, T, K]


class Prefilled(NamedTuple):
    """What stays the same through the loop."""

    cross: list[Any]  # each layer's keys and values of the captions, [R, H, S, K]
    cross_mask: jax.Array  # bool [R, 1, 1, S]


class Warping(NamedTuple):
    """What is done to the logits of each of P prompts."""

    guidance: jax.Array  # [P], at the first token
    last_guidance: jax.Array  # [P], at the last one, linear in between
    temperature: jax.Array  # [P]
    top_k: jax.Array  # int32 [P], 0 is no limit
    top_p: jax.Array | None  # [P]


PerPrompt = float | np.ndarray | jax.Array


def generate_tokens(
    model: DalleBart,
    input_ids: jax.Array,
    attention_mask: jax.Array,
    keys: jax.Array,
    *,
    guidance: PerPrompt = 10.0,
    last_guidance: PerPrompt | None = None,
    uncond_input_ids: jax.Array | None = None,
    uncond_attention_mask: jax.Array | None = None,
    temperature: PerPrompt = 1.0,
    top_k: int | np.ndarray | None = None,
    top_p: PerPrompt | None = None,
    codebook_size: int | None = None,
    given: jax.Array | None = None,
    progress: Callable[[int, jax.Array], None] | None = None,
    progress_every: int = PROGRESS_EVERY,
) -> jax.Array:
    """Sample the image tokens of P captions.

    Guidance, temperature, top_k and top_p are one number for all, or one for each caption, [P].

    Args:
      model: as loaded, or as `prepare` returns it, which saves preparing it anew each time.
      input_ids, attention_mask: int [P, text_length].
      keys: JAX keys [P], one picture a caption, or [P, C], C candidates of each. A picture depends on its own key and
        caption alone: step t draws with `fold_in(key, t)`.
      guidance: super conditioning scale; 1 is the caption alone, and needs no unconditional rows.
      last_guidance: the scale at the last token, where it is not that at the first; it changes linearly.
      uncond_input_ids, uncond_attention_mask: int [P, text_length], the empty caption's, or of what not to draw.
      temperature: divides the logits.
      top_k: None is the model config's (50 as published), 1 is greedy, 0 is no limit.
      top_p: None is no limit.
      codebook_size: ids from here on are never sampled; None is the model's `image_vocab_size`, which leaves out the
        start token.
      given: int [P, C, image_length] (or what broadcasts to it): tokens that are kept, and -1 where one is drawn. A
        token is drawn in view of those before it alone.
      progress: called every `progress_every` steps with the number of tokens that each picture has so far, and the
        tokens, [P, C, image_length].

    Returns:
      int32 [*keys.shape, image_length], without the start token. There is no end token: every picture is full.

    Raises:
      ValueError: guidance is not 1 and the unconditional rows are missing.
    """
    model, config = prepare(model), model.config
    prompts, length = len(keys), config.image_length
    last_guidance = guidance if last_guidance is None else last_guidance
    guided = bool(np.any(np.asarray(guidance) != 1.0) or np.any(np.asarray(last_guidance) != 1.0))
    if guided:
        if uncond_input_ids is None or uncond_attention_mask is None:
            raise ValueError(f"guidance {guidance} needs uncond_input_ids and uncond_attention_mask")
        input_ids = jnp.concatenate([jnp.asarray(input_ids), jnp.asarray(uncond_input_ids)])
        attention_mask = jnp.concatenate([jnp.asarray(attention_mask), jnp.asarray(uncond_attention_mask)])
    vocabulary = config.image_vocab_size + 1
    top_k = np.asarray(config.top_k if top_k is None else top_k, np.int32)
    top_k = np.where(top_k < vocabulary, top_k, 0)

    def each(value, dtype=jnp.float32):
        return jnp.broadcast_to(jnp.asarray(value, dtype), prompts)

    warping = Warping(
        each(guidance),
        each(last_guidance),
        each(temperature),
        each(top_k, jnp.int32),
        None if top_p is None else each(top_p),
    )
    keys_2d = keys[:, None] if keys.ndim == 1 else keys
    given = None if given is None else jnp.broadcast_to(jnp.asarray(given, jnp.int32), (*keys_2d.shape, length))
    graphdef, params = nnx.split(model)
    fixed, state = _prefill(params, jnp.asarray(input_ids), jnp.asarray(attention_mask), keys_2d, graphdef=graphdef)
    stops = set(range(progress_every, length, progress_every)) if progress else set()
    sizes = _cache_lengths(config)
    for stop in sorted(stops | set(sizes)):
        state = _advance(
            params,
            fixed,
            _with_room(state, next(size for size in sizes if size >= stop)),
            keys_2d,
            stop,
            warping,
            given,
            graphdef=graphdef,
            guided=guided,
            most=int(top_k.max()),
            unlimited=bool((top_k == 0).any()),
            codebook_size=config.image_vocab_size if codebook_size is None else codebook_size,
        )
        if stop in stops or (progress and stop == length):
            jax.block_until_ready(state.tokens)
            progress(stop, state.tokens)
    return state.tokens.reshape(*keys.shape, length)


def _cache_lengths(config) -> list[int]:
    """The positions at which the cache grows, and the end. They depend on the model alone, as rounding may on them."""
    length = config.image_length
    parts = CACHES if 2 * config.decoder_layers * length * config.d_model >= LARGE_CACHE else 1
    return sorted({-(-length * part // parts) for part in range(1, parts + 1)})


@partial(jax.jit, static_argnums=1)
def _grown(caches: list[KVCache], room: int) -> list[KVCache]:
    return jax.tree.map(lambda leaf: jnp.pad(leaf, [(0, 0)] * 3 + [(0, room - leaf.shape[3]), (0, 0)]), caches)


def _with_room(state: DecodeState, room: int) -> DecodeState:
    return state if state.caches[0].keys.shape[3] == room else state._replace(caches=_grown(state.caches, room))


@partial(jax.jit, static_argnames="graphdef")
def _prefill(params, input_ids, attention_mask, keys, *, graphdef) -> tuple[Prefilled, DecodeState]:
    model: DalleBart = nnx.merge(graphdef, params)
    config, layers = model.config, model.decoder.layers
    # One by one: the same numbers for a caption whatever the others are.
    states = jax.lax.map(lambda row: model.encode(row[0][None], row[1][None])[0], (input_ids, attention_mask))
    fixed = Prefilled(
        cross=[layer.cross_attn.keys_values(states) for layer in layers],
        cross_mask=attention_mask[:, None, None, :].astype(bool),
    )
    heads, length, room = config.decoder_attention_heads, config.image_length, _cache_lengths(config)[0]
    width = config.d_model // heads
    empty = jnp.zeros((len(input_ids), keys.shape[1], heads, room, width), states.dtype)
    state = DecodeState(
        position=jnp.zeros((), jnp.int32),
        token=jnp.full(keys.shape, config.decoder_start_token_id, jnp.int32),
        tokens=jnp.zeros((*keys.shape, length), jnp.int32),
        caches=[KVCache(empty, empty) for _ in layers],
    )
    return fixed, state


@partial(jax.jit, static_argnames=("graphdef", "guided", "most", "unlimited", "codebook_size"), donate_argnames="state")
def _advance(
    params, fixed, state, keys, stop, warping, given, *, graphdef, guided, most, unlimited, codebook_size
) -> DecodeState:
    """Draw the tokens up to position `stop`."""
    model: DalleBart = nnx.merge(graphdef, params)
    prompts, last = len(keys), max(model.config.image_length - 1, 1)

    def step(t, state: DecodeState) -> DecodeState:
        token = jnp.tile(state.token, (len(fixed.cross_mask) // prompts, 1))  # the same for both rows of a caption
        x = model.decoder.embed(token, t)  # [R, C, D]
        caches = []
        for layer, cross, cache in zip(model.decoder.layers, fixed.cross, state.caches, strict=True):
            x, cache = layer.step(x, cross, fixed.cross_mask, cache, t)
            caches.append(cache)
        logits = model.logits(model.decoder.finish(x))  # [R, C, V]
        if guided:
            scale = warping.guidance + (warping.last_guidance - warping.guidance) * (t / last)
            logits = guide(logits[:prompts], logits[prompts:], scale[:, None, None])
        token = _draw(keys, t, mask_beyond(logits, codebook_size), warping, most, unlimited)
        if given is not None:
            kept = given[..., t]
            token = jnp.where(kept >= 0, kept, token)
        return DecodeState(t + 1, token, state.tokens.at[..., t].set(token), caches)

    return jax.lax.fori_loop(state.position, stop, step, state)


def _draw(keys, t, logits, warping: Warping, most: int, unlimited: bool) -> jax.Array:
    """Keys [P, C], logits [P, C, V] -> tokens int32 [P, C]."""
    keys = jax.vmap(jax.vmap(lambda key: jax.random.fold_in(key, t)))(keys)
    temperature, top_k = warping.temperature[:, None], warping.top_k[:, None]
    top_p = None if warping.top_p is None else warping.top_p[:, None]
    # Rows without a limit draw from the whole vocabulary, in the same way whether there are others or not.
    free = limited = None
    if unlimited:
        p = None if top_p is None else top_p[..., None]
        free = sample(keys, warp(logits, temperature=temperature[..., None], top_k=None, top_p=p))
    if most:
        limited = draw(keys, logits, temperature=temperature, top_k=top_k, top_p=top_p, most=most)
    if free is None or limited is None:
        return limited if free is None else free
    return jnp.where(top_k == 0, free, limited)

"""The decoding loop: caption tokens to image tokens, in two compiled programs.

`prefill` does what is done once a caption, `advance` draws some tokens more; between two calls of it the caller may
look at what there is. On several devices each runs these programs for its share of the captions or of their candidates.

What makes it quick: keys and values of past positions are cached, and the cache grows with what has been written;
those of the caption are computed once a prompt and shared by its candidates; the conditional and the unconditional rows
run in one batch, so each weight is read once a step; and the weights lie as `prepare` puts them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dalle_mini.generation.prepare import prepare, prepared_shapes
from dalle_mini.generation.sampling import draw, guide, mask_beyond, sample, warp
from dalle_mini.models.config import DalleBartConfig
from dalle_mini.models.dalle_bart import DalleBart
from dalle_mini.models.layers import KVCache
from dalle_mini.runtime.xla import Jit

UNDRAWABLE = -1  # the token where the logits are not numbers: the weights are damaged, or too large for their type
EVERY = 16  # steps between two looks; a call of a compiled program costs less than a thousandth of them
# Lengths that a large cache grows through: each is a program to compile, and saves reading what is not there yet.
CACHES, LARGE_CACHE = 4, 1 << 22  # of a picture's row, in numbers


class DecodeState(NamedTuple):
    """What the loop carries. P prompts of C candidates; G is 2 with guidance, the conditional rows first, else 1."""

    position: jax.Array  # int32 [], tokens drawn so far
    token: jax.Array  # int32 [P, C], the last one
    tokens: jax.Array  # int32 [P, C, image_length]
    caches: list[KVCache]  # of each layer, [G P C, H, T, K]; on several devices one device's rows after another's


class Prefilled(NamedTuple):
    """What stays the same through the loop."""

    cross: list[Any]  # each layer's keys and values of the captions, [G, P, H, S, K]
    cross_mask: jax.Array  # bool [G, P, 1, 1, S]


class Warping(NamedTuple):
    """What is done to the logits of each of P prompts."""

    guidance: jax.Array  # [P], at the first token
    last_guidance: jax.Array  # [P], at the last one, linear in between
    temperature: jax.Array  # [P]
    top_k: jax.Array  # int32 [P], 0 is no limit
    top_p: jax.Array | None  # [P]


PerPrompt = float | np.ndarray | jax.Array


def generate_tokens(
    model: DalleBart, input_ids: jax.Array, attention_mask: jax.Array, keys: jax.Array, **options
) -> jax.Array:
    """Sample the image tokens of P captions.

    The arguments are those of `stream_tokens`, but for `every`.

    Returns:
      int32 [*keys.shape, image_length], without the start token. There is no end token: every picture is full.
    """
    *_, (_, tokens) = stream_tokens(model, input_ids, attention_mask, keys, every=model.config.image_length, **options)
    return tokens.reshape(*keys.shape, model.config.image_length)


def stream_tokens(
    model: DalleBart,
    input_ids: jax.Array,
    attention_mask: jax.Array,
    keys: jax.Array,
    *,
    every: int = EVERY,
    **options,
) -> Iterator[tuple[int, jax.Array]]:
    """Sample the image tokens of P captions, and stop for a look at them every so often.

    Guidance, temperature, top_k and top_p are one number for all, or one for each caption, [P].

    Args:
      model: as loaded, or as `prepare` returns it, which saves preparing it anew each time.
      input_ids, attention_mask: int [P, text_length].
      keys: JAX keys [P], one picture a caption, or [P, C], C candidates of each. A picture depends on its own key and
        caption alone: step t draws with `fold_in(key, t)`.
      every: steps from one look to the next.

    Options:
      guidance: super conditioning scale, 10 by default; 1 is the caption alone, and needs no unconditional rows.
      last_guidance: the scale at the last token, where it is not that at the first; it changes linearly.
      uncond_input_ids, uncond_attention_mask: int [P, text_length], the empty caption's, or of what not to draw.
      temperature: divides the logits; 1 by default.
      top_k: None is the model config's (50 as published), 1 is greedy, 0 is no limit.
      top_p: None is no limit.
      codebook_size: ids from here on are never sampled; None is the model's `image_vocab_size`, which leaves out the
        start token.
      given: int [P, C, image_length] (or what broadcasts to it): tokens that are kept, and -1 where one is drawn. A
        token is drawn in view of those before it alone.
      devices: share the captions where their number is a multiple of the devices', else the candidates. None computes
        where the model is.

    Yields:
      (number of tokens that each picture has so far, tokens int32 [P, C, image_length], zero where none is drawn yet).
      The last ones are complete. A token is `UNDRAWABLE` (-1) where the logits were not numbers.
      Arrays come as JAX dispatches them: wait for one to know that it is computed.

    Raises:
      ValueError: guidance is not 1 and the unconditional rows are missing; the devices cannot share the work evenly.
    """
    model = prepare(model)
    graphdef, params = nnx.split(model)
    call = _call(graphdef, model.config, input_ids, attention_mask, keys, **options)
    programs, length = call.programs, model.config.image_length
    if programs.mesh is not None:
        params = _on_all(params, programs.mesh)
    fixed, state = prefill(programs, params, call.text, call.keys)
    looks, sizes = set(range(every, length, every)) | {length}, _cache_lengths(model.config)
    for stop in sorted(looks | set(sizes)):
        state = with_room(state, next(size for size in sizes if size >= stop))
        state = advance(programs, params, fixed, state, call.keys, np.int32(stop), call.warping, call.given)
        if stop in looks:
            # The next call writes over the state: give away a copy.
            yield stop, state.tokens if stop == length else jnp.copy(state.tokens)


def compile_tokens(
    config: DalleBartConfig,
    dtype,
    input_ids: jax.Array,
    attention_mask: jax.Array,
    keys: jax.Array,
    *,
    int8: bool = False,
    **options,
) -> None:
    """Compile what `stream_tokens` runs for such arguments, while the weights are still being read.

    It needs their shapes alone. What is compiled is found again in JAX's compilation cache on disk, so there must be
    one. Of the arguments too only shapes count, and of the options what `Programs` has of them.
    """
    graphdef, params = prepared_shapes(config, dtype, int8=int8)
    call = _call(graphdef, config, input_ids, attention_mask, keys, **options)
    programs = call.programs
    prefill.lower(programs, params, call.text, call.keys).compile()
    fixed, state = jax.eval_shape(partial(prefill, programs), params, call.text, call.keys)
    for room in _cache_lengths(config):
        state = jax.eval_shape(partial(with_room, room=room), state)
        stop = np.int32(room)
        advance.lower(programs, params, fixed, state, call.keys, stop, call.warping, call.given).compile()


class Call(NamedTuple):
    """What `prefill` and `advance` take besides parameters and state."""

    programs: Programs
    text: jax.Array  # int [G, 2, P, S]
    keys: jax.Array  # [P, C]
    warping: Warping
    given: jax.Array | None  # int32 [P, C, image_length]


def _call(
    graphdef: nnx.GraphDef,
    config: DalleBartConfig,
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
    devices: Sequence[jax.Device] | None = None,
) -> Call:
    prompts = len(keys)
    keys = keys[:, None] if keys.ndim == 1 else keys
    last_guidance = guidance if last_guidance is None else last_guidance
    guided = bool(np.any(np.asarray(guidance) != 1.0) or np.any(np.asarray(last_guidance) != 1.0))
    text = [np.stack([input_ids, attention_mask])]  # [2, P, S] each
    if guided:
        if uncond_input_ids is None or uncond_attention_mask is None:
            raise ValueError(f"guidance {guidance} needs uncond_input_ids and uncond_attention_mask")
        text.append(np.stack([uncond_input_ids, uncond_attention_mask]))
    vocabulary = config.image_vocab_size + 1
    top_k = np.asarray(config.top_k if top_k is None else top_k, np.int32)
    codebook_size = min(vocabulary, config.image_vocab_size if codebook_size is None else codebook_size)
    top_k = np.where(top_k < codebook_size, top_k, 0)  # to sort all of them would take longer than a step

    # All this is numpy's: every operation of JAX's is a program to be found in the cache, some 7 ms at the first time.
    def each(value, dtype=np.float32):
        return np.broadcast_to(np.asarray(value, dtype), prompts)

    warping = Warping(
        each(guidance),
        each(last_guidance),
        each(temperature),
        each(top_k, np.int32),
        None if top_p is None else each(top_p),
    )
    if given is not None:
        given = np.broadcast_to(np.asarray(given, np.int32), (*keys.shape, config.image_length))
    programs = Programs(
        graphdef=graphdef,
        guided=guided,
        most=int(top_k.max()),
        unlimited=bool((top_k == 0).any()),
        codebook_size=codebook_size,
        shared=None if devices is None else _shared_axis(len(devices), *keys.shape),
        mesh=None if devices is None else _mesh(devices),
    )
    return Call(programs, np.stack(text).astype(np.int32), keys, warping, given)


def replicated(model: DalleBart, devices: Sequence[jax.Device]) -> DalleBart:
    """The model on each device, so that `stream_tokens` need not take it there."""
    graphdef, params = nnx.split(model)
    return nnx.merge(graphdef, _on_all(params, _mesh(devices)))


def _mesh(devices: Sequence[jax.Device]) -> Mesh:
    return Mesh(np.asarray(devices), ("devices",))


def _on_all(params, mesh: Mesh):
    return jax.device_put(params, NamedSharding(mesh, ALL))


def _shared_axis(devices: int, prompts: int, candidates: int) -> str:
    if prompts % devices == 0:
        return "prompts"
    if candidates % devices == 0:
        return "candidates"
    raise ValueError(f"{devices} devices cannot share {prompts} captions of {candidates} candidates evenly")


def _cache_lengths(config) -> list[int]:
    """The positions at which the cache grows, and the end. They depend on the model alone, as rounding may on them."""
    length = config.image_length
    parts = CACHES if 2 * config.decoder_layers * length * config.d_model >= LARGE_CACHE else 1
    return sorted({-(-length * part // parts) for part in range(1, parts + 1)})


@partial(jax.jit, static_argnums=1)
def _grown(caches: list[KVCache], room: int) -> list[KVCache]:
    return jax.tree.map(lambda leaf: jnp.pad(leaf, [(0, 0), (0, 0), (0, room - leaf.shape[2]), (0, 0)]), caches)


def with_room(state: DecodeState, room: int) -> DecodeState:
    """The state with caches of `room` positions."""
    return state if state.caches[0].keys.shape[2] == room else state._replace(caches=_grown(state.caches, room))


@dataclasses.dataclass(frozen=True)
class Programs:
    """What the two programs are compiled for.

    Attributes:
      graphdef: the prepared model's.
      guided: there are unconditional rows.
      most, unlimited: the largest top_k, and whether a row has none.
      codebook_size: ids from here on are never sampled.
      mesh, shared: the devices, and which axis they share, "prompts" or "candidates"; None where there is one.
    """

    graphdef: nnx.GraphDef
    guided: bool
    most: int
    unlimited: bool
    codebook_size: int
    mesh: Mesh | None = None
    shared: str | None = None

    def placed(self, spec: PartitionSpec) -> PartitionSpec:
        """The mesh's axes in place of "prompts" and "candidates"; "rows" are of each device its own."""
        return PartitionSpec(*("devices" if axis in (self.shared, "rows") else None for axis in spec))

    def on_each_device(self, function, ins: tuple, outs):
        """`function` of every device's share of its arguments, as the axes "prompts" and "candidates" are split."""
        if self.mesh is None:
            return function
        ins, outs = (jax.tree.map(self.placed, specs, is_leaf=is_spec) for specs in (ins, outs))
        return jax.shard_map(function, mesh=self.mesh, in_specs=ins, out_specs=outs, check_vma=False)


def is_spec(leaf) -> bool:
    return isinstance(leaf, PartitionSpec)


# How each argument is laid out, in the axes that may be shared.
ALL = PartitionSpec()
PICTURES = PartitionSpec("prompts", "candidates")
FIXED = PartitionSpec(None, "prompts")
STATE = DecodeState(ALL, PICTURES, PICTURES, PartitionSpec("rows"))


@partial(Jit, static_argnums=0)
def prefill(programs: Programs, params, text, keys) -> tuple[Prefilled, DecodeState]:
    """What is done once a caption; `text` is int [G, 2, P, S], ids and mask."""

    def run(params, text, keys):
        model: DalleBart = nnx.merge(programs.graphdef, params)
        config, layers = model.config, model.decoder.layers
        groups, _, prompts, size = text.shape
        rows = text.swapaxes(1, 2).reshape(-1, 2, size)
        # One by one: the same numbers for a caption whatever the others are.
        states = jax.lax.map(lambda row: model.encode(row[:1], row[1:])[0], rows)
        by_group = lambda leaf: leaf.reshape(groups, prompts, *leaf.shape[1:])  # noqa: E731
        fixed = Prefilled(
            cross=jax.tree.map(by_group, [layer.cross_attn.keys_values(states) for layer in layers]),
            cross_mask=text[:, 1, :, None, None, :].astype(bool),
        )
        heads, length, room = config.decoder_attention_heads, config.image_length, _cache_lengths(config)[0]
        kept = fixed.cross[0][0].dtype  # the type of a step, which need not be the encoder's
        empty = jnp.zeros((groups * keys.size, heads, room, config.d_model // heads), kept)
        state = DecodeState(
            position=jnp.zeros((), jnp.int32),
            token=jnp.full(keys.shape, config.decoder_start_token_id, jnp.int32),
            tokens=jnp.zeros((*keys.shape, length), jnp.int32),
            caches=[KVCache(empty, empty) for _ in layers],
        )
        return fixed, state

    ins = (ALL, PartitionSpec(None, None, "prompts"), PICTURES)
    return programs.on_each_device(run, ins, (FIXED, STATE))(params, text, keys)


@partial(Jit, short_sums=True, static_argnums=0, donate_argnames="state")
def advance(programs: Programs, params, fixed, state, keys, stop, warping, given) -> DecodeState:
    """Draw the tokens up to position `stop`."""

    def run(params, fixed, state, keys, stop, warping, given):
        model: DalleBart = nnx.merge(programs.graphdef, params)
        prompts, last = len(keys), max(model.config.image_length - 1, 1)
        groups = len(fixed.cross_mask)

        def rows(tree):  # [G, P, ...] -> [G P, ...]
            return jax.tree.map(lambda leaf: leaf.reshape(groups * prompts, *leaf.shape[2:]), tree)

        cross, cross_mask = rows(fixed.cross), rows(fixed.cross_mask)

        def step(t, state: DecodeState) -> DecodeState:
            x = model.decoder.embed(jnp.tile(state.token, (groups, 1)), t)  # [G P, C, D]
            caches = []
            for layer, layer_cross, cache in zip(model.decoder.layers, cross, state.caches, strict=True):
                x, cache = layer.step(x, layer_cross, cross_mask, cache, t)
                caches.append(cache)
            logits = model.logits(model.decoder.finish(x))  # [G P, C, V]
            if programs.guided:
                scale = warping.guidance + (warping.last_guidance - warping.guidance) * (t / last)
                logits = guide(logits[:prompts], logits[prompts:], scale[:, None, None])
            logits = mask_beyond(logits, programs.codebook_size)
            token = _draw(keys, t, logits, warping, programs.most, programs.unlimited)
            token = jnp.where(jnp.isfinite(jnp.max(logits, axis=-1)), token, UNDRAWABLE)
            if given is not None:
                kept = given[..., t]
                token = jnp.where(kept >= 0, kept, token)
            return DecodeState(t + 1, token, state.tokens.at[..., t].set(token), caches)

        return jax.lax.fori_loop(state.position, stop, step, state)

    ins = (ALL, FIXED, STATE, PICTURES, ALL, PartitionSpec("prompts"), PICTURES)
    return programs.on_each_device(run, ins, STATE)(params, fixed, state, keys, stop, warping, given)


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

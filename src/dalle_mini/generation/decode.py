"""The decoding loop: caption tokens to image tokens, in two compiled programs.

`prefill` does the work of a caption that is done once, and `decode_steps` draws some tokens more. Between two calls of
it the caller may see the tokens so far. `reference.py` is the same without anything that makes it quick.

Four things make a pass of the network quick. The network caches what it computed of past positions, and the cache grows
with what has been written. A caption is read once and shared by its candidates. The conditional and the unconditional
rows run in one batch, so each weight is read once a pass. And the weights lie as `optimize_for_decoding` puts them.

Parallel decoding makes fewer passes. The token at a position is the argmax of its logits, given the tokens before it,
plus noise that is a function of the image's key and the position alone. So an image is the one fixed point of applying
that rule to all positions at once: Jacobi iteration with coupled noise (Wiggers and Hoogeboom 2020, "Predictive
Sampling"; Teng et al. 2024, "Accelerating Auto-regressive Text-to-Image Generation with Training-free Speculative
Jacobi Decoding"). A pass reads a window of W tokens, of which the first is final and the others are drafts, and draws
the tokens that follow them. A drawn token is final if all drafts before it are what was drawn there. The others are the
next pass's drafts. Every image has its own window, so none waits for another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dalle_mini.generation.optimize import optimize_for_decoding, optimized_shapes
from dalle_mini.generation.programs import (
    ALL,
    CONTEXT,
    IMAGES,
    PROMPTS,
    TEXT,
    DecodeState,
    Programs,
    call_of,
    on_all,
)
from dalle_mini.generation.sampling import guidance_at, guide, mask_beyond, sample
from dalle_mini.models.token_model import TokenModel, TokenModelConfig
from dalle_mini.runtime.xla import WHOLE_LOOPS, Jit
from dalle_mini.settings import SamplingParams

UNDRAWABLE = -1  # the token where the logits are not numbers: the weights are damaged, or too large for their type
EVERY = 16  # tokens between two pauses; a call of a compiled program costs less than a thousandth of them
# Lengths that a large cache grows through: each is a program to compile, and saves reading what is not there yet.
CACHES, LARGE_CACHE = 4, 1 << 22  # of an image's row, in numbers


def generate_tokens(
    model: TokenModel, input_ids: jax.Array, attention_mask: jax.Array, keys: jax.Array, **options
) -> jax.Array:
    """Sample the image tokens of P captions.

    The arguments are those of `stream_tokens`, but for `every`.

    Returns:
      int32 [*keys.shape, image_length], without the start token. There is no end token: every image is full.
    """
    *_, (_, tokens) = stream_tokens(model, input_ids, attention_mask, keys, every=model.image_length, **options)
    return tokens.reshape(*keys.shape, model.image_length)


def stream_tokens(
    model: TokenModel,
    input_ids: jax.Array,
    attention_mask: jax.Array,
    keys: jax.Array,
    *,
    every: int = EVERY,
    **options,
) -> Iterator[tuple[int, jax.Array]]:
    """Sample the image tokens of P captions, and pause every so often to show them.

    Args:
      model: as loaded, or as `optimize_for_decoding` returns it, which saves optimizing it anew each time.
      input_ids, attention_mask: int [P, text_length].
      keys: JAX keys [P], one image a caption, or [P, C], C candidates of each. An image depends on its own key and
        caption alone: step t draws with `fold_in(key, t)`.
      every: tokens from one pause to the next.

    Options:
      guidance, last_guidance, temperature, top_k, top_p: the fields of `SamplingParams`, with its defaults. Each is one
        number for all captions, or an array [P].
      sampling: the same as one `SamplingParams`; those of the five that are given take precedence.
      uncond_input_ids, uncond_attention_mask: int [P, text_length], the empty caption's, or of what not to draw. A
        guidance of 1 needs none.
      codebook_size: ids from here on are never sampled; None is the model's `image_vocab_size`, which leaves out the
        start token.
      forced: int [P, C, image_length] (or what broadcasts to it): tokens that are kept, and -1 where one is drawn. A
        token is drawn in view of those before it alone.
      window: positions that a pass of the network draws. 1 is sequential decoding. More of them draw the same tokens,
        but for rounding, in fewer passes of more work each.
      sampler: "id" or "rank", as in `GenerationSettings`.
      loop: the form of the loop over the passes, for GPUs. The tokens do not depend on it.
      devices: share the captions where their number is a multiple of the devices', else the candidates. None computes
        where the model is.

    Yields:
      (number of tokens that each image has at least, tokens int32 [P, C, image_length], zero where none is final yet).
      The last ones are complete. A token is `UNDRAWABLE` (-1) where the logits were not numbers.
      Arrays come as JAX dispatches them: wait for one to know that it is computed.

    Raises:
      ValueError: guidance is not 1 and the unconditional rows are missing; the devices cannot share the work evenly.
    """
    for progress in decode_tokens(model, input_ids, attention_mask, keys, every=every, **options):
        yield progress.drawn, progress.tokens


class Decoded(NamedTuple):
    """The images of P prompts, C each, between two calls of the compiled program."""

    drawn: int  # tokens that are final in every image
    tokens: jax.Array  # int32 [P, C, image_length], zero where none is final yet
    passes: jax.Array  # int32 [P, C], passes of the network that each image took, prefill aside


def decode_tokens(
    model: TokenModel,
    input_ids: jax.Array,
    attention_mask: jax.Array,
    keys: jax.Array,
    *,
    every: int = EVERY,
    **options,
) -> Generator[Decoded, np.ndarray | None]:
    """`stream_tokens`, and the number of passes that each image takes.

    Who draws with it may send bool [P, C] at a pause: images that nobody wants any more. Their rows run on, so that no
    other image changes, but in parallel decoding no pass is made for them alone.
    """
    model = optimize_for_decoding(model)
    call = call_of(model, input_ids, attention_mask, keys, **options)
    if call.programs.mesh is not None:
        call = call._replace(params=on_all(call.params, call.programs.mesh))
    pauses = {*range(every, model.image_length, every), model.image_length}
    context, state = prefill(call.programs, call.params, call.text, call.keys)
    rooms = cache_lengths(model, call.programs.window)
    for stop in sorted(pauses.union(rooms)):
        room = next(room for room in rooms if room >= stop)
        state = state._replace(cache=model.grow(state.cache, room))
        state = decode_steps(
            call.programs, call.params, context, state, call.keys, np.int32(stop), call.sampling, call.forced
        )
        if stop in pauses:
            unwanted = yield Decoded(stop, *final_tokens(state))
            if unwanted is not None and call.programs.window > 1:
                state = state._replace(position=jnp.where(unwanted, model.image_length, state.position))


def compile_tokens(
    config: TokenModelConfig,
    dtype,
    input_ids: jax.Array,
    attention_mask: jax.Array,
    keys: jax.Array,
    *,
    int8: bool = False,
    **options,
) -> None:
    """Compile what `stream_tokens` runs for such arguments, while the weights are still being read.

    It needs their shapes alone. The programs are found again in JAX's compilation cache on disk, so there must be
    one. Only the shapes of the arguments count, and of the options what `Programs` has of them.
    """
    model = nnx.merge(*optimized_shapes(config, dtype, int8=int8))
    call = call_of(model, input_ids, attention_mask, keys, **options)
    prefill.lower(call.programs, call.params, call.text, call.keys).compile()
    context, state = prefill.eval_shape(call.programs, call.params, call.text, call.keys)
    for room in cache_lengths(model, call.programs.window):
        state = state._replace(cache=jax.eval_shape(partial(model.grow, room=room), state.cache))
        stop = np.int32(room)
        decode_steps.lower(
            call.programs, call.params, context, state, call.keys, stop, call.sampling, call.forced
        ).compile()


def cache_lengths(model: TokenModel, window: int = 1) -> list[int]:
    """The positions at which the cache grows, and the end. They depend on the model alone, as rounding may on them.

    In parallel decoding an image may be anywhere, so the cache is whole from the beginning.
    """
    length = model.image_length
    grows = window == 1 and length * model.config.cache_width >= LARGE_CACHE
    parts = CACHES if grows else 1
    return sorted({-(-length * part // parts) for part in range(1, parts + 1)})


@partial(Jit, kept=(), static_argnums=0)
def prefill(programs: Programs, params, text, keys) -> tuple[Any, DecodeState]:
    """Read the captions, `text` int [G, 2, P, S]; returns their context, leaves [G, P, ...], and the first state."""

    def run(params, text, keys):
        model: TokenModel = nnx.merge(programs.graphdef, params)
        groups, _, prompts, size = text.shape
        ids, mask = (text[:, part].reshape(-1, size) for part in range(2))
        context, cache = model.prefill(ids, mask, keys.shape[1], cache_lengths(model, programs.window)[0])
        none = jnp.zeros(() if programs.window == 1 else keys.shape, jnp.int32)
        tokens = jnp.zeros((*keys.shape, model.image_length), jnp.int32)
        context = jax.tree.map(lambda leaf: leaf.reshape(groups, prompts, *leaf.shape[1:]), context)
        return context, DecodeState(none, none, tokens, cache)

    return programs.on_each_device(run, (ALL, TEXT, IMAGES), (CONTEXT, programs.state))(params, text, keys)


def _on_gpu(programs: Programs, *_) -> dict[str, str]:
    return WHOLE_LOOPS if programs.loop.graph else {}


@partial(Jit, short_sums=True, on_gpu=_on_gpu, kept=(), static_argnums=0, donate_argnames="state")
def decode_steps(programs: Programs, params, context, state, keys, stop, sampling, forced) -> DecodeState:
    """Draw until the first `stop` tokens of every image are final."""

    def run(params, context, state, keys, stop, sampling, forced):
        model: TokenModel = nnx.merge(programs.graphdef, params)
        context = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), context)  # [G P, ...]
        step = one_step if programs.window == 1 else one_window

        def a_pass(state):
            return step(programs, model, context, state, keys, sampling, forced)

        return jax.lax.while_loop(
            lambda state: jnp.any(state.position < stop), partial(iteration, programs, a_pass, stop), state
        )

    ins = (ALL, CONTEXT, programs.state, IMAGES, ALL, PROMPTS, IMAGES)
    return programs.on_each_device(run, ins, programs.state)(params, context, state, keys, stop, sampling, forced)


def iteration(programs: Programs, a_pass: Callable[[DecodeState], DecodeState], stop, state) -> DecodeState:
    """The passes of one iteration of the loop. Those after the first `stop` tokens are final change nothing."""
    if programs.loop.passes == 1:
        return a_pass(state)

    def unless_done(_, state):
        done = jnp.all(state.position >= stop)
        # Where it is done, the cache is written with what it holds already, or with what the next pass writes anyway.
        again = state if programs.window > 1 else state._replace(position=jnp.minimum(state.position, stop - 1))
        drawn = a_pass(again)
        kept = jax.tree.map(partial(jnp.where, done), state._replace(cache=None), drawn._replace(cache=None))
        return kept._replace(cache=drawn.cache)

    return jax.lax.fori_loop(0, programs.loop.passes, unless_done, state, unroll=programs.loop.unrolled)


def one_step(programs: Programs, model: TokenModel, context, state: DecodeState, keys, sampling, forced) -> DecodeState:
    """Draw the next token of every image."""
    t = state.position
    last = jax.lax.dynamic_index_in_dim(state.tokens, jnp.maximum(t - 1, 0), axis=-1)  # [P, C, 1]
    inputs = jnp.tile(jnp.where(t == 0, model.start_token, last), (1 + programs.guided, 1, 1))
    logits, cache = model.step(inputs, context, state.cache, t)
    places = jnp.full(last.shape, t)
    drawn = draw(programs, logits, keys, places, model.image_length, sampling, forced)
    tokens = jax.lax.dynamic_update_index_in_dim(state.tokens, drawn, t, axis=-1)
    return DecodeState(t + 1, state.passes + 1, tokens, cache)


def one_window(
    programs: Programs, model: TokenModel, context, state: DecodeState, keys, sampling, forced
) -> DecodeState:
    """Draw a window of tokens of every image, and find out which of them are final."""
    groups, length, window = 1 + programs.guided, model.image_length, programs.window
    known = state.tokens if forced is None else jnp.where(forced >= 0, forced, state.tokens)
    start = jnp.minimum(state.position, length - window)
    places = start[..., None] + jnp.arange(window)  # [P, C, W]
    drafts = jnp.take_along_axis(known, places, axis=-1)
    inputs = jnp.take_along_axis(known, jnp.maximum(places - 1, 0), axis=-1)
    inputs = jnp.where(places == 0, model.start_token, inputs)
    logits, cache = model.step(jnp.tile(inputs, (groups, 1, 1)), context, state.cache, jnp.tile(start, (groups, 1)))
    drawn = draw(programs, logits, keys, places, length, sampling, forced)
    is_final = places < state.position[..., None]
    drawn = jnp.where(is_final, drafts, drawn)
    agreeing = jnp.cumprod(is_final | (drawn == drafts), axis=-1).sum(axis=-1)
    tokens = jnp.put_along_axis(known, places, drawn, axis=-1, inplace=False)
    return DecodeState(
        position=start + jnp.minimum(agreeing + 1, window),
        passes=state.passes + (state.position < length),
        tokens=with_drafts(tokens, start + window, window),
        cache=cache,
    )


def with_drafts(tokens: jax.Array, end: jax.Array, count: int) -> jax.Array:
    """Drafts for the `count` positions from `end` on: each is the nearest token above it that was drawn.

    Args:
      tokens: int32 [P, C, image_length]; each of those before `end` was drawn at least once.
      end: int32 [P, C].
    """
    length = tokens.shape[-1]
    side = math.isqrt(length)
    places = end[..., None] + jnp.arange(count)
    above = places - ((places - end[..., None]) // side + 1) * side
    sources = jnp.where(above >= 0, above, end[..., None] - 1)
    drafts = jnp.take_along_axis(tokens, jnp.clip(sources, 0, length - 1), axis=-1)
    first, second = jnp.arange(tokens.shape[0])[:, None, None], jnp.arange(tokens.shape[1])[None, :, None]
    return tokens.at[first, second, places].set(drafts, mode="drop")


def draw(
    programs: Programs,
    logits: jax.Array,
    keys: jax.Array,
    places: jax.Array,
    length: int,
    sampling: SamplingParams,
    forced: jax.Array | None,
) -> jax.Array:
    """Logits [G P, C, W, V] at places int [P, C, W] of images of `length` tokens to tokens int32 [P, C, W]."""
    prompts, candidates, window = places.shape
    if programs.guided:
        at = jax.tree.map(lambda value: value[:, None, None], sampling)
        scale = guidance_at(at, places, length)
        logits = guide(logits[:prompts], logits[prompts:], scale[..., None])
    logits = mask_beyond(logits, programs.codebook_size).reshape(prompts, candidates * window, -1)
    fold = jax.vmap(jax.vmap(jax.vmap(jax.random.fold_in, (None, 0))))
    tokens = sample(
        fold(keys, places).reshape(prompts, -1),
        logits,
        sampling,
        most=programs.most,
        unlimited=programs.unlimited,
        sampler=programs.sampler,
    )
    tokens = jnp.where(jnp.isfinite(jnp.max(logits, axis=-1)), tokens, UNDRAWABLE).reshape(places.shape)
    if forced is None:
        return tokens
    kept = jnp.take_along_axis(forced, places, axis=-1)
    return jnp.where(kept >= 0, kept, tokens)


@Jit
def final_tokens(state: DecodeState) -> tuple[jax.Array, jax.Array]:
    """Tokens int32 [P, C, image_length], zero where none is final yet, and passes int32 [P, C]: copies."""
    is_final = jnp.arange(state.tokens.shape[-1]) < state.position[..., None]
    return jnp.where(is_final, state.tokens, 0), jnp.broadcast_to(jnp.copy(state.passes), state.tokens.shape[:-1])

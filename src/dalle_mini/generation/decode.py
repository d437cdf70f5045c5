"""The decoding loop: caption tokens to image tokens, in two compiled programs.

`prefill` does what is done once a caption, `decode_steps` draws some tokens more; between two calls of it the caller
may see what there is. On several devices each runs these programs for its share of the captions or of their candidates.
`reference.py` is the same without anything that makes it quick.

Four things make it quick. The network caches what it computed of past positions, and the cache grows with what has been
written. A caption is read once and shared by its candidates. The conditional and the unconditional rows run in one
batch, so each weight is read once a step. And the weights lie as `optimize_for_decoding` puts them.
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

from dalle_mini.generation.optimize import optimize_for_decoding, optimized_shapes
from dalle_mini.generation.sampling import guidance_at, guide, is_guided, mask_beyond, resolve, sample
from dalle_mini.models.token_model import TokenModel, TokenModelConfig
from dalle_mini.runtime.xla import Jit
from dalle_mini.settings import SamplingParams

UNDRAWABLE = -1  # the token where the logits are not numbers: the weights are damaged, or too large for their type
EVERY = 16  # steps between two pauses; a call of a compiled program costs less than a thousandth of them
# Lengths that a large cache grows through: each is a program to compile, and saves reading what is not there yet.
CACHES, LARGE_CACHE = 4, 1 << 22  # of an image's row, in numbers


class DecodeState(NamedTuple):
    """The loop's state. P prompts of C candidates; G is 2 with guidance, the conditional rows first, else 1."""

    position: jax.Array  # int32 [], tokens drawn so far
    token: jax.Array  # int32 [P, C], the last one
    tokens: jax.Array  # int32 [P, C, image_length]
    cache: Any  # the network's, G P C rows; on several devices one device's rows after another's


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
      every: steps from one pause to the next.

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
      devices: share the captions where their number is a multiple of the devices', else the candidates. None computes
        where the model is.

    Yields:
      (number of tokens that each image has so far, tokens int32 [P, C, image_length], zero where none is drawn yet).
      The last ones are complete. A token is `UNDRAWABLE` (-1) where the logits were not numbers.
      Arrays come as JAX dispatches them: wait for one to know that it is computed.

    Raises:
      ValueError: guidance is not 1 and the unconditional rows are missing; the devices cannot share the work evenly.
    """
    model = optimize_for_decoding(model)
    call = _call(model, input_ids, attention_mask, keys, **options)
    params = call.params if call.programs.mesh is None else _on_all(call.params, call.programs.mesh)
    context, state = prefill(call.programs, params, call.text, call.keys)
    length, rooms = model.image_length, cache_lengths(model)
    pauses = set(range(every, length, every)) | {length}
    for stop in sorted(pauses | set(rooms)):
        room = next(room for room in rooms if room >= stop)
        state = state._replace(cache=model.grow(state.cache, room))
        state = decode_steps(
            call.programs, params, context, state, call.keys, np.int32(stop), call.sampling, call.forced
        )
        if stop in pauses:
            # The next call writes over the state: give away a copy.
            yield stop, state.tokens if stop == length else jnp.copy(state.tokens)


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
    call = _call(model, input_ids, attention_mask, keys, **options)
    prefill.lower(call.programs, call.params, call.text, call.keys).compile()
    context, state = jax.eval_shape(partial(prefill, call.programs), call.params, call.text, call.keys)
    for room in cache_lengths(model):
        state = state._replace(cache=jax.eval_shape(partial(model.grow, room=room), state.cache))
        stop = np.int32(room)
        decode_steps.lower(
            call.programs, call.params, context, state, call.keys, stop, call.sampling, call.forced
        ).compile()


class Call(NamedTuple):
    """The arguments of `prefill` and `decode_steps` besides the state."""

    programs: Programs
    params: nnx.State
    text: np.ndarray  # int [G, 2, P, S], ids and mask
    keys: jax.Array  # [P, C]
    sampling: SamplingParams  # of arrays [P]
    forced: np.ndarray | None  # int32 [P, C, image_length]


def _call(
    model: TokenModel,
    input_ids: jax.Array,
    attention_mask: jax.Array,
    keys: jax.Array,
    *,
    sampling: SamplingParams | None = None,
    uncond_input_ids: jax.Array | None = None,
    uncond_attention_mask: jax.Array | None = None,
    codebook_size: int | None = None,
    forced: jax.typing.ArrayLike | None = None,
    devices: Sequence[jax.Device] | None = None,
    **rule,
) -> Call:
    asked = dataclasses.replace(sampling or SamplingParams(), **rule)
    keys = keys[:, None] if keys.ndim == 1 else keys
    vocabulary = model.vocabulary_size
    codebook_size = vocabulary - 1 if codebook_size is None else min(vocabulary, codebook_size)
    sampling = resolve(asked, len(keys), codebook_size, model.config.sampling.top_k)
    guided = is_guided(sampling)
    text = [np.stack([input_ids, attention_mask])]  # [2, P, S] each
    if guided:
        if uncond_input_ids is None or uncond_attention_mask is None:
            raise ValueError(f"guidance {asked.guidance} needs uncond_input_ids and uncond_attention_mask")
        text.append(np.stack([uncond_input_ids, uncond_attention_mask]))
    kept = None
    if forced is not None:
        kept = np.broadcast_to(np.asarray(forced, np.int32), (*keys.shape, model.image_length))
    graphdef, params = nnx.split(model)
    programs = Programs(
        graphdef=graphdef,
        guided=guided,
        most=int(sampling.top_k.max()),
        unlimited=bool((sampling.top_k == 0).any()),
        codebook_size=codebook_size,
        mesh=None if devices is None else mesh_of(devices, *keys.shape),
    )
    return Call(programs, params, np.stack(text).astype(np.int32), keys, sampling, kept)


def replicated(model: TokenModel, devices: Sequence[jax.Device]) -> TokenModel:
    """The model on each device, so that `stream_tokens` need not take it there."""
    graphdef, params = nnx.split(model)
    return nnx.merge(graphdef, _on_all(params, mesh_of(devices, len(devices), 1)))


def mesh_of(devices: Sequence[jax.Device], prompts: int, candidates: int) -> Mesh:
    """The devices as a mesh with axes "prompts" and "candidates", one of which has them all.

    Raises:
      ValueError: they cannot share so many prompts of so many candidates evenly.
    """
    count = len(devices)
    if prompts % count == 0:
        shape = (count, 1)
    elif candidates % count == 0:
        shape = (1, count)
    else:
        raise ValueError(f"{count} devices cannot share {prompts} captions of {candidates} candidates evenly")
    return Mesh(np.asarray(devices).reshape(shape), ("prompts", "candidates"))


def _on_all(params, mesh: Mesh):
    return jax.device_put(params, NamedSharding(mesh, ALL))


def cache_lengths(model: TokenModel) -> list[int]:
    """The positions at which the cache grows, and the end. They depend on the model alone, as rounding may on them."""
    length = model.image_length
    parts = CACHES if length * model.config.cache_width >= LARGE_CACHE else 1
    return sorted({-(-length * part // parts) for part in range(1, parts + 1)})


@dataclasses.dataclass(frozen=True)
class Programs:
    """The static arguments of the two programs.

    Attributes:
      graphdef: the optimized model's.
      guided: there are unconditional rows.
      most, unlimited: the largest top_k, and whether a prompt has none.
      codebook_size: ids from here on are never sampled.
      mesh: the devices that share the work, of `mesh_of`; None where there is one.
    """

    graphdef: nnx.GraphDef
    guided: bool
    most: int
    unlimited: bool
    codebook_size: int
    mesh: Mesh | None = None

    def on_each_device(self, function, ins: tuple, outs):
        """`function` on every device's share of its arguments; `ins` and `outs` name the mesh's axes."""
        if self.mesh is None:
            return function
        return jax.shard_map(function, mesh=self.mesh, in_specs=ins, out_specs=outs, check_vma=False)


# How each argument is split among the devices of a mesh.
ALL = PartitionSpec()
PROMPTS = PartitionSpec("prompts")
IMAGES = PartitionSpec("prompts", "candidates")
TEXT = PartitionSpec(None, None, "prompts")
CONTEXT = PartitionSpec(None, "prompts")
STATE = DecodeState(ALL, IMAGES, IMAGES, cache=PartitionSpec(("prompts", "candidates")))  # type: ignore[arg-type]  # a spec in each array's place


@partial(Jit, static_argnums=0)
def prefill(programs: Programs, params, text, keys) -> tuple[Any, DecodeState]:
    """Read the captions, `text` int [G, 2, P, S]; returns their context, leaves [G, P, ...], and the first state."""

    def run(params, text, keys):
        model: TokenModel = nnx.merge(programs.graphdef, params)
        groups, _, prompts, size = text.shape
        ids, mask = (text[:, part].reshape(-1, size) for part in range(2))
        context, cache = model.prefill(ids, mask, keys.shape[1], cache_lengths(model)[0])
        state = DecodeState(
            position=jnp.zeros((), jnp.int32),
            token=jnp.full(keys.shape, model.start_token, jnp.int32),
            tokens=jnp.zeros((*keys.shape, model.image_length), jnp.int32),
            cache=cache,
        )
        return jax.tree.map(lambda leaf: leaf.reshape(groups, prompts, *leaf.shape[1:]), context), state

    return programs.on_each_device(run, (ALL, TEXT, IMAGES), (CONTEXT, STATE))(params, text, keys)


@partial(Jit, short_sums=True, static_argnums=0, donate_argnames="state")
def decode_steps(programs: Programs, params, context, state, keys, stop, sampling, forced) -> DecodeState:
    """Draw the tokens up to position `stop`."""

    def run(params, context, state, keys, stop, sampling, forced):
        model: TokenModel = nnx.merge(programs.graphdef, params)
        prompts, groups = len(keys), 1 + programs.guided
        context = jax.tree.map(lambda leaf: leaf.reshape(groups * prompts, *leaf.shape[2:]), context)

        def step(t, state: DecodeState) -> DecodeState:
            rows = jnp.tile(state.token, (groups, 1))[..., None]  # [G P, C, 1]
            logits, cache = model.step(rows, context, state.cache, t)
            logits = logits[..., 0, :]  # [G P, C, V]
            if programs.guided:
                scale = guidance_at(sampling, t, model.image_length)
                logits = guide(logits[:prompts], logits[prompts:], scale[:, None, None])
            logits = mask_beyond(logits, programs.codebook_size)
            step_keys = jax.vmap(jax.vmap(lambda key: jax.random.fold_in(key, t)))(keys)
            token = sample(step_keys, logits, sampling, most=programs.most, unlimited=programs.unlimited)
            token = jnp.where(jnp.isfinite(jnp.max(logits, axis=-1)), token, UNDRAWABLE)
            if forced is not None:
                token = jnp.where(forced[..., t] >= 0, forced[..., t], token)
            return DecodeState(t + 1, token, state.tokens.at[..., t].set(token), cache)

        return jax.lax.fori_loop(state.position, stop, step, state)

    ins = (ALL, CONTEXT, STATE, IMAGES, ALL, PROMPTS, IMAGES)
    return programs.on_each_device(run, ins, STATE)(params, context, state, keys, stop, sampling, forced)

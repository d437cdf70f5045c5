"""The sampling rule: from logits to one token a row, in the published order: guidance, temperature, top-k, top-p.

The parameters are `settings.SamplingParams`. `guide` to `top_p_filter` are the logits processors, `process_logits` runs
the last three of them, `sample` is what the decoder calls. Every function works on the last axis and takes any leading
ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dalle_mini.settings import SAMPLERS, SAMPLING, SamplingParams

jax.tree_util.register_dataclass(SamplingParams, data_fields=SAMPLING, meta_fields=())


def stack(each: Sequence[SamplingParams]) -> SamplingParams:
    """The parameters of one prompt each, as arrays [prompts]. A top_k or top_p that is None must be None in all."""
    columns = {name: [getattr(one, name) for one in each] for name in SAMPLING}
    pairs = zip(columns["guidance"], columns["last_guidance"], strict=True)
    columns["last_guidance"] = [first if last is None else last for first, last in pairs]
    return SamplingParams(**{name: None if each[0] is None else np.asarray(each) for name, each in columns.items()})


def resolve(sampling: SamplingParams, prompts: int, codebook_size: int, top_k: int) -> SamplingParams:
    """The parameters as numpy arrays [prompts], float32 and for top_k int32; only top_p may still be None.

    `top_k` stands in where the parameters name none. One that is as large as the codebook becomes 0, no limit: sorting
    the whole vocabulary would take longer than a step.
    """
    values = {name: getattr(sampling, name) for name in SAMPLING}
    limit = np.asarray(top_k if sampling.top_k is None else sampling.top_k, np.int32)
    values["top_k"] = np.where(limit < codebook_size, limit, 0)
    values["last_guidance"] = sampling.guidance if sampling.last_guidance is None else sampling.last_guidance

    # numpy, as every operation of JAX is a program to be found in the cache, some 7 ms at the first time.
    def array(name: str, value) -> np.ndarray | None:
        dtype = np.int32 if name == "top_k" else np.float32
        return None if value is None else np.broadcast_to(np.asarray(value, dtype), prompts)

    return SamplingParams(**{name: array(name, value) for name, value in values.items()})


def is_guided(sampling: SamplingParams) -> bool:
    """Whether a prompt needs unconditional rows."""
    return any(np.any(np.asarray(scale) != 1.0) for scale in (sampling.guidance, sampling.last_guidance))


def guide(cond: jax.Array, uncond: jax.Array, guidance: jax.Array | float) -> jax.Array:
    """Super conditioning, i.e. classifier-free guidance (Ho and Salimans 2021): uncond + guidance * (cond - uncond)."""
    return uncond + guidance * (cond - uncond)


def guidance_at(sampling: SamplingParams, step: jax.Array | int, steps: int) -> jax.Array:
    """The scale at one of `steps` steps: linear from `guidance` at the first to `last_guidance` at the last."""
    return sampling.guidance + (sampling.last_guidance - sampling.guidance) * (step / max(steps - 1, 1))


def mask_beyond(logits: jax.Array, size: int) -> jax.Array:
    """Rule out the ids from `size` on: those that no codebook entry stands for."""
    return jnp.where(jnp.arange(logits.shape[-1]) < size, logits, -jnp.inf)


def top_k_filter(logits: jax.Array, k: int) -> jax.Array:
    """Keep the k largest logits, of equal ones the lower ids, the rest -inf; 0 or the whole vocabulary keeps all."""
    if not 0 < k < logits.shape[-1]:
        return logits
    # Behind the barrier: XLA would see that only the k-th is used, and sort the whole vocabulary for it (80 times
    # slower on a CPU).
    values, ids = jax.lax.optimization_barrier(jax.lax.top_k(logits, k))
    # Exactly k, as bfloat16 logits tie often: `top_k` puts the lower of equal ids first, so its last is the cut.
    threshold, last = values[..., -1:], ids[..., -1:]
    kept = (logits > threshold) | ((logits == threshold) & (jnp.arange(logits.shape[-1]) <= last))
    return jnp.where(kept, logits, -jnp.inf)


def top_p_filter(logits: jax.Array, p: jax.Array | float) -> jax.Array:
    """Nucleus sampling (Holtzman et al. 2019): keep the likeliest tokens until they hold probability p, at least one.

    The token that crosses p is kept, and of equally likely ones the lower ids; p = 1 keeps all.
    """
    ranked = jnp.flip(jnp.sort(logits, axis=-1), axis=-1)
    held = jnp.cumsum(jax.nn.softmax(ranked, axis=-1), axis=-1)[..., :-1]  # by a token and the likelier ones
    # p = 1 apart: rounded to float32, the sum may reach 1 before the last token.
    kept = jnp.pad((held < p) | (p >= 1), [(0, 0)] * (held.ndim - 1) + [(1, 0)], constant_values=True)
    threshold = jnp.min(jnp.where(kept, ranked, jnp.inf), axis=-1, keepdims=True)
    above, tied = logits > threshold, logits == threshold
    room = jnp.sum(kept, axis=-1, keepdims=True) - jnp.sum(above, axis=-1, keepdims=True)
    return jnp.where(above | (tied & (jnp.cumsum(tied, axis=-1) <= room)), logits, -jnp.inf)


def process_logits(
    logits: jax.Array,
    *,
    temperature: jax.Array | float,
    top_k: int | None = None,
    top_p: jax.Array | float | None = None,
) -> jax.Array:
    """Temperature, then top-k, then top-p; a top_k of 0 or None and a top_p of None leave the filter out."""
    logits = top_k_filter(logits / temperature, top_k or 0)
    return logits if top_p is None else top_p_filter(logits, top_p)


def noise_of_ids(keys: jax.Array, ids: jax.Array) -> jax.Array:
    """Gumbel noise of each id: keys [...], ids int [..., K] -> float32 [..., K].

    It is a function of key and id alone, whichever the other ids are: the hash of both (threefry, Salmon et al. 2011)
    is the number u in (0, 1) of -log(-log(1 - u)).
    """

    def words(key, ids):
        return jax.vmap(lambda one: jax.random.key_data(jax.random.fold_in(key, one))[0])(ids)

    for _ in range(keys.ndim):
        words = jax.vmap(words)
    # Near 0 u keeps all of its digits: there the noise is large, and decides.
    u = jnp.minimum((words(keys, ids).astype(jnp.float32) + 0.5) * 2**-32, 1 - 2**-24)
    return -jnp.log(-jnp.log1p(-u))


def noise_of_ranks(keys: jax.Array, ids: jax.Array) -> jax.Array:
    """Gumbel noise of each place, whatever id stands there: keys [...], ids int [..., K] -> float32 [..., K]."""
    draw = jax.random.gumbel
    for _ in range(keys.ndim):
        draw = jax.vmap(draw, (0, None))
    return draw(keys, (ids.shape[-1],))


# A token is the argmax of its logit plus noise (the Gumbel-max trick). With noise by rank, a change of the logits that
# swaps two ranks swaps their noise, too; with noise by id, drafts come true more often at high temperatures.
NOISE = {"id": noise_of_ids, "rank": noise_of_ranks}  # the keys are `SAMPLERS`


def sample_of_few(
    keys: jax.Array, logits: jax.Array, sampling: SamplingParams, most: int, sampler: str = SAMPLERS[0]
) -> jax.Array:
    """Temperature, top-k, top-p and the draw in one, distributed as a draw from `process_logits` is.

    Only the `most` likeliest tokens are looked at, sorted. The draw depends neither on `most` nor on the parameters of
    other rows.

    Args:
        keys: [...]; logits: [..., V].
        sampling: its temperature, top_k and top_p are broadcast to [...]; a top_p of None is no limit.
        most: the largest top_k, below V.
        sampler: one of `SAMPLERS`.
    """
    # Among equal logits the lower ids come first.
    values, ids = jax.lax.top_k(logits / sampling.temperature[..., None], most)
    values = jnp.where(jnp.arange(most) < sampling.top_k[..., None], values, -jnp.inf)
    if sampling.top_p is not None:
        top_p = sampling.top_p[..., None]
        probabilities = jax.nn.softmax(values, axis=-1)
        likelier = jnp.cumsum(probabilities, axis=-1) - probabilities
        kept = (likelier < top_p) | (top_p >= 1) | (jnp.arange(most) == 0)
        values = jnp.where(kept, values, -jnp.inf)
    rank = jnp.argmax(values + NOISE[sampler](keys, ids), axis=-1)
    return jnp.take_along_axis(ids, rank[..., None], axis=-1)[..., 0].astype(jnp.int32)


def sample_of_all(
    keys: jax.Array, logits: jax.Array, sampling: SamplingParams, sampler: str = SAMPLERS[0]
) -> jax.Array:
    """`sample_of_few` without a top-k: keys [...], logits [..., V] -> int32 [...]."""
    p = None if sampling.top_p is None else sampling.top_p[..., None]
    values = process_logits(logits, temperature=sampling.temperature[..., None], top_p=p)
    ids = jnp.broadcast_to(jnp.arange(logits.shape[-1]), logits.shape)
    return jnp.argmax(values + NOISE[sampler](keys, ids), axis=-1).astype(jnp.int32)


def sample(
    keys: jax.Array,
    logits: jax.Array,
    sampling: SamplingParams,
    *,
    most: int,
    unlimited: bool,
    sampler: str = SAMPLERS[0],
) -> jax.Array:
    """Keys [P, C], logits [P, C, V] and resolved parameters [P] -> tokens int32 [P, C].

    `most` is the largest top_k, and `unlimited` tells whether a prompt has none (0). A prompt's tokens depend on
    neither.
    """
    sampling = jax.tree.map(lambda value: value[:, None], sampling)
    if not unlimited:
        return sample_of_few(keys, logits, sampling, most, sampler)
    free = sample_of_all(keys, logits, sampling, sampler)
    if not most:
        return free
    limited = sample_of_few(keys, logits, sampling, most, sampler)
    return jnp.where(sampling.top_k == 0, free, limited)

"""From logits to one sampled token a row, in the published order: guidance, temperature, top-k, top-p.

Every function works on the last axis and takes any leading ones.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def guide(cond: jax.Array, uncond: jax.Array, guidance: jax.Array | float) -> jax.Array:
    """Super conditioning, i.e. classifier-free guidance (Ho and Salimans 2021): uncond + guidance * (cond - uncond)."""
    return uncond + guidance * (cond - uncond)


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


def warp(
    logits: jax.Array, *, temperature: jax.Array | float, top_k: int | None, top_p: jax.Array | float | None
) -> jax.Array:
    """Temperature, then top-k, then top-p; None leaves a filter out."""
    logits = logits / temperature
    if top_k is not None:
        logits = top_k_filter(logits, top_k)
    return logits if top_p is None else top_p_filter(logits, top_p)


def sample(keys: jax.Array, logits: jax.Array) -> jax.Array:
    """One token for each key: keys [...], logits [..., V] -> int32 [...]. A row's draw depends on its own key alone."""
    draw = jax.random.categorical
    for _ in range(keys.ndim):
        draw = jax.vmap(draw)
    return draw(keys, logits).astype(jnp.int32)


def draw(
    keys: jax.Array, logits: jax.Array, *, temperature: jax.Array, top_k: jax.Array, top_p: jax.Array | None, most: int
) -> jax.Array:
    """Temperature, top-k, top-p and the draw in one, distributed as `sample(keys, warp(logits, ...))` is.

    Only the `most` likeliest tokens are looked at, sorted, and each rank has a noise of its own, so the draw depends
    neither on `most` nor on the settings of other rows.

    Args:
        keys: [...]; logits: [..., V].
        temperature, top_k, top_p: of each row, broadcast to [...]; top_p None is no limit.
        most: the largest top_k, below V.
    """
    values, ids = jax.lax.top_k(logits / temperature[..., None], most)  # of equal logits the lower ids first
    values = jnp.where(jnp.arange(most) < top_k[..., None], values, -jnp.inf)
    if top_p is not None:
        probabilities = jax.nn.softmax(values, axis=-1)
        likelier = jnp.cumsum(probabilities, axis=-1) - probabilities
        kept = (likelier < top_p[..., None]) | (top_p[..., None] >= 1) | (jnp.arange(most) == 0)
        values = jnp.where(kept, values, -jnp.inf)
    noise = jax.random.gumbel
    for _ in range(keys.ndim):
        noise = jax.vmap(noise, (0, None))
    rank = jnp.argmax(values + noise(keys, (most,)), axis=-1)
    return jnp.take_along_axis(ids, rank[..., None], axis=-1)[..., 0].astype(jnp.int32)

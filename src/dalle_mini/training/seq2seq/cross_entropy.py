"""The cross-entropy behind the decoder's head, without logits in memory.

The logits of 256 positions over 16,385 codes take 17 MB an image in float32, and autodiff keeps them several times.
Here they exist for a chunk of positions at a time. The derivative of the loss is kept for the gradient, in the type of
the computation.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dalle_mini.models.linear import kernel_gradient

POSITIONS = 64  # positions of a chunk


class Scores(NamedTuple):
    """Weighted sums over labels: -log p(label), and 1 where the label is the most likely code."""

    total: jax.Array  # float32 []
    right: jax.Array  # float32 []


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def cross_entropy(hidden, kernel, bias, labels, weights, vocab_size: int) -> Scores:
    """The scores of the logits `hidden @ kernel + bias`, in float32; columns from `vocab_size` on are padding.

    hidden [B, T, D], kernel [D, V], bias [V] or None, labels int [B, T], weights float32 [B, T]. Gradients flow from
    `total` to hidden, kernel and bias.
    """
    return _forward(hidden, kernel, bias, labels, weights, vocab_size, slopes=False)[0]


def _with_slopes(hidden, kernel, bias, labels, weights, vocab_size):
    scores, slopes = _forward(hidden, kernel, bias, labels, weights, vocab_size, slopes=True)
    return scores, (hidden, kernel, bias, slopes)


def _backward(vocab_size, kept, cotangents):
    hidden, kernel, bias, slopes = kept
    scale = cotangents.total
    as_float32 = {"preferred_element_type": jnp.float32}
    hidden_grad = jnp.einsum("pbtv,dv->pbtd", slopes, kernel, **as_float32) * scale
    of_kernel = partial(jnp.einsum, "pbtd,pbtv->dv", **as_float32)
    operands = _in_chunks(hidden), slopes
    if hidden.dtype == jnp.bfloat16:
        kernel_grad = jax.lax.platform_dependent(*operands, cpu=kernel_gradient, default=of_kernel) * scale
    else:
        kernel_grad = of_kernel(*operands) * scale
    bias_grad = None if bias is None else (slopes.sum((0, 1, 2), dtype=jnp.float32) * scale).astype(bias.dtype)
    hidden_grad = hidden_grad.swapaxes(0, 1).reshape(hidden.shape).astype(hidden.dtype)
    return hidden_grad, kernel_grad.astype(kernel.dtype), bias_grad, None, None


cross_entropy.defvjp(_with_slopes, _backward)


def _forward(hidden, kernel, bias, labels, weights, vocab_size, *, slopes: bool):
    """(scores, d total / d logits [chunks, B, T / chunks, V] or None)."""
    codes = jnp.arange(kernel.shape[1])

    def add_chunk(scores, part):
        hidden, labels, weights = part
        logits = jnp.einsum("btd,dv->btv", hidden, kernel, preferred_element_type=jnp.float32)
        if bias is not None:
            logits = logits + bias.astype(jnp.float32)
        if len(codes) > vocab_size:
            logits = jnp.where(codes < vocab_size, logits, jnp.finfo(jnp.float32).min)
        highest = logits.max(axis=-1)
        shifted = jnp.exp(logits - highest[..., None])
        norm = shifted.sum(axis=-1)
        is_label = labels[..., None] == codes
        # A sum in which only the label is not zero: a lookup would gather a head that is split over devices.
        of_label = jnp.where(is_label, logits, 0).sum(axis=-1)
        total = scores.total + jnp.sum(weights * (highest + jnp.log(norm) - of_label))
        right = scores.right + jnp.sum(weights * (of_label >= highest))
        slope = None
        if slopes:
            slope = (shifted / norm[..., None] - is_label) * weights[..., None]
            slope = slope.astype(hidden.dtype)
        return Scores(total, right), slope

    parts = jax.tree.map(_in_chunks, (hidden, labels, weights.astype(jnp.float32)))
    return jax.lax.scan(add_chunk, Scores(jnp.zeros(()), jnp.zeros(())), parts)


def _in_chunks(array):
    """[B, T, ...] -> [chunks, B, T / chunks, ...]: the batch keeps its axis, over which devices share it."""
    batch, length, *rest = array.shape
    size = POSITIONS if length % POSITIONS == 0 else length
    return array.reshape(batch, length // size, size, *rest).swapaxes(0, 1)

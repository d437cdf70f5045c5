"""An update's batch in pieces, one after the other, so that what a network keeps for its gradient is a piece's alone.

Where the loss is a sum over examples, so is its gradient. A contrastive loss is of all examples with all others: then
the embeddings come first, without what their gradients need, and the loss of all of them at once; its gradient at each
embedding is carried back through the network piece by piece (GradCache, Gao et al. 2021). That is exact, and costs one
more pass forward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def accumulated(
    piece: Callable[[Any, jax.Array], tuple[Any, Any]], batch: Any, key: jax.Array, accumulation: int
) -> tuple[Any, Any]:
    """What `piece(rows, key)` gives, (`Loss`, gradients), summed over `accumulation` pieces of a batch."""
    if accumulation == 1:
        return piece(batch, jax.random.fold_in(key, 0))

    def one(sums, numbered):
        rows, number = numbered
        loss, grads = piece(rows, jax.random.fold_in(key, number))
        return jax.tree.map(jnp.add, sums, (loss._replace(aux=()), grads)), loss.aux

    pieces = in_pieces(batch, accumulation)
    loss, grads = jax.eval_shape(piece, jax.tree.map(lambda rows: rows[0], pieces), key)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (loss._replace(aux=()), grads))
    (loss, grads), aux = jax.lax.scan(one, zeros, (pieces, jnp.arange(accumulation)))
    return loss._replace(aux=together(aux)), grads


def through_embeddings(
    embed: Callable[[Any, Any], Any],
    joint: Callable[[Any, Any], tuple[jax.Array, Any]],
    params: Any,
    batch: Any,
    accumulation: int,
    keep: Callable[[Any], Any],
) -> tuple[Any, Any]:
    """(`Loss`, gradients) of a loss of all embeddings of a batch, the network running on a piece at a time.

    Args:
        embed: (parameters, rows) -> embeddings, arrays with a row for each example.
        joint: (parameters, embeddings of the whole batch) -> (total, `Loss`).
        params: those that gradients are wanted of.
        keep: from the gradients of `params` to the form in which they are summed.
    """
    pieces = in_pieces(batch, accumulation)
    embeds = together(jax.lax.map(lambda rows: embed(params, rows), pieces))
    (direct, pulls), loss = jax.grad(joint, argnums=(0, 1), has_aux=True)(params, embeds)

    def one(grads, piece):
        rows, pull = piece
        _, back = jax.vjp(lambda params: embed(params, rows), params)
        return jax.tree.map(jnp.add, grads, keep(back(pull)[0])), None

    grads, _ = jax.lax.scan(one, keep(direct), (pieces, in_pieces(pulls, accumulation)))
    return loss, grads


def in_pieces(batch: Any, count: int) -> Any:
    """Arrays [count, rows of a piece, ...].

    Row i goes to piece i % count: so each piece is spread over the devices as the batch is, and none moves.
    """
    return jax.tree.map(lambda rows: rows.reshape(-1, count, *rows.shape[1:]).swapaxes(0, 1), batch)


def together(pieces: Any) -> Any:
    """The inverse of `in_pieces`."""
    return jax.tree.map(lambda rows: rows.swapaxes(0, 1).reshape(-1, *rows.shape[2:]), pieces)

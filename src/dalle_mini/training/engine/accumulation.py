"""An update's batch in microbatches, one after the other: a network keeps for its gradient what one of them needs.

Where the loss is a sum over examples, so is its gradient. A contrastive loss compares all examples with each other.
Then the embeddings come first, without what their gradients need, and the loss on all of them at once; its gradient at
each embedding is carried back through the network microbatch by microbatch (GradCache, Gao et al. 2021). That is
exact, and costs one more pass forward.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def accumulated(
    microbatch: Callable[[Any, jax.Array], tuple[Any, Any]], batch: Any, key: jax.Array, accumulation: int
) -> tuple[Any, Any]:
    """(`Loss`, gradients) of `microbatch(rows, key)`, summed over `accumulation` microbatches of a batch."""
    if accumulation == 1:
        return microbatch(batch, jax.random.fold_in(key, 0))

    def one(sums, numbered):
        rows, number = numbered
        loss, grads = microbatch(rows, jax.random.fold_in(key, number))
        return jax.tree.map(jnp.add, sums, (loss._replace(aux=()), grads)), loss.aux

    parts = split_microbatches(batch, accumulation)
    loss, grads = jax.eval_shape(microbatch, jax.tree.map(lambda rows: rows[0], parts), key)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (loss._replace(aux=()), grads))
    (loss, grads), aux = jax.lax.scan(one, zeros, (parts, jnp.arange(accumulation)))
    return loss._replace(aux=join_microbatches(aux)), grads


def through_embeddings(
    embed: Callable[[Any, Any], Any],
    joint: Callable[[Any, Any], tuple[jax.Array, Any]],
    params: Any,
    batch: Any,
    accumulation: int,
    keep: Callable[[Any], Any],
) -> tuple[Any, Any]:
    """(`Loss`, gradients) of a loss on all embeddings of a batch. The network runs on one microbatch at a time.

    Args:
        embed: (parameters, rows) -> embeddings, arrays with a row for each example.
        joint: (parameters, embeddings of the whole batch) -> (total, `Loss`).
        params: the gradients are taken at these.
        keep: from the gradients of `params` to the form in which they are summed.
    """
    parts = split_microbatches(batch, accumulation)
    embeds = join_microbatches(jax.lax.map(lambda rows: embed(params, rows), parts))
    (direct, pulls), loss = jax.grad(joint, argnums=(0, 1), has_aux=True)(params, embeds)

    def one(grads, part):
        rows, pull = part
        _, back = jax.vjp(lambda params: embed(params, rows), params)
        return jax.tree.map(jnp.add, grads, keep(back(pull)[0])), None

    grads, _ = jax.lax.scan(one, keep(direct), (parts, split_microbatches(pulls, accumulation)))
    return loss, grads


def split_microbatches(batch: Any, count: int) -> Any:
    """Arrays [count, rows of a microbatch, ...].

    Row i goes to microbatch i % count: so each one is spread over the devices as the batch is, and no row moves.
    """
    return jax.tree.map(lambda rows: rows.reshape(-1, count, *rows.shape[1:]).swapaxes(0, 1), batch)


def join_microbatches(parts: Any) -> Any:
    """The inverse of `split_microbatches`."""
    return jax.tree.map(lambda rows: rows.swapaxes(0, 1).reshape(-1, *rows.shape[2:]), parts)

"""Contrastive losses of images and texts, over a batch as a whole, whatever devices it is spread over.

Rows stay where their images are; the other side's unit vectors, which are small, go to every device. Logits are made in
blocks of columns, and again for the gradient, so that no device ever holds more than its rows of one block.

Two numbers a row, of its caption and of its image, tell what belongs together: rows that share either number are right
answers to each other. So a caption may occur twice in a batch, and an image with several captions too.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dalle_mini.training.engine.sharding import everywhere, keep_rows

BLOCK = 1024  # columns
NOBODY = -1  # the numbers of an image that is no caption's
PADDING = -2


class Side(NamedTuple):
    """Images or texts of a batch: unit vectors float32 [n, D], and their numbers int32 [n, 2]."""

    vectors: jax.Array
    numbers: jax.Array


class Contrast(NamedTuple):
    """The loss summed over captions, and the number of captions whose best image is a right one; float32 []."""

    total: jax.Array
    right: jax.Array


def softmax_loss(images: Side, texts: Side, scale: jax.Array, block: int = BLOCK) -> Contrast:
    """The mean of two cross-entropies, of each image's text and of each text's image (Radford et al. 2021).

    Right answers share a target alike. Images beyond the number of texts are wrong answers to every text, and have no
    text to find.
    """
    asked = Side(*(array[: len(texts.vectors)] for array in images))
    to_text, _ = _cross_entropy(asked, texts, scale, block)
    to_image, right = _cross_entropy(texts, images, scale, block)
    return Contrast((jnp.sum(to_text) + jnp.sum(to_image)) / 2, jnp.sum(right))


def sigmoid_loss(images: Side, texts: Side, scale: jax.Array, bias: jax.Array, block: int = BLOCK) -> Contrast:
    """Each pair by itself is right or wrong (SigLIP, Zhai et al. 2023): -log sigmoid(+-(scale cosine + bias))."""

    def add(sums, logits, same, real):
        total, best = sums
        losses = jax.nn.softplus(jnp.where(real, jnp.where(same, -logits, logits), 0))
        return total + jnp.sum(jnp.where(real, losses, 0), axis=1), _better(best, logits, same)

    rows = len(texts.vectors)
    total, (_, right) = _over_blocks(add, (jnp.zeros(rows), _no_best(rows)), texts, images, scale, bias, block)
    return Contrast(jnp.sum(total), jnp.sum(right))


def _cross_entropy(rows: Side, columns: Side, scale: jax.Array, block: int) -> tuple[jax.Array, jax.Array]:
    """(each row's cross-entropy, 1 where its best column is a right one), both float32 [n]."""

    def add(sums, logits, same, real):
        peak, mass, wanted, count, best = sums
        top = jax.lax.stop_gradient(jnp.maximum(peak, jnp.max(logits, axis=1)))
        mass = mass * jnp.exp(peak - top) + jnp.sum(jnp.exp(logits - top[:, None]), axis=1)
        wanted += jnp.sum(jnp.where(same, logits, 0), axis=1)
        return top, mass, wanted, count + jnp.sum(same, axis=1), _better(best, logits, same)

    n = len(rows.vectors)
    nothing = jnp.zeros(n)
    begin = (jnp.full(n, -jnp.inf), nothing, nothing, nothing, _no_best(n))
    peak, mass, wanted, count, (_, right) = _over_blocks(add, begin, rows, columns, scale, jnp.float32(0), block)
    return peak + jnp.log(mass) - wanted / count, right


def _over_blocks(add, sums, rows: Side, columns: Side, scale: jax.Array, bias: jax.Array, block: int):
    """`add(sums, logits, same, real)` over blocks of columns, logits float32 [n, block]; -inf where none is `real`."""
    rows = Side(*map(keep_rows, rows))
    columns = Side(*map(everywhere, columns))
    count = len(columns.vectors)
    block = min(block, count)
    filled = -count % block
    vectors = jnp.pad(columns.vectors, ((0, filled), (0, 0)))
    numbers = jnp.pad(columns.numbers, ((0, filled), (0, 0)), constant_values=PADDING)
    blocks = (vectors.reshape(-1, block, vectors.shape[1]), numbers.reshape(-1, block, 2))

    @jax.checkpoint  # a block's logits are made again for the gradient
    def one(sums, columns):
        vectors, numbers = columns
        cosines = jnp.matmul(rows.vectors, vectors.T, precision=jax.lax.Precision.HIGHEST)
        real = numbers[:, 0] != PADDING
        logits = jnp.where(real, keep_rows(cosines) * scale + bias, -jnp.inf)
        same = jnp.any(rows.numbers[:, None] == numbers, axis=-1)
        return add(sums, logits, same, real), None

    return jax.lax.scan(one, jax.tree.map(keep_rows, sums), blocks)[0]


def _no_best(rows: int) -> tuple[jax.Array, jax.Array]:
    return jnp.full(rows, -jnp.inf), jnp.zeros(rows)


def _better(best: tuple[jax.Array, jax.Array], logits: jax.Array, same: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(the highest logit so far, whether it is a right answer's); the first of equal ones counts."""
    logits = jax.lax.stop_gradient(logits)
    value, right = best
    place = jnp.argmax(logits, axis=1)[:, None]
    found = jnp.take_along_axis(logits, place, axis=1)[:, 0]
    is_right = jnp.take_along_axis(same, place, axis=1)[:, 0].astype(jnp.float32)
    return jnp.maximum(value, found), jnp.where(found > value, is_right, right)

"""Batches in microbatches: rows come back in their order, and sums and joint losses are those of the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dalle_mini.training.engine.accumulation import (
    accumulated,
    join_microbatches,
    split_microbatches,
    through_embeddings,
)
from dalle_mini.training.engine.trainer import Loss

MICROBATCHES = 3
KERNEL = jnp.asarray(np.random.default_rng(0).standard_normal((4, 5)), jnp.float32)
ROWS = jnp.asarray(np.random.default_rng(1).standard_normal((6, 4)), jnp.float32)


def embed(kernel, rows):
    return jnp.tanh(rows @ kernel)


def test_microbatches_and_back():
    batch = {"one": np.arange(6), "two": np.arange(24).reshape(12, 2)}  # two rows of an example lie apart
    microbatches = split_microbatches(batch, MICROBATCHES)
    np.testing.assert_array_equal(microbatches["one"], [[0, 3], [1, 4], [2, 5]])
    np.testing.assert_array_equal(microbatches["two"][1, :, 0] // 2 % 6, [1, 4, 1, 4])
    jax.tree.map(np.testing.assert_array_equal, join_microbatches(microbatches), batch)


def test_a_sum_over_examples():
    def microbatch(rows, key):
        def total(kernel):
            embeds = embed(kernel, rows)
            return jnp.sum(embeds**2), Loss(jnp.sum(embeds**2), jnp.float32(len(rows)), {}, embeds)

        grads, loss = jax.grad(total, has_aux=True)(KERNEL)
        return loss, grads

    (whole, grads), (loss, summed) = (
        accumulated(microbatch, ROWS, jax.random.key(0), count) for count in (1, MICROBATCHES)
    )
    assert float(loss.total) == pytest.approx(float(whole.total), rel=1e-6)
    assert loss.weight == whole.weight == 6
    np.testing.assert_allclose(loss.aux, whole.aux, rtol=1e-6)
    np.testing.assert_allclose(summed, grads, rtol=1e-5, atol=1e-6)


def test_a_loss_of_all_with_all():
    def joint(kernel, embeds):
        total = jax.nn.logsumexp(embeds @ embeds.T) + jnp.sum(kernel**2)  # parameters may be in it as well
        return total, Loss(total, jnp.float32(1), {})

    loss, grads = through_embeddings(embed, joint, KERNEL, ROWS, MICROBATCHES, lambda grads: grads)
    total, wanted = jax.value_and_grad(lambda kernel: joint(kernel, embed(kernel, ROWS))[0])(KERNEL)
    assert float(loss.total) == pytest.approx(float(total), rel=1e-6)
    np.testing.assert_allclose(grads, wanted, rtol=1e-5, atol=1e-6)

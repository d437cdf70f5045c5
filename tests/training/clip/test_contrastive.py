"""Both contrastive losses against numpy, their gradients against autodiff of the plain form, whole and in blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dalle_mini.training.clip.contrastive import NOBODY, Side, sigmoid_loss, softmax_loss

N, COPIES, WIDTH = 7, 3, 5
CAPTIONS = [0, 1, 2, 1, 3, 4, 5]  # the second and the fourth are the same
PICTURES = [0, 1, 2, 3, 4, 4, 5]  # one picture has two captions
BLOCKS = [100, 4, pytest.param(1, marks=pytest.mark.slow)]


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.fixture(params=[0, COPIES])
def sides(request):
    rng = np.random.default_rng(request.param)
    pictures, texts = unit(rng.standard_normal((N + request.param, WIDTH))), unit(rng.standard_normal((N, WIDTH)))
    numbers = np.stack([CAPTIONS, PICTURES], axis=1).astype(np.int32)
    own = np.pad(numbers, ((0, request.param), (0, 0)), constant_values=NOBODY)
    return Side(jnp.asarray(pictures, jnp.float32), jnp.asarray(own)), Side(
        jnp.asarray(texts, jnp.float32), jnp.asarray(numbers)
    )


def oracle(sides, loss, scale, bias=0.0):
    """In float64, pair by pair."""
    pictures, texts = (np.asarray(side.vectors, np.float64) for side in sides)
    logits = scale * pictures @ texts.T + bias
    same = np.zeros(logits.shape, bool)
    for i in range(N):
        for j in range(N):
            same[i, j] = CAPTIONS[i] == CAPTIONS[j] or PICTURES[i] == PICTURES[j]
    right = sum(same[logits[:, j].argmax(), j] for j in range(N))
    if loss == "sigmoid":
        return -np.log(1 / (1 + np.exp(np.where(same, -logits, logits)))).sum(), right
    total = 0.0
    for i in range(N):
        to_text, to_picture = logits[i], logits[:, i]
        total += np.log(np.exp(to_text).sum()) - to_text[same[i]].mean()
        total += np.log(np.exp(to_picture).sum()) - to_picture[same[:, i]].mean()
    return total / 2, right


def ours(loss, sides, scale, bias, block):
    if loss == "softmax":
        return softmax_loss(*sides, scale, block)
    return sigmoid_loss(*sides, scale, bias, block)


def plain(loss, sides, scale, bias):
    """The naive form: all logits at once."""
    pictures, texts = sides
    logits = scale * pictures.vectors @ texts.vectors.T
    same = (pictures.numbers[:, None] == texts.numbers).any(axis=-1)
    if loss == "sigmoid":
        return -jax.nn.log_sigmoid(jnp.where(same, 1, -1) * (logits + bias)).sum()
    square, own = logits[:N], same[:N] / same[:N].sum(axis=1, keepdims=True)
    to_text = -(own * jax.nn.log_softmax(square, axis=1)).sum()
    to_picture = -(own * jax.nn.log_softmax(logits, axis=0)[:N]).sum()
    return (to_text + to_picture) / 2


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_values_and_gradients(loss, block, sides):
    scale, bias = jnp.float32(6.0), jnp.float32(-2.0)
    wanted, right = oracle(sides, loss, 6.0, -2.0 if loss == "sigmoid" else 0.0)
    found = ours(loss, sides, scale, bias, block)
    assert float(found.total) == pytest.approx(wanted, rel=1e-5)
    assert float(found.right) == right

    def in_blocks(pictures, texts, scale, bias):
        moved = sides[0]._replace(vectors=pictures), sides[1]._replace(vectors=texts)
        return ours(loss, moved, scale, bias, block).total

    def at_once(pictures, texts, scale, bias):
        moved = sides[0]._replace(vectors=pictures), sides[1]._replace(vectors=texts)
        return plain(loss, moved, scale, bias)

    arguments = (sides[0].vectors, sides[1].vectors, scale, bias)
    for one, other in zip(
        *(jax.jit(jax.grad(function, argnums=(0, 1, 2, 3)))(*arguments) for function in (in_blocks, at_once)),
        strict=True,
    ):
        assert np.isfinite(one).all()
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_no_logit_is_too_large():
    """At the highest temperature's inverse, of vectors that are opposite or the same."""
    vectors = jnp.asarray(np.repeat(np.eye(2), 2, axis=0) * [[1.0], [-1], [1], [-1]], jnp.float32)
    numbers = jnp.stack([jnp.arange(4)] * 2, axis=1)
    sides = Side(vectors, numbers), Side(-vectors, numbers)
    for loss in ("softmax", "sigmoid"):
        total = ours(loss, sides, jnp.float32(100.0), jnp.float32(-10.0), 1).total
        wanted = 4 * 200.0 if loss == "softmax" else 4 * (100.0 + 10) + 4 * 90.0
        assert float(total) == pytest.approx(wanted, rel=1e-3)


def test_the_full_matrix_is_never_there():
    """The matrix would be 4096 by 4096, on the way forward and back."""
    side = Side(jnp.zeros((4096, 8)), jnp.zeros((4096, 2), jnp.int32))
    for loss in ("softmax", "sigmoid"):

        def total(vectors, loss=loss):
            moved = side._replace(vectors=vectors)
            return ours(loss, (moved, moved), jnp.float32(1.0), jnp.float32(0.0), 256).total

        text = jax.jit(jax.grad(total)).lower(side.vectors).as_text()
        assert "4096x256x" in text
        assert "4096x4096x" not in text

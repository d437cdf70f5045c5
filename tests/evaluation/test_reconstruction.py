import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dalle_mini.evaluation.reconstruction import BATCH, codebook_use, psnr, reconstruct


class Stub(nnx.Module):
    """A picture's token is its first pixel's red in tenths; twice that is what it decodes to."""

    def __init__(self):
        self.scale = nnx.Param(jnp.array(10.0))

    def encode(self, images):
        return jnp.round(images[:, 0, 0, :1] * self.scale[...]).astype(jnp.int32)

    def decode(self, tokens):
        return jnp.broadcast_to(2 * tokens[..., None, None] / self.scale[...], (len(tokens), 4, 4, 3))


def test_reconstruct_goes_through_tokens_in_batches_and_clips():
    images = np.full((BATCH + 3, 4, 4, 3), 51, np.uint8)
    images[-1] = 204
    done = []
    pictures, tokens = reconstruct(Stub(), images, lambda *count: done.append(count))
    np.testing.assert_array_equal(tokens, [[2]] * (BATCH + 2) + [[8]])
    np.testing.assert_allclose(pictures[:-1], 0.4, atol=1e-6)
    np.testing.assert_array_equal(pictures[-1], 1)
    assert pictures.shape == images.shape
    assert done == [(BATCH, BATCH + 3), (BATCH + 3, BATCH + 3)]


def test_psnr_is_the_mean_over_pictures():
    images = np.zeros((2, 4, 4, 3), np.uint8)
    pictures = np.stack([np.full((4, 4, 3), 0.1), np.full((4, 4, 3), 0.01)])
    assert psnr(images, pictures) == pytest.approx((20 + 40) / 2)
    assert psnr(images, np.zeros(images.shape)) == 100


def test_codebook_use():
    assert codebook_use(np.array([[0, 1, 1], [3, 0, 0]]), 8) == 3 / 8

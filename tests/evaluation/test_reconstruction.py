import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dalle_mini.evaluation.reconstruction import BATCH, codebook_use, perplexity, psnr, reconstruct, ssim


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


def by_hand(x, y, side=11, sigma=1.5):
    """SSIM of two pictures [H, W], window by window, as Wang et al. 2004 write it."""
    offsets = np.arange(side) - side // 2
    window = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * sigma**2))
    window /= window.sum()
    found = []
    for top in range(x.shape[0] - side + 1):
        for left in range(x.shape[1] - side + 1):
            a, b = (image[top : top + side, left : left + side] for image in (x, y))
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
            cov = (window * (a - mean_a) * (b - mean_b)).sum()
            c1, c2 = 0.01**2, 0.03**2
            found.append(
                (2 * mean_a * mean_b + c1) * (2 * cov + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
            )
    return np.mean(found)


@pytest.mark.parametrize(("shape", "side"), [((13, 15), 11), ((8, 9), 7)])
def test_ssim_by_hand(shape, side):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, *shape, 3), np.uint8)
    pictures = np.clip(images / 255 + rng.normal(0, 0.2, images.shape), 0, 1).astype(np.float32)
    pairs = [(images[i, ..., c] / 255, pictures[i, ..., c]) for i in range(2) for c in range(3)]
    wanted = np.mean([by_hand(x, y.astype(np.float64), side) for x, y in pairs])
    assert ssim(images, pictures) == pytest.approx(wanted, abs=1e-5)


def test_ssim_sees_structure():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 16, 16, 3), np.uint8)  # more than one call takes
    same = images.astype(np.float32) / 255
    assert ssim(images, same) == pytest.approx(1, abs=1e-5)
    brighter = ssim(images, np.clip(same + 0.1, 0, 1))
    noise = ssim(images, rng.random(images.shape).astype(np.float32))
    assert abs(noise) < 0.1 < 0.8 < brighter < 1


def test_perplexity():
    assert perplexity(np.array([[0, 5], [9, 9]])) == pytest.approx(np.exp(1.5 * np.log(2)))
    assert perplexity(np.arange(64).reshape(4, 16)) == pytest.approx(64)
    assert perplexity(np.zeros((3, 3), int)) == pytest.approx(1)

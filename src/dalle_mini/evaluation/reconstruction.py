"""Metrics of an image tokenizer: images to tokens and back."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dalle_mini.models.image_tokenizer import ImageTokenizer
from dalle_mini.runtime.xla import Jit

BATCH = 32  # images of a compiled call
WINDOW, SIGMA = 11, 1.5  # SSIM's Gaussian, pixels
K1, K2 = 0.01, 0.03


def reconstruct(
    tokenizer: ImageTokenizer, images: np.ndarray, progress: Callable[[int, int], None] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Encode and decode images.

    Args:
        images: uint8 [n, H, W, 3].
        progress: called with (images done, n).
    Returns:
        Reconstructions, float32 [n, H, W, 3] clipped to [0, 1], and tokens, int32 [n, h * w].
    """
    graphdef, state = nnx.split(tokenizer)
    made, tokens = [], []
    for start in range(0, len(images), BATCH):
        rows = images[start : start + BATCH]
        decoded, codes = _there_and_back(graphdef, state, _filled(rows))
        made.append(np.asarray(decoded)[: len(rows)])
        tokens.append(np.asarray(codes)[: len(rows)])
        if progress is not None:
            progress(start + len(rows), len(images))
    return np.concatenate(made), np.concatenate(tokens)


def measure(images: np.ndarray, made: np.ndarray, tokens: np.ndarray, n_embed: int) -> dict[str, float]:
    """`psnr`, `ssim`, `codebook_use` and `perplexity` by the functions of these names, for `reconstruct`'s results."""
    return {
        "psnr": psnr(images, made),
        "ssim": ssim(images, made),
        "codebook_use": codebook_use(tokens, n_embed),
        "perplexity": perplexity(tokens),
    }


@partial(Jit, static_argnums=0)
def _there_and_back(graphdef: nnx.GraphDef, state: nnx.State, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    tokenizer = nnx.merge(graphdef, state)
    tokens = tokenizer.encode(images.astype(jnp.float32) / 255)
    return jnp.clip(tokenizer.decode(tokens), 0, 1), tokens


def psnr(images: np.ndarray, made: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB, the mean over images.

    `images` are uint8 [n, H, W, 3], `made` float [n, H, W, 3] in [0, 1]. An image without any error counts 100 dB.
    """
    error = np.mean((made - images.astype(np.float32) / 255) ** 2, axis=(1, 2, 3), dtype=np.float64)
    return float(np.mean(-10 * np.log10(np.maximum(error, 1e-10))))


def ssim(images: np.ndarray, made: np.ndarray) -> float:
    """Structural similarity (Wang et al. 2004), the mean over images, channels and places; 1 is alike.

    The window is a Gaussian of 11 pixels (standard deviation 1.5) at every place where it lies in the image as a whole,
    with K1 0.01 and K2 0.03, for each of the three channels. In a smaller image it is the largest odd window that fits.
    The arguments are those of `psnr`.
    """
    found = []
    for start in range(0, len(images), BATCH):
        rows = images[start : start + BATCH]
        values = _ssim(_filled(rows), _filled(made[start : start + BATCH]))
        found.append(np.asarray(values)[: len(rows)])
    return float(np.mean(np.concatenate(found), dtype=np.float64))


@jax.jit
def _ssim(images: jax.Array, made: jax.Array) -> jax.Array:
    """The similarity of each image, float32 [n]."""
    x, y = images.astype(jnp.float32) / 255, made.astype(jnp.float32)
    side = min(WINDOW, *x.shape[1:3])
    side -= 1 - side % 2
    offsets = np.arange(side) - side // 2
    window = np.exp(-(offsets**2) / (2 * SIGMA**2))
    window = (window / window.sum()).astype(np.float32)

    def blurred(image: jax.Array) -> jax.Array:
        for axis in (1, 2):
            size = image.shape[axis] - side + 1
            image = sum(
                weight * jax.lax.slice_in_dim(image, start, start + size, axis=axis)
                for start, weight in enumerate(window)
            )
        return image

    mean_x, mean_y = blurred(x), blurred(y)
    # The short formula is exact enough: at [0, 1] float32 errs by 1e-7, and C2 is 9e-4.
    var_x, var_y = blurred(x * x) - mean_x**2, blurred(y * y) - mean_y**2
    covariance = blurred(x * y) - mean_x * mean_y
    c1, c2 = K1**2, K2**2
    likeness = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    likeness /= (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    return jnp.mean(likeness, axis=(1, 2, 3))


def codebook_use(tokens: np.ndarray, n_embed: int) -> float:
    """The share of a codebook's `n_embed` entries that occur in `tokens`, of any shape."""
    return len(np.unique(tokens)) / n_embed


def perplexity(tokens: np.ndarray) -> float:
    """The number of entries in `tokens`, if all were used alike: exp of the entropy of their shares."""
    shares = np.unique(tokens, return_counts=True)[1] / np.size(tokens)
    return float(np.exp(-np.sum(shares * np.log(shares))))


def _filled(rows: np.ndarray) -> np.ndarray:
    """Images [n, H, W, 3] with black ones behind them up to a batch: one shape, one compilation."""
    return np.pad(rows, [(0, BATCH - len(rows))] + [(0, 0)] * 3)

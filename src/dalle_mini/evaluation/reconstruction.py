"""What a VQGAN loses: pictures to tokens and back."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dalle_mini.models import VQGAN

BATCH = 32  # pictures a compiled call sees


def reconstruct(
    vqgan: VQGAN, images: np.ndarray, progress: Callable[[int, int], None] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Encode and decode pictures.

    Args:
        images: uint8 [n, H, W, 3].
        progress: called with (pictures done, n).
    Returns:
        Pictures, float32 [n, H, W, 3] clipped to [0, 1], and tokens, int32 [n, h * w].
    """
    graphdef, state = nnx.split(vqgan)
    pictures, tokens = [], []
    for start in range(0, len(images), BATCH):
        rows = images[start : start + BATCH]
        padding = [(0, BATCH - len(rows))] + [(0, 0)] * 3  # one shape, one compilation
        drawn, codes = _there_and_back(graphdef, state, np.pad(rows, padding))
        pictures.append(np.asarray(drawn)[: len(rows)])
        tokens.append(np.asarray(codes)[: len(rows)])
        if progress is not None:
            progress(start + len(rows), len(images))
    return np.concatenate(pictures), np.concatenate(tokens)


@partial(jax.jit, static_argnums=0)
def _there_and_back(graphdef: nnx.GraphDef, state: nnx.State, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    vqgan = nnx.merge(graphdef, state)
    tokens = vqgan.encode(images.astype(jnp.float32) / 255)
    return jnp.clip(vqgan.decode(tokens), 0, 1), tokens


def psnr(images: np.ndarray, pictures: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB, the mean over pictures of each one's own.

    `images` are uint8 [n, H, W, 3], `pictures` float [n, H, W, 3] in [0, 1]. A picture without any error counts 100 dB.
    """
    error = np.mean((pictures - images.astype(np.float32) / 255) ** 2, axis=(1, 2, 3), dtype=np.float64)
    return float(np.mean(-10 * np.log10(np.maximum(error, 1e-10))))


def codebook_use(tokens: np.ndarray, n_embed: int) -> float:
    """The share of a codebook's `n_embed` entries that occur in `tokens`, of any shape."""
    return len(np.unique(tokens)) / n_embed

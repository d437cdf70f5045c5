"""The convolutions of the VQGAN's decoder by fewer multiplications, on a CPU.

XLA's own convolutions run near a CPU's peak, so only less work makes them faster:

- `WinogradConv` (Lavin, Gray: "Fast Algorithms for Convolutional Neural Networks", 2016) takes half of the products.
  It is F(4, 3) along the height alone: along both sides it would take a quarter, but then so much is moved for each
  product that it is no faster, 36 matrix products compile twice as long, and four times the kernel is kept.
- `PhaseUpsample` takes 4 products of 9: pixels that were repeated are multiplied once, with the sum of their weights.

With them an image of the f16 decoder takes two thirds of the time. Their rounding costs some 1e-5 of a feature's
deviation, which no pixel shows.
"""

from __future__ import annotations

from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dalle_mini.generation.optimize import swap
from dalle_mini.models import VQGAN
from dalle_mini.models.vqgan_blocks import Upsample

# The transforms of tiles, kernels and outputs, for the points 0, 1, -1, 2, -2 and infinity.
TILES = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
KERNEL = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
OUTPUTS = np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])
ROWS = 4  # of the outputs of a tile, which has 6

# With fewer channels, moving takes as long as is saved. With more, the feature map is small, and Winograd's kernel, of
# twice the size, is not.
FEWEST, MOST = 128, 256

# Two neighbouring pixels, each repeated: which of them meets which of a kernel's three weights, around the second copy
# of the one and around the first of the other.
PHASES = np.array([[[1, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 1, 1]]])


class WinogradConv(nnx.Module):
    """A 3x3 convolution with stride 1 and padding SAME, x [batch, height, width, channels]."""

    def __init__(self, conv: nnx.Conv):
        kernel = np.tensordot(KERNEL, np.asarray(conv.kernel[...], np.float64), axes=1)
        self.kernel = nnx.Param(jnp.asarray(kernel[:, None].astype(np.float32)))
        self.bias = None if conv.bias is None else nnx.Param(conv.bias[...])

    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, _ = x.shape
        down = -(-height // ROWS)
        x = jnp.pad(x, ((0, 0), (1, 1 + down * ROWS - height), (0, 0), (0, 0)))
        tiles = _combined(TILES, [x[:, i : i + (down - 1) * ROWS + 1 : ROWS] for i in range(6)])
        products = [
            _convolved(tile, kernel, (0, 1)) for tile, kernel in zip(tiles, self.kernel[...], strict=True)
        ]  # 6 of [batch, down, width, channels]
        y = jnp.stack(_combined(OUTPUTS, products), axis=2).reshape(batch, down * ROWS, width, -1)[:, :height]
        return y if self.bias is None else y + self.bias[...]


class PhaseUpsample(nnx.Module):
    """The same as `Upsample`, x [batch, height, width, channels].

    Around a corner where four pixels meet there are four outputs, and they see these four alone. So they are made
    together, by one convolution of 2x2 with four times the channels.
    """

    def __init__(self, upsample: Upsample):
        conv = upsample.conv
        assert conv is not None and conv.bias is not None  # `by_phases` passes the others over
        kernel, self.bias = np.asarray(conv.kernel[...], np.float64), conv.bias
        kernel = np.einsum("yti,xsj,ijck->tscyxk", PHASES, PHASES, kernel, optimize=True)
        self.kernel = nnx.Param(jnp.asarray(kernel.reshape(*kernel.shape[:3], -1).astype(np.float32)))

    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, _ = x.shape
        y = _convolved(x, self.kernel[...], (1, 1)).reshape(batch, height + 1, width + 1, 2, 2, -1)
        y = y.swapaxes(2, 3).reshape(batch, 2 * height + 2, 2 * width + 2, -1)
        return y[:, 1:-1, 1:-1] + self.bias[...]


def _convolved(x: jax.Array, kernel: jax.Array, more: tuple[int, int]) -> jax.Array:
    """With so many zeros above and below, left and right."""
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), [(side, side) for side in more], dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _combined(matrix: np.ndarray, parts: list[jax.Array]) -> list[jax.Array]:
    """The matrix times the parts, without the products by 0."""
    rows = [sum(part * float(factor) for factor, part in zip(row, parts, strict=True) if factor) for row in matrix]
    return cast("list[jax.Array]", rows)  # no row is all zeros


def by_winograd(conv: nnx.Conv) -> bool:
    """Whether it is a convolution that `WinogradConv` computes, and sooner."""
    return (
        conv.kernel_size == (3, 3)
        and conv.strides in (1, (1, 1))
        and conv.padding == "SAME"
        and FEWEST <= conv.in_features <= MOST
        and FEWEST <= conv.out_features <= MOST
        and conv.kernel.dtype == jnp.float32
    )


def by_phases(upsample: Upsample) -> bool:
    """Whether it convolves, and `PhaseUpsample` does so sooner."""
    conv = upsample.conv
    return conv is not None and conv.in_features >= FEWEST and conv.kernel.dtype == jnp.float32


def with_fewer_products(vqgan: VQGAN) -> VQGAN:
    """The same network, for decoding on a CPU; what is not replaced shares its parameters with `vqgan`."""
    ready = nnx.merge(*nnx.split(vqgan))
    swap(ready.decoder, Upsample, lambda layer: PhaseUpsample(layer) if by_phases(layer) else layer)
    swap(ready.decoder, nnx.Conv, lambda layer: WinogradConv(layer) if by_winograd(layer) else layer)
    return ready

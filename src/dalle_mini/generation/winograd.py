"""3x3 convolutions by fewer multiplications, for the VQGAN's decoder on a CPU.

Lavin, Gray: "Fast Algorithms for Convolutional Neural Networks" (2016), F(4x4, 3x3): 4x4 outputs need 36 products for a
pair of channels instead of 144. The picture is cut into tiles of 6x6 that overlap by 2; the tiles and the kernel are
transformed, multiplied as 36 matrices, and transformed back. XLA's direct convolution of wide feature maps runs near
a CPU's peak, so only a better algorithm makes it faster: 1.5 times for a whole f16 decoder. Its rounding costs some
1e-5 of a feature's deviation, which no pixel shows.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dalle_mini.generation.prepare import swap
from dalle_mini.models import VQGAN

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
SIDE = 4  # of the outputs of a tile

# With fewer channels the transforms take nearly as long as what they save. With more the picture is small and the
# kernel, four times its size when transformed, is not.
FEWEST, MOST = 128, 256


class WinogradConv(nnx.Module):
    """What a 3x3 convolution with stride 1 and padding SAME computes, x [batch, height, width, channels]."""

    def __init__(self, conv: nnx.Conv):
        kernel = np.asarray(conv.kernel[...], np.float64)
        transformed = np.einsum("ai,bj,ijck->abck", KERNEL, KERNEL, kernel).reshape(36, *kernel.shape[2:])
        self.kernel = nnx.Param(jnp.asarray(transformed, jnp.float32))
        self.bias = None if conv.bias is None else nnx.Param(conv.bias[...])

    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        down, across = -(-height // SIDE), -(-width // SIDE)
        more = (1, 1 + down * SIDE - height), (1, 1 + across * SIDE - width)
        x = jnp.pad(x, ((0, 0), *more, (0, 0)))
        rows = _combined(TILES, [x[:, i : i + (down - 1) * SIDE + 1 : SIDE] for i in range(6)])
        tiles = [
            _combined(TILES, [row[:, :, i : i + (across - 1) * SIDE + 1 : SIDE] for i in range(6)]) for row in rows
        ]  # 6x6 of [batch, down, across, channels]
        tiles = jnp.stack([tile for row in tiles for tile in row]).reshape(36, -1, channels)
        products = jnp.einsum("ntc,nck->ntk", tiles, self.kernel[...])
        products = products.reshape(6, 6, batch, down, across, -1)
        rows = _combined(OUTPUTS, list(products))  # 4 of [6, batch, down, across, channels]
        outputs = [jnp.stack(_combined(OUTPUTS, list(row)), axis=3) for row in rows]
        y = jnp.stack(outputs, axis=2).reshape(batch, down * SIDE, across * SIDE, -1)[:, :height, :width]
        return y if self.bias is None else y + self.bias[...]


def _combined(matrix: np.ndarray, parts: list[jax.Array]) -> list[jax.Array]:
    """The matrix times the parts, without the products by 0."""
    return [sum(part * float(factor) for factor, part in zip(row, parts, strict=True) if factor) for row in matrix]


def is_worth_it(conv: nnx.Conv) -> bool:
    """Whether it is a convolution that `WinogradConv` computes, and sooner."""
    return (
        conv.kernel_size == (3, 3)
        and conv.strides in (1, (1, 1))
        and conv.padding == "SAME"
        and FEWEST <= conv.in_features <= MOST
        and FEWEST <= conv.out_features <= MOST
        and conv.kernel.dtype == jnp.float32
    )


def with_winograd(vqgan: VQGAN) -> VQGAN:
    """The same network, for decoding on a CPU; what is not replaced shares its parameters with `vqgan`."""
    ready = nnx.merge(*nnx.split(vqgan))
    swap(ready.decoder, nnx.Conv, lambda conv: WinogradConv(conv) if is_worth_it(conv) else conv)
    return ready

"""Products of a few rows with float32 weights on a CPU.

The weights lie in tiles, [out / 96, in, 96], and a product is one of each tile: XLA then reads every weight once, in
order, which for 2 rows takes two thirds of the time of a product with the whole matrix. Long sums are made of short
ones, so that they are as exact by YNNPACK (`runtime.xla`) as by XLA itself, which takes 1.6 times as long.
"""

from __future__ import annotations

from functools import partial
from typing import cast

import jax
import jax.numpy as jnp
from flax import nnx

from dalle_mini.runtime.processor import kind

# Outputs of a tile, by the kind of processor (`runtime/processor.py`): `python benchmarks/tiles.py` measures on the one
# that it runs on. WHOLE is a single tile with all outputs. Kinds that nobody has measured take USUAL.
TILES = {"AVX-512 BF16": 96}
USUAL, WHOLE = 96, 0
# Rows in one product of tiles: fewer or more are other routines of XLA's, with another rounding (1 to 3 and 64 on).
FEWEST, MOST = 4, 48
CHAIN = 256  # terms summed one after the other, as many as XLA's own products sum so


class TiledLinear(nnx.Module):
    """x W + b with weight [tiles, in, tile]; what is beyond the last output is zero.

    `tile` is the number of a tile's outputs; None is that of this kind of processor.
    """

    def __init__(self, linear: nnx.Linear, tile: int | None = None):
        self.outputs = linear.kernel.shape[1]
        width = TILES.get(kind(), USUAL) if tile is None else tile
        self.weight = nnx.Param(_tiled(linear.kernel[...], width or self.outputs))
        self.bias = None if linear.bias is None else nnx.Param(linear.bias[...])
        self.dtype = linear.dtype

    @property
    def kernel(self) -> jax.Array:
        inputs = self.weight.shape[1]
        return self.weight[...].swapaxes(0, 1).reshape(inputs, -1)[:, : self.outputs]

    def __call__(self, x: jax.Array) -> jax.Array:
        tiles, inputs, width = self.weight.shape
        sums = _short_sums(inputs)
        weight = self.weight[...].astype(self.dtype).reshape(tiles, sums, inputs // sums, width)

        def product(rows: jax.Array) -> jax.Array:
            rows = rows.reshape(len(rows), sums, -1).swapaxes(0, 1)
            rows = jnp.broadcast_to(rows, (tiles, *rows.shape))
            parts = jax.lax.dot_general(rows, weight, (((3,), (2,)), ((0, 1), (0, 1))))
            return cast(jax.Array, sum(parts[:, number] for number in range(sums)))  # [tiles, rows, width]

        rows = x.astype(self.dtype).reshape(-1, x.shape[-1])
        count = len(rows)
        rows = jnp.pad(rows, ((0, max(FEWEST - count, 0)), (0, 0)))
        parts = jnp.array_split(rows, -(-len(rows) // MOST))
        y = jnp.concatenate([product(part) for part in parts], axis=1)[:, :count]
        y = y.swapaxes(0, 1).reshape(*x.shape[:-1], -1)[..., : self.outputs]
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)


def _short_sums(terms: int) -> int:
    """Into how many sums of one length a sum is split: as few as have at most CHAIN terms, where that divides it."""
    fewest = -(-terms // CHAIN)
    return next((count for count in range(fewest, 4 * fewest) if terms % count == 0), 1)


@partial(jax.jit, static_argnums=1)
def _tiled(kernel: jax.Array, width: int) -> jax.Array:
    inputs, outputs = kernel.shape
    tiles = -(-outputs // width)
    kernel = jnp.pad(kernel, ((0, 0), (0, tiles * width - outputs)))
    return kernel.reshape(inputs, tiles, width).swapaxes(0, 1)

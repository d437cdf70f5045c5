"""Products of a few rows with float32 weights on a CPU.

The weights lie in tiles, [out / 96, in, 96], and a product is one of each tile: XLA then reads every weight once, in
order, which for 2 rows takes two thirds of the time of a product with the whole matrix. Long sums are made of short
ones, so that they are as exact by YNNPACK (`runtime.xla`) as by XLA itself, which takes 1.6 times as long.
"""

from __future__ import annotations

from typing import cast

import jax
import jax.numpy as jnp
from flax import nnx

TILE = 96  # outputs: of 64, 96, 128, 192 and 512 the one that serves 1, 9 and 32 guided images well
# Rows in one product of tiles: fewer or more are other routines of XLA's, with another rounding (1 to 3 and 64 on).
FEWEST, MOST = 4, 48
CHAIN = 256  # terms summed one after the other, as many as XLA's own products sum so


class TiledLinear(nnx.Module):
    """x W + b with weight [ceil(out / 96), in, 96]; what is beyond the last output is zero."""

    def __init__(self, linear: nnx.Linear):
        self.outputs = linear.kernel.shape[1]
        self.weight = nnx.Param(_tiled(linear.kernel[...]))
        self.bias = None if linear.bias is None else nnx.Param(linear.bias[...])
        self.dtype = linear.dtype

    @property
    def kernel(self) -> jax.Array:
        tiles, inputs, _ = self.weight.shape
        return self.weight[...].swapaxes(0, 1).reshape(inputs, tiles * TILE)[:, : self.outputs]

    def __call__(self, x: jax.Array) -> jax.Array:
        tiles, inputs, _ = self.weight.shape
        sums = _short_sums(inputs)
        weight = self.weight[...].astype(self.dtype).reshape(tiles, sums, inputs // sums, TILE)

        def product(rows: jax.Array) -> jax.Array:
            rows = rows.reshape(len(rows), sums, -1).swapaxes(0, 1)
            rows = jnp.broadcast_to(rows, (tiles, *rows.shape))
            parts = jax.lax.dot_general(rows, weight, (((3,), (2,)), ((0, 1), (0, 1))))
            return cast(jax.Array, sum(parts[:, number] for number in range(sums)))  # [tiles, rows, TILE]

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


@jax.jit
def _tiled(kernel: jax.Array) -> jax.Array:
    inputs, outputs = kernel.shape
    tiles = -(-outputs // TILE)
    kernel = jnp.pad(kernel, ((0, 0), (0, tiles * TILE - outputs)))
    return kernel.reshape(inputs, tiles, TILE).swapaxes(0, 1)

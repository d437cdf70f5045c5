"""The layers that VQGANs are built of. Feature maps are [batch, height, width, channels]."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from dalle_mini.models.config import VQGANConfig
from dalle_mini.models.linear import einsum


class GroupNorm(nnx.GroupNorm):
    """Flax's, but the pixels are summed before the channels of a group.

    To reduce both at once splits the innermost axis into groups as narrow as 4, which is no width for a vector unit:
    on a CPU a norm of [1, 256, 256, 128] took three times as long.
    """

    scale: nnx.Param[jax.Array]  # every norm here has both
    bias: nnx.Param[jax.Array]

    def __call__(self, x):  # type: ignore[override]  # there are no masks
        batch, _, _, channels = x.shape
        wide = x.astype(jnp.float32)
        moments = jnp.stack([jnp.mean(wide, (1, 2)), jnp.mean(wide**2, (1, 2))])
        moments = jnp.mean(moments.reshape(2, batch, self.num_groups, -1), axis=-1)
        mean, square = jnp.repeat(moments, channels // self.num_groups, axis=-1)[:, :, None, None]
        factor = jax.lax.rsqrt(jnp.maximum(square - mean**2, 0) + self.epsilon) * self.scale[...]
        return ((wide - mean) * factor + self.bias[...]).astype(self.dtype)


class Maker:
    """Makes the two kinds of layer that everything here is built of."""

    def __init__(self, config: VQGANConfig, rngs: nnx.Rngs, dtype):
        self.groups, self.rngs, self.dtype = config.norm_groups, rngs, dtype

    def norm(self, channels: int) -> GroupNorm:
        return GroupNorm(channels, num_groups=self.groups, epsilon=1e-6, dtype=self.dtype, rngs=self.rngs)

    def conv(self, in_channels: int, out_channels: int, side: int, **options) -> nnx.Conv:
        options = {"padding": "SAME", "dtype": self.dtype, **options}
        return nnx.Conv(in_channels, out_channels, (side, side), rngs=self.rngs, **options)


class ResnetBlock(nnx.Module):
    """Two normalised 3x3 convolutions beside a shortcut, which is 1x1 where the width changes."""

    def __init__(self, in_channels: int, out_channels: int, make: Maker):
        self.norm1 = make.norm(in_channels)
        self.conv1 = make.conv(in_channels, out_channels, 3)
        self.norm2 = make.norm(out_channels)
        self.conv2 = make.conv(out_channels, out_channels, 3)
        self.nin_shortcut = make.conv(in_channels, out_channels, 1) if in_channels != out_channels else None

    def __call__(self, x):
        h = self.conv1(jax.nn.swish(self.norm1(x)))
        h = self.conv2(jax.nn.swish(self.norm2(h)))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class AttnBlock(nnx.Module):
    """Single-head self-attention over all positions of the feature map."""

    def __init__(self, channels: int, make: Maker):
        self.norm = make.norm(channels)
        self.q = make.conv(channels, channels, 1)
        self.k = make.conv(channels, channels, 1)
        self.v = make.conv(channels, channels, 1)
        self.proj_out = make.conv(channels, channels, 1)

    def __call__(self, x):
        batch, height, width, channels = x.shape
        h = self.norm(x)
        q, k, v = (layer(h).reshape(batch, height * width, channels) for layer in (self.q, self.k, self.v))
        weights = einsum("bqc,bkc->bqk", q, k, out_dtype=jnp.float32) * channels**-0.5
        weights = jax.nn.softmax(weights, axis=-1).astype(v.dtype)
        attended = einsum("bqk,bkc->bqc", weights, v).reshape(x.shape)
        return x + self.proj_out(attended)


class Downsample(nnx.Module):
    """Halve the side: a strided convolution padded at the bottom and right, or the mean of 2x2."""

    def __init__(self, channels: int, with_conv: bool, make: Maker):
        self.conv = make.conv(channels, channels, 3, strides=2, padding=((0, 1), (0, 1))) if with_conv else None

    def __call__(self, x):
        return nnx.avg_pool(x, (2, 2), strides=(2, 2)) if self.conv is None else self.conv(x)


class Upsample(nnx.Module):
    """Double the side by repeating pixels, then smooth with a convolution."""

    def __init__(self, channels: int, with_conv: bool, make: Maker):
        self.conv = make.conv(channels, channels, 3) if with_conv else None

    def __call__(self, x):
        batch, height, width, channels = x.shape
        # repeat by broadcasting: one write of the output, no gather
        x = jnp.broadcast_to(x[:, :, None, :, None, :], (batch, height, 2, width, 2, channels))
        x = x.reshape(batch, 2 * height, 2 * width, channels)
        return x if self.conv is None else self.conv(x)

"""The halves of a VQGAN whose tokens say what lies on a ground, whatever the ground is.

Drawn pictures have a ground of one colour, or of one colour in each row of pixels, and things on it. Here a token is
either a piece of ground or a piece of a thing with the share of the ground that shows through. So a thing has the
same tokens on every ground, and the ground is as it was, to the pixel.

A latent vector has two parts. The first tells a thing's patch. The last `GROUND` numbers tell a patch of ground: that
it is one, its mean colour, and how much the colour grows downwards. One of both parts is zero.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from dalle_mini.models.config import GROUND, VQGANConfig
from dalle_mini.models.vqgan_blocks import Maker, ResnetBlock

SURE = 16.0  # the first of them: no thing's patch is as far from all others
BRIGHT = 5.0  # a colour is scaled by it, so that the nearest of all vectors is the nearest in colour
EQUAL = 1.5 / 255  # pixels of a ground differ by no more
BORDER, WEIGHT = 2, 4.0  # patches at the left and right border, which things seldom cover, count so much more
# A thing's patch is compared with others over a ground of mean colour `MEAN`. The share of the ground that shows
# through is scaled by `SPREAD`, the deviation of a ground's pixel from it: the squared distance of two patches is then
# what it is on average over all grounds, which are light more often than dark.
MEAN, SPREAD = 0.7, 0.6


class LayerEncoder(nnx.Module):
    """Images [batch, H, W, 3] to latent vectors: the ground is found, and one matrix projects each patch of a thing."""

    def __init__(self, config: VQGANConfig, make: Maker):
        self.side = config.downscale
        self.embed = make.conv(4, config.z_channels - GROUND, self.side, strides=self.side, padding="VALID")

    def __call__(self, images):
        images = images.astype(jnp.float32)  # in bfloat16 neighbours among 256 grey levels would be one
        ground, is_ground = self.ground(images)
        things = self.embed(self.layer(images, ground, is_ground))
        told = jnp.concatenate([jnp.full_like(ground[..., :1], SURE), BRIGHT * ground], axis=-1).astype(things.dtype)
        is_ground = is_ground[..., None]
        return jnp.concatenate([jnp.where(is_ground, 0, things), jnp.where(is_ground, told, 0)], axis=-1)

    def ground(self, images):
        """The ground of each patch, float [batch, h, w, 6], and which patches show nothing else."""
        cells = patches(images, self.side)
        colors = fitted(cells.mean(axis=4))
        exact = rows_of(colors, self.side)[..., None, :]
        is_plain = jnp.max(jnp.abs(cells - exact), axis=(3, 4, 5)) < EQUAL
        ground = jnp.broadcast_to(row_grounds(colors, is_plain)[:, :, None], colors.shape)
        return ground, is_plain & alike(colors, ground)

    def layer(self, images, ground, is_ground):
        """The things without their ground, float [batch, H, W, 4]: over a ground of `MEAN`, and the ground's share.

        Where a thing ends a pixel has the colours of both. It is taken for a mixture of the ground with the pixel
        beside it that differs most from it.
        """
        under = pictures(jnp.broadcast_to(rows_of(ground, self.side)[..., None, :], patches(images, self.side).shape))
        apart = jnp.max(jnp.abs(images - under), axis=-1, keepdims=True)
        most, least = (_around(apart, best) for best in (jnp.maximum, jnp.minimum))
        share = jnp.where(least < EQUAL, 1 - apart / jnp.maximum(most, EQUAL), 0.0)
        share = jnp.where(apart < EQUAL, 1.0, share) * jnp.any(is_ground, axis=(1, 2))[:, None, None, None]
        return jnp.concatenate([images + share * (MEAN - under), SPREAD * share], axis=-1)


class LayerDecoder(nnx.Module):
    """Latent vectors to images: each thing's patch from its vector and those around it, over the ground.

    The blocks see neither grounds nor the border, so that what they learn of a thing holds on every ground.
    """

    WIDTH, BLOCKS = 192, 3  # the blocks see seven tokens in each direction

    def __init__(self, config: VQGANConfig, make: Maker):
        self.side, numbers = config.downscale, config.z_channels - GROUND
        self.direct = make.conv(numbers, 4 * self.side**2, 1)
        self.conv_in = make.conv(numbers, self.WIDTH, 3)
        self.block = nnx.List(ResnetBlock(self.WIDTH, self.WIDTH, make) for _ in range(self.BLOCKS))
        self.norm_out = make.norm(self.WIDTH)
        self.conv_out = make.conv(self.WIDTH, 4 * self.side**2, 1, kernel_init=nnx.initializers.zeros)

    def __call__(self, states):
        share = jnp.clip(states[..., -GROUND] / SURE, 0, 1)
        shown = states[..., 1 - GROUND :] / BRIGHT
        ground = rows_of(row_grounds(shown, share > 0.5), self.side)[:, :, None, :, None]
        layer = self.layer(states)
        through = jnp.clip(layer[..., 3:] / SPREAD, 0, 1)
        things = layer[..., :3] + through * (ground - MEAN)
        seen = rows_of(shown, self.side)[..., None, :] + (1 - share[..., None, None, None]) * things
        return pictures(seen)

    def layer(self, states):
        """The patches of things as `LayerEncoder.layer` has them, float [batch, h, w, side, side, 4]."""
        things = states[..., :-GROUND]
        h = self.conv_in(things)
        for block in self.block:
            h = block(h)
        made = self.direct(things) + self.conv_out(jax.nn.swish(self.norm_out(h)))
        return made.reshape(*made.shape[:3], self.side, self.side, 4)


def patches(images, side: int):
    """[batch, h * side, w * side, c] to [batch, h, w, side, side, c]."""
    batch, height, width, channels = images.shape
    return images.reshape(batch, height // side, side, width // side, side, channels).swapaxes(2, 3)


def pictures(cells):
    """The inverse of `patches`."""
    batch, height, width, side, _, channels = cells.shape
    return cells.swapaxes(2, 3).reshape(batch, height * side, width * side, channels)


def fitted(rows):
    """Colours of rows, [..., side, 3], to a mean colour and its growth from the middle to the bottom, [..., 6]."""
    down = jnp.linspace(-1, 1, rows.shape[-2])[:, None]
    return jnp.concatenate([rows.mean(axis=-2), jnp.sum(rows * down, axis=-2) / jnp.sum(down**2)], axis=-1)


def rows_of(colors, side: int):
    """The inverse of `fitted`, [..., 6] to [..., side, 3]."""
    return colors[..., None, :3] + jnp.linspace(-1, 1, side)[:, None] * colors[..., None, 3:]


def alike(one, other):
    """Which grounds, [..., 6], no eye can tell apart."""
    return jnp.max(jnp.abs(one - other), axis=-1) < EQUAL


def row_grounds(colors, is_ground):
    """The ground of each row of patches, [batch, h, 6]: the one that most patches of the row have.

    A row without any has the ground that most patches of the image have.

    Args:
        colors: of all patches, [batch, h, w, 6].
        is_ground: which of them may be ground, bool [batch, h, w].
    """
    batch, height, width, _ = colors.shape
    column = jnp.arange(width)
    votes = is_ground * jnp.where(jnp.minimum(column, width - 1 - column) < BORDER, WEIGHT, 1.0)
    flat = colors.reshape(batch, -1, 6)
    same = alike(flat[:, :, None], flat[:, None]).reshape(batch, -1, height, width)
    count = jnp.einsum("bnhw,bhw->bhn", same, votes)
    count = (count + count.mean(axis=1, keepdims=True) / (WEIGHT * width)) * is_ground.reshape(batch, 1, -1)
    return jnp.take_along_axis(flat, jnp.argmax(count, axis=-1)[..., None], axis=1)


def _around(values, best):
    """The largest or the least of the 3 x 3 pixels around each one, [batch, H, W, 1]."""
    start = -jnp.inf if best is jnp.maximum else jnp.inf
    reduce = jax.lax.max if best is jnp.maximum else jax.lax.min
    return jax.lax.reduce_window(values, start, reduce, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")

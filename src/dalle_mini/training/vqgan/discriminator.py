"""A PatchGAN discriminator, which makes a VQGAN's images sharp, and the losses of both.

The discriminator of pix2pix (Isola et al. 2017) tells real from made by overlapping patches, each by itself. A VQGAN
is trained against it from some step on (Esser et al. 2021, arXiv 2012.09841, section 3.1). Its parameters are a group
beside the VQGAN's with an optimizer of their own. One step moves both: each loss holds the other network constant, so
that the gradient of their sum is each network's own.

The papers normalise by batches; `PatchGAN` normalises by images.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from dalle_mini.errors import UserError
from dalle_mini.models.vqgan_blocks import GroupNorm
from dalle_mini.settings import LARGEST
from dalle_mini.training.config.sections import OptimizerConfig, check_choice, check_most

LOSSES = ("hinge", "non-saturating")
GROUP = "discriminator"  # the key of its parameters beside the VQGAN's
MOST = 1e4  # the highest adaptive weight, as published
OPTIMIZER = OptimizerConfig("adamw", learning_rate=2e-4, warmup_steps=0, decay="constant", b1=0.5, b2=0.9)


@dataclass(frozen=True)
class DiscriminatorConfig:
    """A discriminator and its part in a VQGAN's loss.

    Attributes:
        start: steps before it is trained and the VQGAN against it: it teaches the finer detail of good images.
        weight: weight of the adversarial loss in the VQGAN's.
        adaptive: multiply that by the ratio of gradients at the decoder's last layer (`adaptive_weight`).
        loss: "hinge" (Lim and Ye 2017) or "non-saturating" (Goodfellow et al. 2014).
        n_layers, ndf: convolutions that halve the side, and channels of the first: a patch has 70 pixels if three.
        optimizer: its own.
    """

    start: int = 1000
    weight: float = 0.8
    adaptive: bool = True
    loss: str = "hinge"
    n_layers: int = 3
    ndf: int = 64
    optimizer: OptimizerConfig = OPTIMIZER

    def __post_init__(self):
        check_choice("training.discriminator.loss", self.loss, LOSSES)
        for name, least in (("start", 0), ("weight", 0), ("n_layers", 1), ("ndf", 1)):
            value = getattr(self, name)
            if not least <= value < math.inf:
                raise UserError(f"training.discriminator.{name}: {value} is not a number of {least} or more")
        check_most("training.discriminator", self, start=2**31 - 1, weight=LARGEST, n_layers=16, ndf=1 << 17)

    def check_side(self, side: int) -> None:
        """Raises UserError where images of `side` pixels are smaller than what it needs to see."""
        least = 3 * 2**self.n_layers
        if side < least:
            raise UserError(
                f"training.discriminator.n_layers {self.n_layers} needs images or crops of {least} pixels, not {side}"
            )


class PatchGAN(nnx.Module):
    """Images [batch, H, W, channels] in [0, 1] to logits [batch, h, w], one a patch: high is "real".

    4x4 convolutions as in pix2pix: `n_layers` of stride 2, with ndf, 2 ndf, ... but at most 8 ndf channels, two of
    stride 1, and leaky ReLU between them. The norms are over groups of channels of one image (Wu and He 2018), where
    pix2pix has batch norm: the logits of an image then depend on it alone. With batch norm they would depend on which
    other images lie on the same device. A run on eight devices would then differ from one on one device, microbatches
    from a whole batch, and the running means would be further state. Nor can it tell real batches from made ones by
    their statistics.
    """

    def __init__(self, config: DiscriminatorConfig, channels: int, *, rngs: nnx.Rngs, dtype=jnp.float32):
        widths = [config.ndf * min(2**i, 8) for i in range(config.n_layers + 1)]
        init = nnx.initializers.normal(0.02)

        def conv(inner: int, outer: int, stride: int, bias: bool = True) -> nnx.Conv:
            return nnx.Conv(
                *(inner, outer, (4, 4)),
                strides=stride,
                padding=((1, 1), (1, 1)),
                use_bias=bias,
                kernel_init=init,
                dtype=dtype,
                rngs=rngs,
            )

        def norm(width: int) -> GroupNorm:
            return GroupNorm(width, num_groups=math.gcd(width, 32), epsilon=1e-5, dtype=dtype, rngs=rngs)

        strides = [2] * (config.n_layers - 1) + [1]
        self.first = conv(channels, widths[0], 2)
        self.convs = nnx.List(
            conv(inner, outer, stride, bias=False)
            for inner, outer, stride in zip(widths, widths[1:], strides, strict=False)
        )
        self.norms = nnx.List(norm(width) for width in widths[1:])
        self.last = conv(widths[-1], 1, 1)

    def __call__(self, images: jax.Array) -> jax.Array:
        h = _leaky(self.first(2 * images - 1))
        for conv, norm in zip(self.convs, self.norms, strict=True):
            h = _leaky(norm(conv(h)))
        return self.last(h)[..., 0].astype(jnp.float32)


class AdversarialLosses(NamedTuple):
    """Both losses of one batch.

    Attributes:
        discriminator: L_D, float32 []. Its gradient moves the discriminator.
        generator: the discriminator's part of the VQGAN's loss, float32 [], before it is weighted.
        weight: lambda, float32 [].
        gradient: lambda times the gradient of `generator` at the made images, [batch, H, W, 3].
    """

    discriminator: jax.Array
    generator: jax.Array
    weight: jax.Array
    gradient: jax.Array


@dataclass(frozen=True)
class Adversary:
    """A discriminator without its weights, and its part in a VQGAN's loss."""

    config: DiscriminatorConfig
    graphdef: nnx.GraphDef[PatchGAN]

    def logits(self, weights: Any, images: jax.Array) -> jax.Array:
        return nnx.merge(self.graphdef, weights)(images)

    def generator_loss(self, made: jax.Array, weights: Any) -> jax.Array:
        return generator_loss(self.config.loss, self.logits(weights, made))

    def losses(
        self,
        to_last_layer: Callable[[jax.Array], jax.Array],
        reconstruction: jax.Array,
        weights: Any,
        images: jax.Array,
        made: jax.Array,
    ) -> AdversarialLosses:
        """The losses on images [batch, H, W, 3] and those that the VQGAN made of them, which are constants here.

        Args:
            to_last_layer: as in `adaptive_weight`.
            reconstruction: the gradient of L_rec at the made images.
            weights: the discriminator's parameters, at which `AdversarialLosses.discriminator` has a gradient.
        """
        value, gradient = jax.value_and_grad(self.generator_loss)(made, jax.lax.stop_gradient(weights))
        weight = jnp.float32(self.config.weight)
        if self.config.adaptive:
            weight *= adaptive_weight(to_last_layer, reconstruction, gradient)
        # It sees both in one call: the logits of an image depend on it alone.
        real, fake = jnp.split(self.logits(weights, jnp.concatenate([images, made])), 2)
        return AdversarialLosses(discriminator_loss(self.config.loss, real, fake), value, weight, weight * gradient)


def no_losses(weights: Any, images: jax.Array, made: jax.Array) -> AdversarialLosses:
    """`Adversary.losses` before the discriminator begins: nothing moves."""
    zero = jnp.float32(0)
    return AdversarialLosses(zero, zero, zero, jnp.zeros_like(made))


def _leaky(x: jax.Array) -> jax.Array:
    return nnx.leaky_relu(x, 0.2)


def discriminator_loss(kind: str, real: jax.Array, made: jax.Array) -> jax.Array:
    """L_D, float32 []: low where the logits of real images are high and those of made ones low.

    "hinge" is that of Lim and Ye 2017 (arXiv 1705.02894), "non-saturating" equation 5 of Esser et al.; half of both.
    """
    if kind == "hinge":
        return (jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + made))) / 2
    return (jnp.mean(jax.nn.softplus(-real)) + jnp.mean(jax.nn.softplus(made))) / 2


def generator_loss(kind: str, made: jax.Array) -> jax.Array:
    """The adversarial part of the VQGAN's loss, float32 []: low where the logits of made images are high."""
    return -jnp.mean(made) if kind == "hinge" else jnp.mean(jax.nn.softplus(-made))


def adaptive_weight(
    to_last_layer: Callable[[jax.Array], jax.Array], reconstruction: jax.Array, adversarial: jax.Array
) -> jax.Array:
    """Lambda of equation 7 in Esser et al. 2021, float32 [], from 0 to 10,000.

    Times it, the adversarial loss moves the decoder's last layer as much as L_rec does.

    Args:
        to_last_layer: a gradient at the decoder's output -> the one at its last layer's weights.
        reconstruction, adversarial: the gradients of both losses at the output, [batch, H, W, channels].
    """
    wanted, found = (jnp.linalg.norm(to_last_layer(gradient).ravel()) for gradient in (reconstruction, adversarial))
    return jnp.clip(wanted / (found + 1e-4), 0, MOST)


def with_gradient(value: jax.Array, at: jax.Array, gradient: jax.Array) -> jax.Array:
    """A scalar of this value whose gradient at the array `at` is `gradient`."""
    return jax.lax.stop_gradient(value) + gradient_alone(jnp.sum(at * jax.lax.stop_gradient(gradient)))


def gradient_alone(loss: jax.Array) -> jax.Array:
    """0 with the gradient of `loss`."""
    return loss - jax.lax.stop_gradient(loss)

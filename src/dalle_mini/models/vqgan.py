"""VQGAN: pictures to discrete tokens and back.

Esser, Rombach, Ommer: "Taming Transformers for High-Resolution Image Synthesis" (2021). A convolutional encoder maps a
picture to a grid of vectors, each is replaced by the nearest of `n_embed` codebook entries, and a decoder mirrors the
encoder. In the cosine variant (Yu et al. 2021, "Vector-quantized Image Modeling with Improved VQGAN") vectors and
entries are of length 1; in the Gumbel variant (Jang et al. 2016) the entry is chosen by logits instead. Pictures are in
[0, 1] on both sides, whatever range the network was trained on.

Feature maps are [batch, height, width, channels] throughout.
"""

from __future__ import annotations

import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from dalle_mini.models.config import VQGANConfig
from dalle_mini.models.layered import LayerDecoder, LayerEncoder
from dalle_mini.models.vqgan_blocks import AttnBlock, Downsample, Maker, ResnetBlock, Upsample
from dalle_mini.weights import key_mapping
from dalle_mini.weights.pretrained import Pretrained


class Mid(nnx.Module):
    """The bottleneck: attention between two blocks."""

    def __init__(self, channels: int, make: Maker):
        self.block_1 = ResnetBlock(channels, channels, make)
        self.attn_1 = AttnBlock(channels, make)
        self.block_2 = ResnetBlock(channels, channels, make)

    def __call__(self, x):
        return self.block_2(self.attn_1(self.block_1(x)))


class Level(nnx.Module):
    """The blocks at one resolution, with attention after each where asked, then a change of resolution."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        blocks: int,
        attention: bool,
        make: Maker,
        downsample: Downsample | None = None,
        upsample: Upsample | None = None,
    ):
        self.block = nnx.List(
            ResnetBlock(in_channels if j == 0 else out_channels, out_channels, make) for j in range(blocks)
        )
        self.attn = nnx.List(AttnBlock(out_channels, make) for _ in range(blocks if attention else 0))
        self.downsample, self.upsample = downsample, upsample

    def __call__(self, x):
        for j, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[j](x)
        for resample in (self.downsample, self.upsample):
            if resample is not None:
                x = resample(x)
        return x


class Encoder(nnx.Module):
    def __init__(self, config: VQGANConfig, make: Maker):
        self.conv_in = make.conv(config.in_channels, config.ch, 3)
        levels, channels, side = [], config.ch, config.resolution
        for i, mult in enumerate(config.ch_mult):
            attention = side in config.attn_resolutions
            width, last = config.ch * mult, i == len(config.ch_mult) - 1
            down = None if last else Downsample(width, config.resamp_with_conv, make)
            blocks = config.num_res_blocks
            levels.append(Level(channels, width, blocks, attention, make, downsample=down))
            channels, side = width, side // 2
        self.down = nnx.List(levels)
        self.mid = Mid(channels, make)
        self.norm_out = make.norm(channels)
        out_channels = 2 * config.z_channels if config.double_z else config.z_channels
        self.conv_out = make.conv(channels, out_channels, 3)

    def __call__(self, images):
        h = self.conv_in(images)
        for level in self.down:
            h = level(h)
        return self.conv_out(jax.nn.swish(self.norm_out(self.mid(h))))


class PatchEncoder(nnx.Module):
    """Each token's patch of pixels by itself, through a small network.

    The convolutional encoder sees and normalises the whole picture, so that the tokens of one thing change with its
    surroundings: of a 64-pixel emoji only 29 % stayed the same when the background's colour changed. A large seq2seq
    model trained on millions of pictures does not mind; a small one learns many times faster from tokens that
    mean the same everywhere. The decoder still sees the whole picture, and smooths over the seams.
    """

    WIDTH = 256

    def __init__(self, config: VQGANConfig, make: Maker):
        side = config.downscale
        self.embed = make.conv(config.in_channels, self.WIDTH, side, strides=side, padding="VALID")
        self.hidden = make.conv(self.WIDTH, self.WIDTH, 1)
        out_channels = 2 * config.z_channels if config.double_z else config.z_channels
        self.conv_out = make.conv(self.WIDTH, out_channels, 1)

    def __call__(self, images):
        return self.conv_out(jax.nn.swish(self.hidden(jax.nn.swish(self.embed(images)))))


class Decoder(nnx.Module):
    def __init__(self, config: VQGANConfig, make: Maker):
        channels, side = config.ch * config.ch_mult[-1], config.grid
        self.conv_in = make.conv(config.z_channels, channels, 3)
        self.mid = Mid(channels, make)
        levels = {}
        for i in reversed(range(len(config.ch_mult))):
            attention = side in config.attn_resolutions
            width = config.ch * config.ch_mult[i]
            up = None if i == 0 else Upsample(width, config.resamp_with_conv, make)
            blocks = config.num_res_blocks + 1
            levels[i] = Level(channels, width, blocks, attention, make, upsample=up)
            channels, side = width, side * 2
        self.up = nnx.List(
            levels[i] for i in range(len(levels))
        )  # numbered from full resolution, run from the coarsest
        self.norm_out = make.norm(channels)
        self.conv_out = make.conv(channels, config.out_ch, 3)
        self.give_pre_end = config.give_pre_end

    def __call__(self, states):
        h = self.mid(self.conv_in(states))
        for i in reversed(range(len(self.up))):
            h = self.up[i](h)
        if self.give_pre_end:
            return h
        return self.conv_out(jax.nn.swish(self.norm_out(h)))


class PatchDecoder(nnx.Module):
    """Each token's patch of pixels at once, from the code and from those around it.

    The convolutional decoder must find out where in a patch a pixel is, for repeating pixels and convolving them says
    so only by how neighbouring codes differ: a small one takes thousands of steps to copy what a matrix could. Here
    a matrix says what the code alone means, and residual blocks on the grid of tokens what its surroundings add.
    """

    WIDTH, BLOCKS = 192, 3  # the blocks see seven tokens in each direction

    def __init__(self, config: VQGANConfig, make: Maker):
        self.side, self.channels = config.downscale, config.out_ch
        pixels = self.side**2 * self.channels
        self.direct = make.conv(config.z_channels, pixels, 1)
        self.conv_in = make.conv(config.z_channels, self.WIDTH, 3)
        self.block = nnx.List(ResnetBlock(self.WIDTH, self.WIDTH, make) for _ in range(self.BLOCKS))
        self.norm_out = make.norm(self.WIDTH)
        self.conv_out = make.conv(self.WIDTH, pixels, 1, kernel_init=nnx.initializers.zeros)

    def __call__(self, states):
        h = self.conv_in(states)
        for block in self.block:
            h = block(h)
        patches = self.direct(states) + self.conv_out(jax.nn.swish(self.norm_out(h)))
        batch, height, width, _ = patches.shape
        patches = patches.reshape(batch, height, width, self.side, self.side, self.channels).swapaxes(2, 3)
        return patches.reshape(batch, height * self.side, width * self.side, self.channels)


class VQGAN(Pretrained, nnx.Module):
    """Images <-> tokens. It is an `ImageTokenizer`.

    >>> vqgan = VQGAN.from_pretrained(folder)
    >>> tokens = vqgan.encode(images)    # float [batch, H, W, 3] in [0, 1] -> int32 [batch, h * w], row-major
    >>> images = vqgan.decode(tokens)    # float32 [batch, H, W, 3], not clipped
    """

    config: VQGANConfig
    config_class = VQGANConfig
    map_keys = staticmethod(key_mapping.vqgan)
    encoding_parts: ClassVar[tuple[str, ...]] = ("encoder", "quant_conv", "codebook", "code_logits")

    def __init__(self, config: VQGANConfig, *, rngs: nnx.Rngs, dtype=jnp.float32):
        self.config = config
        make = Maker(config, rngs, dtype)
        encoder: type[Encoder | PatchEncoder | LayerEncoder] = PatchEncoder if config.patch_encoder else Encoder
        decoder: type[Decoder | PatchDecoder | LayerDecoder] = PatchDecoder if config.patch_decoder else Decoder
        if config.layered:
            encoder, decoder = LayerEncoder, LayerDecoder
        self.encoder, self.decoder = encoder(config, make), decoder(config, make)
        self.codebook = nnx.Embed(config.n_embed, config.embed_dim, dtype=dtype, rngs=rngs)
        latent = 2 * config.z_channels if config.double_z else config.z_channels
        self.quant_conv = make.conv(latent, config.embed_dim, 1)
        self.post_quant_conv = make.conv(config.embed_dim, config.z_channels, 1)
        # As exact as the distances in `quantize`: thousands of logits are too close to each other for less.
        exact = {"dtype": jnp.float32, "precision": "highest"}
        gumbel = config.quantizer == "gumbel"
        self.code_logits = make.conv(config.embed_dim, config.n_embed, 1, **exact) if gumbel else None

    @property
    def grid(self) -> int:
        return self.config.grid

    @property
    def codebook_size(self) -> int:
        return self.config.codebook_size

    @property
    def resolution(self) -> int:
        return self.config.resolution

    @property
    def widest(self) -> int:
        return self.config.widest

    @property
    def token_rule(self) -> str:
        return self.config.token_rule

    @property
    def pixel_range(self) -> tuple[int, int]:
        low, high = self.config.pixel_range
        return low, high

    def encode_latents(self, images):
        """Images [batch, H, W, 3] to the vectors that are quantised, [batch, h, w, embed_dim]."""
        low, high = self.config.pixel_range
        latents = self.quant_conv(self.encoder(images * (high - low) + low))
        return unit(latents) if self.config.quantizer == "cosine" else latents

    def codes(self):
        """The vectors that tokens stand for, float [n_embed, embed_dim]; in the cosine variant of length 1."""
        codes = self.codebook.embedding[...]
        return unit(codes) if self.config.quantizer == "cosine" else codes

    def quantize(self, latents):
        """The token of each vector, int32 [batch, h, w]: the nearest codebook entry, ties to the lowest.

        Among vectors of length 1 the nearest has the largest cosine, so the cosine variant does the same. The Gumbel
        variant takes the entry with the largest logit. The published class adds Gumbel noise to the
        logits even outside training, which makes it draw an entry by its probability; here the same picture always
        gives the same tokens.
        """
        if self.code_logits is not None:
            return jnp.argmax(self.code_logits(latents), axis=-1).astype(jnp.int32)
        z = latents.astype(jnp.float32)
        codes = self.codes().astype(jnp.float32)
        # |z - e|^2 expanded, in the published order of operations so that near-ties fall the same way
        distance = (
            jnp.sum(z**2, axis=-1, keepdims=True)
            + jnp.sum(codes**2, axis=-1)
            - 2 * jnp.einsum("bhwc,nc->bhwn", z, codes, precision="highest")
        )
        return jnp.argmin(distance, axis=-1).astype(jnp.int32)

    def decode_latents(self, latents):
        """Quantised vectors [batch, h, w, embed_dim] to images [batch, H, W, 3]."""
        low, high = self.config.pixel_range
        return (self.decoder(self.post_quant_conv(latents)).astype(jnp.float32) - low) / (high - low)

    def encode(self, images):
        """Images, float [batch, H, W, 3] in [0, 1], to tokens, int32 [batch, h * w] row-major."""
        tokens = self.quantize(self.encode_latents(images))
        return tokens.reshape(tokens.shape[0], -1)

    def decode(self, tokens, width: int | None = None):
        """Tokens, int [batch, n] in rows of `width`, to images, float32 [batch, H, W, 3], not clipped.

        None is a square grid. Ids outside the codebook are a caller's error; they come out as its last entry, not as
        the published program's all-NaN image.

        Raises:
          ValueError: n is not a square, or not whole rows of `width`.
        """
        return self._decode_codes(jnp.take(self.codes(), tokens, axis=0, mode="clip"), width)

    def decode_soft(self, probabilities, width: int | None = None):
        """Probabilities of the tokens, float [batch, n, codebook_size], to images as `decode` returns them.

        Each place gets the mean of the codebook's entries, so that gradients reach the probabilities. One-hot rows give
        what `decode` does.
        """
        return self._decode_codes(probabilities.astype(self.codes().dtype) @ self.codes(), width)

    def _decode_codes(self, codes, width: int | None):
        """Codebook entries [batch, n, embed_dim] in rows of `width` to images."""
        batch, count, _ = codes.shape
        side = math.isqrt(count) if width is None else width
        if count % side or (width is None and side * side != count):
            raise ValueError(f"{count} tokens do not make " + (f"rows of {width}" if width else "a square grid"))
        return self.decode_latents(codes.reshape(batch, count // side, side, -1))


def unit(x):
    """Vectors along the last axis, scaled to length 1; a zero vector stays zero."""
    length = jnp.sqrt(jnp.sum(x.astype(jnp.float32) ** 2, axis=-1, keepdims=True) + 1e-12)  # differentiable at 0
    return (x.astype(jnp.float32) / length).astype(x.dtype)

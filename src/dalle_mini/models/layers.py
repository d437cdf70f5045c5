"""The parts of DalleBart's layers, in all the variants of the published architecture.

Each part reads from the config whether it has biases, which norm it has and where; nothing here knows the whole model.

Shapes: B batch, T positions attended from, S positions attended to, D d_model, H heads, K = D / H; in decoding P
prompts of C candidates each, R = P C rows, and W new positions of each.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import export

from dalle_mini.errors import UserError
from dalle_mini.models.config import DalleBartConfig
from dalle_mini.models.linear import LEAST_ROWS, Linear, einsum


def quick_gelu(x: jax.Array) -> jax.Array:
    """The sigmoid approximation of GELU that OpenAI trained CLIP with."""
    return x * jax.nn.sigmoid(1.702 * x)


def smelu(x: jax.Array) -> jax.Array:
    """SmeLU (Shamir et al. 2022) with beta 1: ReLU with a quadratic bend. (The published code got it wrong.)"""
    return jnp.where(x >= 1, x, jnp.square(jnp.maximum(x + 1, 0)) / 4)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": quick_gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
    "smelu": smelu,
}


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
    """The function of that name in a published config.

    Raises:
        UserError: there is none.
    """
    if name not in ACTIVATIONS:
        raise UserError(f"config: activation {name!r:.60} is not supported (supported: {', '.join(ACTIVATIONS)})")
    return ACTIVATIONS[name]


class Maker:
    """Makes the parts of one stack ("encoder" or "decoder") as its config has them."""

    def __init__(self, config: DalleBartConfig, stack: str, *, rngs: nnx.Rngs, dtype):
        self.config, self.stack, self.rngs, self.dtype = config, stack, rngs, dtype
        self.heads: int = getattr(config, f"{stack}_attention_heads")
        self.ffn_dim: int = getattr(config, f"{stack}_ffn_dim")
        self.layers: int = getattr(config, f"{stack}_layers")

    def linear(self, in_features: int, out_features: int, *, gain: float = 1.0) -> nnx.Linear:
        init = nnx.initializers.normal(self.config.init_std * gain)
        options = {"use_bias": self.config.use_bias, "kernel_init": init, "dtype": self.dtype, "rngs": self.rngs}
        return Linear(in_features, out_features, **options)

    def embedding(self, rows: int, features: int | None = None) -> nnx.Embed:
        init = nnx.initializers.normal(self.config.init_std)
        return nnx.Embed(rows, features or self.config.d_model, embedding_init=init, dtype=self.dtype, rngs=self.rngs)

    def norm(self, features: int | None = None, *, use_scale: bool = True) -> nnx.LayerNorm | nnx.RMSNorm:
        """A norm that feeds a linear layer has no scale of its own: the layer's weights absorb it."""
        width, scaled = features or self.config.d_model, use_scale or self.config.force_ln_scale
        kind = nnx.RMSNorm if self.config.ln_type == "rmsnorm" else nnx.LayerNorm
        return kind(width, epsilon=1e-5, use_scale=scaled, dtype=self.dtype, rngs=self.rngs)

    def norm_if(self, wanted: bool, features: int | None = None, *, use_scale: bool = True):
        return self.norm(features, use_scale=use_scale) if wanted else None

    @property
    def residual_scale(self) -> float:
        """DeepNet's alpha, by which the residual outweighs a sublayer's output."""
        encoder, decoder = self.config.encoder_layers, self.config.decoder_layers
        if not self.config.use_deepnet_scaling:
            return 1.0
        return 0.81 * (encoder**4 * decoder) ** (1 / 16) if self.stack == "encoder" else (3 * decoder) ** 0.25

    @property
    def sublayer_gain(self) -> float:
        """The factor of DeepNet (beta) and Magneto (gamma) for initial values, outputs and feed-forward weights."""
        encoder, decoder = self.config.encoder_layers, self.config.decoder_layers
        if self.config.use_deepnet_scaling:
            if self.stack == "encoder":
                return 0.87 * (encoder**4 * decoder) ** (-1 / 16)
            return (12 * decoder) ** -0.25
        if self.config.use_subln_init:
            gamma = math.log(3 * decoder)
            return math.sqrt(gamma * math.log(2 * encoder) / 3 if self.stack == "encoder" else gamma)
        return 1.0

    @property
    def cross_attention_gain(self) -> float:
        """As published, DeepNet's beta is for cross-attention too and Magneto's gamma is not."""
        return self.sublayer_gain if self.config.use_deepnet_scaling else 1.0


def optional(norm, x: jax.Array) -> jax.Array:
    return x if norm is None else norm(x)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """x with a share `rate` of its numbers set to 0 and the others scaled up; without a key, x itself."""
    if key is None or rate == 0:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0).astype(x.dtype)


def split_keys(key: jax.Array | None, count: int) -> list[jax.Array | None]:
    return [None] * count if key is None else list(jax.random.split(key, count))


class KVCache(NamedTuple):
    """Keys and values of one layer's self-attention, each [R, H, T, K] for R rows.

    H before T: the layout in which a step's two products are fastest (10 times, on a CPU). Prompts and candidates are
    one axis, since with an axis of length 1 XLA writes a position into one cache for the loop and into another for the
    products, and copies both at every step.
    """

    keys: jax.Array
    values: jax.Array


export.register_namedtuple_serialization(KVCache, serialized_name="dalle_mini.KVCache")


def _written(cache: jax.Array, new: jax.Array, positions: jax.Array) -> jax.Array:
    """The cache [R, H, T, K] with `new` [R, H, W, K] at positions [W], the same in all rows, or [R, W]."""
    new = new.astype(cache.dtype)
    if positions.ndim == 1:
        return jax.lax.dynamic_update_slice(cache, new, (0, 0, positions[0], 0))
    write = jax.vmap(lambda row, part, at: jax.lax.dynamic_update_slice(row, part, (0, at, 0)))
    return write(cache, new, positions[:, 0])


def enough(queries: jax.Array) -> jax.Array:
    """Queries [B, H, T, K], padded to at least `LEAST_ROWS`: an image alone is rounded as one among others."""
    return jnp.pad(queries, ((0, 0), (0, 0), (0, max(LEAST_ROWS - queries.shape[2], 0)), (0, 0)))


def each_query(product: Callable[[jax.Array], jax.Array], queries: jax.Array) -> jax.Array:
    """The product with queries [R, H, W, K], on a CPU one at a time: a window is rounded there as single steps are."""

    def one_by_one(queries):
        by_query = jax.lax.map(product, jnp.moveaxis(queries, 2, 0)[:, :, :, None])
        return jnp.moveaxis(by_query[:, :, :, 0], 0, 2)

    if queries.shape[2] == 1:
        return product(queries)
    return jax.lax.platform_dependent(queries, cpu=one_by_one, default=product)


class Attention(nnx.Module):
    """Multi-head attention with 2-D kernels.

    `positions` and `length` are the numbers of places that it attends from and to, for the relative positions.
    """

    def __init__(self, make: Maker, positions: int, length: int, *, norm_within: bool = False, is_cross: bool = False):
        config, d = make.config, make.config.d_model
        gain = make.cross_attention_gain if is_cross else make.sublayer_gain
        self.heads, self.width = make.heads, d // make.heads
        self.q_proj = make.linear(d, d)
        self.k_proj = make.linear(d, d)
        self.v_proj = make.linear(d, d, gain=gain)
        self.out_proj = make.linear(d, d, gain=gain)
        self.mid_norm = make.norm_if(norm_within)
        self.head_scale = nnx.Param(jnp.ones((1, 1, self.heads, 1))) if config.use_head_scale else None
        # One row a position attended from; columns are [S, H], the published order.
        swin = config.use_swin_position_embeddings
        self.rel_bias = make.embedding(positions, length * self.heads) if swin else None
        self.cosine = config.use_cosine_attention
        self.scale = 1 / config.tau_init if self.cosine else self.width**-0.5
        self.sinkhorn_iters = config.sinkhorn_iters if make.stack == "encoder" else 1
        self.dropout = config.attention_dropout

    def __call__(self, x, keys_values, mask=None, positions=None, key=None):
        """x [B, T, D] attends to keys_values, each [B, H, S, K], where mask (broadcast to [B, H, T, S]) is true.

        The rows of x are at `positions`, int [T] or [B, T] (or [1], all at the same), by default 0, 1 ... T - 1. With
        a key there is dropout.
        """
        keys, values = keys_values
        count = x.shape[1]
        scores = einsum("bhtk,bhsk->bhts", enough(self._queries(x)), keys)
        positions = jnp.arange(count) if positions is None else positions
        weights = dropout(self._weights(scores, mask, positions), self.dropout, key)
        return self._output(einsum("bhts,bhsk->bthk", weights, values)[:, :count], x.shape)

    def keys_values(self, states):
        """states [B, S, D] to keys and values, each [B, H, S, K]."""
        return self._unit(self._split(self.k_proj(states))), self._split(self.v_proj(states))

    def step(self, x, cache: KVCache, positions):
        """W new positions of C candidates of P prompts, x [P, C W, D].

        They are consecutive, and the same in all rows, `positions` int [W], or each row's own, [R, W]. Writes their
        keys and values into the cache, and attends from each to all positions up to it. Returns the output
        [P, C W, D] and the filled cache.
        """
        rows, window = len(cache.keys), positions.shape[-1]
        q, k, v = (
            layer(x).reshape(rows, window, self.heads, -1).swapaxes(1, 2)  # [R, H, W, K]
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        keys = _written(cache.keys, self._unit(k), positions)
        values = _written(cache.values, v, positions)
        seen = jnp.arange(keys.shape[2]) <= positions[..., None]  # [W, T] or [R, W, T]
        mask = seen if seen.ndim == 2 else seen[:, None]
        scores = each_query(lambda query: jnp.einsum("rhqk,rhtk->rhqt", query, keys), self._unit(q))
        weights = self._weights(scores, mask, positions)
        attended = each_query(lambda query: jnp.einsum("rhqt,rhtk->rhqk", query, values), weights).swapaxes(1, 2)
        return self._output(attended, x.shape), KVCache(keys, values)

    def _split(self, x):
        batch, length, _ = x.shape
        return x.reshape(batch, length, self.heads, -1).swapaxes(1, 2)

    def _queries(self, x):
        return self._unit(self._split(self.q_proj(x)))

    def _unit(self, x):
        return x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-8) if self.cosine else x

    def _weights(self, scores, mask, positions):
        """Scores [..., H, T, S] to weights that sum to 1 over S; float32 within."""
        scores32 = scores.astype(jnp.float32) * self.scale
        if self.rel_bias is not None:
            bias = self.rel_bias(positions).astype(jnp.float32)  # [..., T, S H]
            bias = jnp.moveaxis(bias.reshape(*positions.shape, -1, self.heads), -1, -3)
            scores32 = scores32 + bias[..., : scores.shape[-1]]
        lowest = jnp.finfo(jnp.float32).min
        if mask is not None:
            scores32 = jnp.where(mask, scores32, lowest)
        if self.sinkhorn_iters == 1:
            return jax.nn.softmax(scores32, axis=-1).astype(scores.dtype)
        for i in range(self.sinkhorn_iters):  # over keys and over queries by turns
            scores32 = scores32 - jax.nn.logsumexp(scores32, axis=-1 - i % 2, keepdims=True)
            if mask is not None:
                scores32 = jnp.where(mask, scores32, lowest)
        return jnp.exp(scores32).astype(scores.dtype)

    def _output(self, attended, shape):
        """[B, T, H, K] to [B, T, D]."""
        if self.head_scale is not None:
            attended = attended * self.head_scale[...].astype(attended.dtype)
        return self.out_proj(optional(self.mid_norm, attended.reshape(shape)))


class FeedForward(nnx.Module):
    """act(x W_linear) W_out, or gated, act(x W_gate) * (x W_linear) (Shazeer 2020, "GLU Variants ...")."""

    def __init__(self, make: Maker):
        config, d, gain = make.config, make.config.d_model, make.sublayer_gain
        self.activation = activation(config.activation_function)
        self.norm = make.norm_if(config.norms.ffn_before, use_scale=False)
        self.gate = make.linear(d, make.ffn_dim, gain=gain) if config.use_glu else None
        self.linear = make.linear(d, make.ffn_dim, gain=gain)
        self.mid_norm = make.norm_if(config.norms.ffn_within, make.ffn_dim, use_scale=False)
        self.out = make.linear(make.ffn_dim, d, gain=gain)
        self.dropout = config.activation_dropout

    def __call__(self, x, key=None):
        x = optional(self.norm, x)
        linear = self.linear(x)
        hidden = self.activation(linear) if self.gate is None else self.activation(self.gate(x)) * linear
        return self.out(dropout(optional(self.mid_norm, hidden), self.dropout, key))


class Residual(nnx.Module):
    """The sum around a sublayer: alpha x + norm(h), or in post-LN norm(alpha x + h). It has no parameters.

    With a key, the sublayer's (normed) output goes through dropout ahead of the sum.
    """

    def __init__(self, make: Maker):
        self.alpha = make.residual_scale
        self.norm_last = make.config.ln_positions == "postln"
        self.dropout = make.config.dropout

    def __call__(self, x, h, norm, key=None):
        if self.norm_last:
            return optional(norm, self.alpha * x + dropout(h, self.dropout, key))
        return self.alpha * x + dropout(optional(norm, h), self.dropout, key)

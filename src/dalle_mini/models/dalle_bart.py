"""DalleBart: caption tokens to image tokens.

A BART encoder-decoder (Lewis et al. 2019) whose decoder speaks the VQGAN's codebook, in the variant that DALL·E mini
was published with: NormFormer norm positions (Shleifer et al. 2021), gated linear units (Shazeer 2020), learned
absolute positions, no biases, embeddings shared with nothing.

Shapes: B batch, T positions attended from, S positions attended to, D d_model, H heads, K = D / H.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from dalle_mini.models.config import DalleBartConfig
from dalle_mini.weights import layouts
from dalle_mini.weights.pretrained import Pretrained


class KVCache(NamedTuple):
    """Keys and values of one layer's self-attention, each [P, C, H, T, K]: P prompts of C candidates.

    H before T: the layout in which a step's two products are fastest (10 times, on a CPU).
    """

    keys: jax.Array
    values: jax.Array


def linear(in_features: int, out_features: int, config: DalleBartConfig, *, rngs: nnx.Rngs, dtype) -> nnx.Linear:
    init = nnx.initializers.normal(config.init_std)
    return nnx.Linear(in_features, out_features, use_bias=False, kernel_init=init, dtype=dtype, rngs=rngs)


def embedding(rows: int, config: DalleBartConfig, *, rngs: nnx.Rngs, dtype) -> nnx.Embed:
    init = nnx.initializers.normal(config.init_std)
    return nnx.Embed(rows, config.d_model, embedding_init=init, dtype=dtype, rngs=rngs)


def layer_norm(features: int, *, use_scale: bool = True, rngs: nnx.Rngs, dtype) -> nnx.LayerNorm:
    # A norm that feeds a linear layer has no scale of its own: the layer's weights absorb it.
    return nnx.LayerNorm(features, epsilon=1e-5, use_scale=use_scale, dtype=dtype, rngs=rngs)


class Attention(nnx.Module):
    """Multi-head attention with 2-D kernels."""

    def __init__(self, config: DalleBartConfig, heads: int, *, rngs: nnx.Rngs, dtype):
        self.heads = heads
        d = config.d_model
        self.q_proj = linear(d, d, config, rngs=rngs, dtype=dtype)
        self.k_proj = linear(d, d, config, rngs=rngs, dtype=dtype)
        self.v_proj = linear(d, d, config, rngs=rngs, dtype=dtype)
        self.out_proj = linear(d, d, config, rngs=rngs, dtype=dtype)

    def __call__(self, x, keys_values, mask=None):
        """x [B, T, D] attends to keys_values, each [B, H, S, K], where mask (broadcast to [B, H, T, S]) is true."""
        keys, values = keys_values
        weights = self._softmax(jnp.einsum("bhtk,bhsk->bhts", self._heads(self.q_proj(x)), keys), mask)
        attended = jnp.einsum("bhts,bhsk->bthk", weights, values)
        return self.out_proj(attended.reshape(x.shape))

    def keys_values(self, states):
        """states [B, S, D] to keys and values, each [B, H, S, K]."""
        return self._heads(self.k_proj(states)), self._heads(self.v_proj(states))

    def step(self, x, cache: KVCache, position):
        """One position of every candidate, x [P, C, D]: attend to positions 0..position, after writing the last.

        Returns the output [P, C, D] and the cache with position `position` filled.
        """
        prompts, candidates, _ = x.shape
        q, k, v = (
            layer(x).reshape(prompts, candidates, self.heads, 1, -1)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        at = (0, 0, 0, position, 0)
        keys = jax.lax.dynamic_update_slice(cache.keys, k.astype(cache.keys.dtype), at)
        values = jax.lax.dynamic_update_slice(cache.values, v.astype(cache.values.dtype), at)
        written = jnp.arange(keys.shape[3]) <= position
        weights = self._softmax(jnp.einsum("pchqk,pchtk->pchqt", q, keys), written)
        attended = jnp.einsum("pchqt,pchtk->pchqk", weights, values)
        return self.out_proj(attended.reshape(x.shape)), KVCache(keys, values)

    def _heads(self, x):
        batch, length, _ = x.shape
        return x.reshape(batch, length, self.heads, -1).swapaxes(1, 2)

    def _softmax(self, scores, mask):
        scale = (self.q_proj.out_features // self.heads) ** -0.5
        scores32 = scores.astype(jnp.float32) * scale
        if mask is not None:
            scores32 = jnp.where(mask, scores32, jnp.finfo(jnp.float32).min)
        return jax.nn.softmax(scores32, axis=-1).astype(scores.dtype)


class GLU(nnx.Module):
    """Gated feed-forward, gelu(x W_gate) * (x W_linear), with NormFormer's norm before the last product."""

    def __init__(self, config: DalleBartConfig, hidden: int, *, rngs: nnx.Rngs, dtype):
        d = config.d_model
        self.norm = layer_norm(d, use_scale=False, rngs=rngs, dtype=dtype)
        self.gate = linear(d, hidden, config, rngs=rngs, dtype=dtype)
        self.linear = linear(d, hidden, config, rngs=rngs, dtype=dtype)
        self.mid_norm = layer_norm(hidden, use_scale=False, rngs=rngs, dtype=dtype)
        self.out = linear(hidden, d, config, rngs=rngs, dtype=dtype)

    def __call__(self, x):
        x = self.norm(x)
        return self.out(self.mid_norm(jax.nn.gelu(self.gate(x), approximate=False) * self.linear(x)))


class EncoderLayer(nnx.Module):
    def __init__(self, config: DalleBartConfig, *, rngs: nnx.Rngs, dtype):
        d = config.d_model
        self.self_attn_norm = layer_norm(d, use_scale=False, rngs=rngs, dtype=dtype)
        self.self_attn = Attention(config, config.encoder_attention_heads, rngs=rngs, dtype=dtype)
        self.self_attn_post_norm = layer_norm(d, rngs=rngs, dtype=dtype)
        self.ffn = GLU(config, config.encoder_ffn_dim, rngs=rngs, dtype=dtype)

    def __call__(self, x, mask):
        h = self.self_attn_norm(x)
        x = x + self.self_attn_post_norm(self.self_attn(h, self.self_attn.keys_values(h), mask))
        return x + self.ffn(x)


class DecoderLayer(nnx.Module):
    def __init__(self, config: DalleBartConfig, *, rngs: nnx.Rngs, dtype):
        d = config.d_model
        self.self_attn_norm = layer_norm(d, use_scale=False, rngs=rngs, dtype=dtype)
        self.self_attn = Attention(config, config.decoder_attention_heads, rngs=rngs, dtype=dtype)
        self.self_attn_post_norm = layer_norm(d, rngs=rngs, dtype=dtype)
        self.cross_attn_norm = layer_norm(d, use_scale=False, rngs=rngs, dtype=dtype)
        self.cross_attn = Attention(config, config.decoder_attention_heads, rngs=rngs, dtype=dtype)
        self.cross_attn_post_norm = layer_norm(d, rngs=rngs, dtype=dtype)
        self.ffn = GLU(config, config.decoder_ffn_dim, rngs=rngs, dtype=dtype)

    def __call__(self, x, cross, cross_mask, causal_mask):
        """All positions at once: x [B, T, D]; `cross` is `cross_attn.keys_values(encoder states)`."""
        h = self.self_attn_norm(x)
        h = self.self_attn(h, self.self_attn.keys_values(h), causal_mask)
        return self._after_self_attention(x, h, cross, cross_mask)

    def step(self, x, cross, cross_mask, cache: KVCache, position):
        """One position of C candidates of each of P prompts: x [P, C, D]; returns x and the filled cache.

        The candidates of a prompt are the queries of its one set of cross-attention keys and values.
        """
        h, cache = self.self_attn.step(self.self_attn_norm(x), cache, position)
        return self._after_self_attention(x, h, cross, cross_mask), cache

    def _after_self_attention(self, x, h, cross, cross_mask):
        x = x + self.self_attn_post_norm(h)
        h = self.cross_attn(self.cross_attn_norm(x), cross, cross_mask)
        x = x + self.cross_attn_post_norm(h)
        return x + self.ffn(x)


def stack(layer_class: type[nnx.Module], count: int, config: DalleBartConfig, *, rngs: nnx.Rngs, dtype):
    """`count` layers as one module whose parameters have a leading layer axis."""
    keys = jax.random.split(rngs.params(), count)
    return nnx.vmap(lambda key: layer_class(config, rngs=nnx.Rngs(key), dtype=dtype))(keys)


def scan_layers(layers: nnx.Module, x, body, remat: bool = False):
    """Run `x = body(layer, x)` over stacked layers; with `remat` activations are computed again for the gradient."""
    graphdef, params = nnx.split(layers)

    def step(x, layer_params):
        return body(nnx.merge(graphdef, layer_params), x), None

    return jax.lax.scan(jax.checkpoint(step) if remat else step, x, params)[0]


def unstack_layers(layers: nnx.Module, count: int) -> list[nnx.Module]:
    """The layers one by one, for decoding: slicing a stack at every token would copy every weight at every token."""
    graphdef, params = nnx.split(layers)
    return [nnx.merge(graphdef, jax.tree.map(lambda leaf, i=i: leaf[i], params)) for i in range(count)]


class Encoder(nnx.Module):
    def __init__(self, config: DalleBartConfig, *, rngs: nnx.Rngs, dtype):
        d = config.d_model
        self.embed_tokens = embedding(config.encoder_vocab_size, config, rngs=rngs, dtype=dtype)
        self.embed_positions = embedding(config.max_text_length, config, rngs=rngs, dtype=dtype)
        self.layernorm_embedding = layer_norm(d, rngs=rngs, dtype=dtype)
        self.layers = stack(EncoderLayer, config.encoder_layers, config, rngs=rngs, dtype=dtype)
        self.final_ln = layer_norm(d, use_scale=False, rngs=rngs, dtype=dtype)

    def __call__(self, input_ids, attention_mask, remat: bool = False):
        positions = jnp.arange(input_ids.shape[1])
        x = self.layernorm_embedding(self.embed_tokens(input_ids) + self.embed_positions(positions))
        mask = attention_mask[:, None, None, :].astype(bool)
        x = scan_layers(self.layers, x, lambda layer, x: layer(x, mask), remat)
        return self.final_ln(x)


class Decoder(nnx.Module):
    def __init__(self, config: DalleBartConfig, *, rngs: nnx.Rngs, dtype):
        d = config.d_model
        self.embed_tokens = embedding(config.image_vocab_size + 1, config, rngs=rngs, dtype=dtype)
        self.embed_positions = embedding(config.image_length, config, rngs=rngs, dtype=dtype)
        self.layernorm_embedding = layer_norm(d, rngs=rngs, dtype=dtype)
        self.layers = stack(DecoderLayer, config.decoder_layers, config, rngs=rngs, dtype=dtype)
        self.final_ln = layer_norm(d, use_scale=False, rngs=rngs, dtype=dtype)

    def embed(self, tokens, positions):
        """Tokens (any shape) at positions (broadcast to it) to vectors [..., D]."""
        return self.layernorm_embedding(self.embed_tokens(tokens) + self.embed_positions(positions))

    def __call__(self, tokens, states, attention_mask, remat: bool = False):
        """Teacher forcing: tokens [B, T], encoder states [B, S, D] -> [B, T, D]."""
        length = tokens.shape[1]
        x = self.embed(tokens, jnp.arange(length))
        cross_mask = attention_mask[:, None, None, :].astype(bool)
        causal_mask = jnp.tril(jnp.ones((length, length), bool))

        def body(layer, x):
            return layer(x, layer.cross_attn.keys_values(states), cross_mask, causal_mask)

        return self.final_ln(scan_layers(self.layers, x, body, remat))


class DalleBart(Pretrained, nnx.Module):
    """Caption tokens -> image token logits.

    >>> model = DalleBart.from_pretrained(folder)
    >>> logits = model(input_ids, attention_mask, decoder_input_ids)    # float32 [B, T, image_vocab_size + 1]

    `decoder_input_ids` are the image tokens shifted right behind `config.decoder_start_token_id`.
    """

    config_class = DalleBartConfig
    layout = staticmethod(layouts.dalle_bart)

    def __init__(self, config: DalleBartConfig, *, rngs: nnx.Rngs, dtype=jnp.float32):
        self.config = config
        self.encoder = Encoder(config, rngs=rngs, dtype=dtype)
        self.decoder = Decoder(config, rngs=rngs, dtype=dtype)
        self.lm_head = linear(config.d_model, config.image_vocab_size + 1, config, rngs=rngs, dtype=dtype)

    def __call__(self, input_ids, attention_mask, decoder_input_ids, *, remat: bool = False):
        """Teacher-forced logits, float32 [B, T, image_vocab_size + 1].

        input_ids and attention_mask are int [B, S], decoder_input_ids int [B, T]; `remat` trades time for memory in
        the gradient: activations within a layer are computed again.
        """
        states = self.encoder(input_ids, attention_mask, remat)
        return self.logits(self.decoder(decoder_input_ids, states, attention_mask, remat))

    def encode(self, input_ids, attention_mask):
        """input_ids, attention_mask int [B, S] -> encoder states [B, S, D]."""
        return self.encoder(input_ids, attention_mask)

    def logits(self, x):
        """Decoder output [..., D] -> float32 [..., image_vocab_size + 1]."""
        return self.lm_head(x).astype(jnp.float32)

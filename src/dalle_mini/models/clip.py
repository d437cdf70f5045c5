"""CLIP (Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision").

A vision transformer and a causal text transformer whose pooled outputs meet in one space, in the design of
`openai/clip-vit-base-patch32`. Parameters have the published names; the forward passes read like the paper.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from dalle_mini.errors import UserError
from dalle_mini.models.config import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from dalle_mini.models.layers import activation
from dalle_mini.models.linear import Linear, einsum
from dalle_mini.weights import key_mapping
from dalle_mini.weights.pretrained import Pretrained


class Attention(nnx.Module):
    """Multi-head self-attention with biases; scores and softmax are float32 whatever the compute dtype."""

    def __init__(self, config: CLIPTextConfig | CLIPVisionConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype):
        width, self.heads = config.hidden_size, config.num_attention_heads
        if width % self.heads:
            raise UserError(f"CLIP config: hidden_size {width} is not a multiple of num_attention_heads {self.heads}")

        def projection(std: float) -> nnx.Linear:
            return Linear(width, width, kernel_init=nnx.initializers.normal(std), dtype=dtype, rngs=rngs)

        self.q_proj, self.k_proj, self.v_proj = (projection(width**-0.5) for _ in range(3))
        self.out_proj = projection(residual_std(config))

    def __call__(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        """x [batch, length, width]; mask bool, broadcastable to [batch, heads, length, length], True = attend."""
        q, k, v = (
            proj(x).reshape(*x.shape[:2], self.heads, -1) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )  # [batch, length, heads, head_dim]
        scores = einsum("bqhd,bkhd->bhqk", q * q.shape[-1] ** -0.5, k, out_dtype=jnp.float32)
        if mask is not None:
            scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
        return self.out_proj(einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape))


class MLP(nnx.Module):
    def __init__(self, config: CLIPTextConfig | CLIPVisionConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype):
        self.activation = activation(config.hidden_act)
        width, inner = config.hidden_size, config.intermediate_size
        wide, narrow = nnx.initializers.normal((2 * width) ** -0.5), nnx.initializers.normal(residual_std(config))
        self.fc1 = Linear(width, inner, kernel_init=wide, dtype=dtype, rngs=rngs)
        self.fc2 = Linear(inner, width, kernel_init=narrow, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc2(self.activation(self.fc1(x)))


class EncoderLayer(nnx.Module):
    """Pre-norm transformer block, the same for pictures and for text."""

    def __init__(self, config: CLIPTextConfig | CLIPVisionConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype):
        self.layer_norm1 = layer_norm(config, rngs=rngs, dtype=dtype)
        self.self_attn = Attention(config, rngs=rngs, dtype=dtype)
        self.layer_norm2 = layer_norm(config, rngs=rngs, dtype=dtype)
        self.mlp = MLP(config, rngs=rngs, dtype=dtype)

    def __call__(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        x = x + self.self_attn(self.layer_norm1(x), mask)
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nnx.Module):
    def __init__(self, config: CLIPTextConfig | CLIPVisionConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype):
        self.layers = nnx.List([EncoderLayer(config, rngs=rngs, dtype=dtype) for _ in range(config.num_hidden_layers)])

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        for layer in self.layers:
            x = layer(x, mask)
        return x


class TextEmbeddings(nnx.Module):
    def __init__(self, config: CLIPTextConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype):
        width = config.hidden_size
        self.token_embedding = embedding(config.vocab_size, width, 0.02, rngs=rngs, dtype=dtype)
        self.position_embedding = embedding(config.max_position_embeddings, width, 0.01, rngs=rngs, dtype=dtype)

    def __call__(self, input_ids: jax.Array) -> jax.Array:
        return self.token_embedding(input_ids) + self.position_embedding(jnp.arange(input_ids.shape[1]))


class TextTransformer(nnx.Module):
    def __init__(self, config: CLIPTextConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype):
        self.max_length, self.end_id = config.max_position_embeddings, config.eos_token_id
        self.embeddings = TextEmbeddings(config, rngs=rngs, dtype=dtype)
        self.encoder = Encoder(config, rngs=rngs, dtype=dtype)
        self.final_layer_norm = layer_norm(config, rngs=rngs, dtype=dtype)

    def __call__(self, input_ids: jax.Array, attention_mask: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        length = input_ids.shape[1]
        if length > self.max_length:
            raise ValueError(f"CLIP reads at most {self.max_length} text tokens, got input_ids of {length}")
        mask = jnp.tril(jnp.ones((length, length), bool))[None, None]  # causal: [1, 1, length, length]
        if attention_mask is not None:
            mask = mask & attention_mask.astype(bool)[:, None, None, :]
        states = self.final_layer_norm(self.encoder(self.embeddings(input_ids), mask))  # [batch, length, width]
        # CLIP pads with the end-of-text token too: the first one ends the caption. See CLIPTextConfig for 2.
        end = jnp.argmax(input_ids if self.end_id in (2, None) else input_ids == self.end_id, axis=-1)
        return states, jnp.take_along_axis(states, end[:, None, None], axis=1)[:, 0]


class VisionEmbeddings(nnx.Module):
    def __init__(self, config: CLIPVisionConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype):
        width, patch = config.hidden_size, config.patch_size
        self.dtype = dtype
        self.class_embedding = nnx.Param(jax.random.normal(rngs.params(), (width,)) * width**-0.5)
        self.patch_embedding = nnx.Conv(
            config.num_channels,
            width,
            kernel_size=(patch, patch),
            strides=(patch, patch),
            padding="VALID",
            use_bias=False,
            dtype=dtype,
            rngs=rngs,
        )
        positions = (config.image_size // patch) ** 2 + 1
        self.position_embedding = embedding(positions, width, width**-0.5, rngs=rngs, dtype=dtype)

    def __call__(self, pixels: jax.Array) -> jax.Array:
        patches = self.patch_embedding(pixels)  # [batch, rows, columns, width]
        batch, width = patches.shape[0], patches.shape[-1]
        first = jnp.broadcast_to(self.class_embedding[...].astype(self.dtype), (batch, 1, width))
        tokens = jnp.concatenate([first, patches.reshape(batch, -1, width)], axis=1)
        return tokens + self.position_embedding(jnp.arange(tokens.shape[1]))  # [batch, 1 + patches, width]


class VisionTransformer(nnx.Module):
    def __init__(self, config: CLIPVisionConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype):
        self.pixels_shape = (config.image_size, config.image_size, config.num_channels)
        self.embeddings = VisionEmbeddings(config, rngs=rngs, dtype=dtype)
        self.pre_layernorm = layer_norm(config, rngs=rngs, dtype=dtype)
        self.encoder = Encoder(config, rngs=rngs, dtype=dtype)
        self.post_layernorm = layer_norm(config, rngs=rngs, dtype=dtype)

    def __call__(self, pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
        if pixels.shape[1:] != self.pixels_shape:
            raise ValueError(f"CLIP takes pixels of shape [batch, {self.pixels_shape}], got {pixels.shape}")
        states = self.encoder(self.pre_layernorm(self.embeddings(pixels)))  # [batch, 1 + patches, width]
        return states, self.post_layernorm(states[:, 0])


class CLIP(nnx.Module, Pretrained):
    """Scores how well pictures and texts go together.

    Args:
        config: the two transformers' sizes.
        rngs: keys for the paper's initialisation.
        dtype: compute dtype; softmax, unit vectors and logits are float32 whatever it is.
    """

    config: CLIPConfig
    config_class = CLIPConfig
    map_keys = staticmethod(key_mapping.clip)

    def __init__(self, config: CLIPConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype = jnp.float32):
        self.config = config
        self.text_model = TextTransformer(config.text, rngs=rngs, dtype=dtype)
        self.vision_model = VisionTransformer(config.vision, rngs=rngs, dtype=dtype)

        def projection(width: int) -> nnx.Linear:
            init = nnx.initializers.normal(width**-0.5)
            return Linear(width, config.projection_dim, use_bias=False, kernel_init=init, dtype=dtype, rngs=rngs)

        self.text_projection = projection(config.text.hidden_size)
        self.visual_projection = projection(config.vision.hidden_size)
        self.logit_scale = nnx.Param(jnp.asarray(config.logit_scale_init_value, jnp.float32))
        bias = config.logit_bias_init_value
        self.logit_bias = None if bias is None else nnx.Param(jnp.asarray(bias, jnp.float32))

    def image_states(self, pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
        """States after the last layer [batch, 1 + patches, width], and the normalised class token [batch, width]."""
        return self.vision_model(pixels)

    def text_states(self, input_ids: jax.Array, attention_mask: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Normalised states [batch, length, width], and the end-of-text token's [batch, width]."""
        return self.text_model(input_ids, attention_mask)

    def image_embeds(self, pixels: jax.Array) -> jax.Array:
        """Unit vectors, float32 [batch, projection_dim].

        `pixels` is float [batch, size, size, 3], resized and normalised (`dalle_mini.imaging.clip_pixels.clip_pixels`);
        another shape raises ValueError.
        """
        return unit(self.visual_projection(self.image_states(pixels)[1]))

    def text_embeds(self, input_ids: jax.Array, attention_mask: jax.Array | None = None) -> jax.Array:
        """Unit vectors, float32 [batch, projection_dim].

        `input_ids` is int32 [batch, length] with at most `max_position_embeddings` tokens (more raise ValueError);
        `attention_mask` has 1 for tokens and 0 for padding. Tokens behind the end of the text have no effect.
        """
        return unit(self.text_projection(self.text_states(input_ids, attention_mask)[1]))

    def logits(self, image_embeds: jax.Array, text_embeds: jax.Array) -> jax.Array:
        """Cosine similarities times exp(logit_scale), float32 [images, texts], from the two unit vectors.

        If the CLIP has a `logit_bias`, it is added: the sigmoid of a logit is then how likely the two belong together.
        """
        logits = jnp.exp(self.logit_scale[...].astype(jnp.float32)) * (image_embeds @ text_embeds.T)
        return logits if self.logit_bias is None else logits + self.logit_bias[...].astype(jnp.float32)

    def similarity(self, pixels: jax.Array, input_ids: jax.Array, attention_mask: jax.Array | None = None) -> jax.Array:
        """`logits_per_image`: float32 [images, texts], for inputs as in `image_embeds` and `text_embeds`."""
        return self.logits(self.image_embeds(pixels), self.text_embeds(input_ids, attention_mask))


def unit(x: jax.Array) -> jax.Array:
    x = x.astype(jnp.float32)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def residual_std(config: CLIPTextConfig | CLIPVisionConfig) -> float:
    """The paper's initialisation of what writes to the residual stream: smaller the deeper the stack."""
    return config.hidden_size**-0.5 * (2 * config.num_hidden_layers) ** -0.5


def layer_norm(config: CLIPTextConfig | CLIPVisionConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype) -> nnx.LayerNorm:
    return nnx.LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps, dtype=dtype, rngs=rngs)


def embedding(rows: int, width: int, std: float, *, rngs: nnx.Rngs, dtype: jnp.dtype) -> nnx.Embed:
    return nnx.Embed(rows, width, embedding_init=nnx.initializers.normal(std), dtype=dtype, rngs=rngs)

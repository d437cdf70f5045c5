"""DalleBart: caption tokens to image tokens.

A BART encoder-decoder (Lewis et al. 2019) whose decoder speaks the VQGAN's codebook. As published, DALL·E mini has
NormFormer norm positions, gated linear units, learned absolute positions, no biases, and embeddings shared with
nothing; its code knew many variants more, and so do `config` and `layers`.

Shapes: B batch, T positions attended from, S positions attended to, D d_model, H heads, K = D / H; in decoding P
prompts of C candidates, and W new positions of each.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax import export

from dalle_mini.models.config import DalleBartConfig
from dalle_mini.models.layers import (
    Attention,
    FeedForward,
    KVCache,
    Maker,
    Residual,
    dropout,
    optional,
    split_keys,
)
from dalle_mini.models.linear import Linear, product_p
from dalle_mini.weights import key_mapping
from dalle_mini.weights.pretrained import Pretrained


class EncoderLayer(nnx.Module):
    """Layer `index` of the encoder. The index matters only where `config.layers_are_alike` is false."""

    def __init__(self, make: Maker, index: int):
        config = make.config
        norms, length = config.norms, config.max_text_length
        self.residual = Residual(make)
        self.self_attn_norm = make.norm_if(norms.encoder_attn_before, use_scale=False)
        self.self_attn = Attention(make, length, length, norm_within=norms.attn_within)
        self.self_attn_post_norm = make.norm_if(norms.attn_after)
        self.ffn = FeedForward(make)
        self.ffn_post_norm = make.norm_if(norms.ffn_after, use_scale=not config.is_unscaled(index, make.layers))
        self.extra_norm = make.norm_if(config.has_extra_norm(index, make.layers))

    def __call__(self, x, mask, key=None):
        keys = split_keys(key, 4)
        h = optional(self.self_attn_norm, x)
        h = self.self_attn(h, self.self_attn.keys_values(h), mask, key=keys[0])
        x = self.residual(x, h, self.self_attn_post_norm, keys[1])
        x = self.residual(x, self.ffn(x, keys[2]), self.ffn_post_norm, keys[3])
        return optional(self.extra_norm, x)


class DecoderLayer(nnx.Module):
    """Layer `index` of the decoder. The index matters only where `config.layers_are_alike` is false."""

    def __init__(self, make: Maker, index: int):
        config = make.config
        norms, length = config.norms, config.image_length
        self.residual = Residual(make)
        self.self_attn_norm = make.norm_if(norms.decoder_attn_before, use_scale=False)
        self.self_attn = Attention(make, length, length, norm_within=norms.attn_within)
        self.self_attn_post_norm = make.norm_if(norms.attn_after)
        self.cross_attn_norm = make.norm_if(norms.decoder_attn_before, use_scale=False)
        self.cross_attn = Attention(make, length, config.max_text_length, is_cross=True)
        self.cross_attn_post_norm = make.norm_if(norms.attn_after)
        self.ffn = FeedForward(make)
        self.ffn_post_norm = make.norm_if(norms.ffn_after, use_scale=not config.is_unscaled(index, make.layers))
        self.extra_norm = make.norm_if(config.has_extra_norm(index, make.layers))

    def __call__(self, x, cross, cross_mask, causal_mask, key=None):
        """All positions at once: x [B, T, D]; `cross` is `cross_attn.keys_values(encoder states)`."""
        here, rest = split_keys(key, 2)
        h = optional(self.self_attn_norm, x)
        h = self.self_attn(h, self.self_attn.keys_values(h), causal_mask, key=here)
        return self._after_self_attention(x, h, cross, cross_mask, key=rest)

    def step(self, x, cross, cross_mask, cache: KVCache, positions):
        """W positions of C candidates of each of P prompts: x [P, C W, D]; returns x and the filled cache.

        `positions` are int [W], the same for all, or [P C, W]. In cross-attention the C W vectors of a prompt are the
        queries of its one set of keys and values.
        """
        h, cache = self.self_attn.step(optional(self.self_attn_norm, x), cache, positions)
        at = of_each(positions, *x.shape[:2])
        return self._after_self_attention(x, h, cross, cross_mask, at), cache

    def _after_self_attention(self, x, h, cross, cross_mask, positions=None, key=None):
        keys = split_keys(key, 5)
        x = self.residual(x, h, self.self_attn_post_norm, keys[0])
        h = self.cross_attn(optional(self.cross_attn_norm, x), cross, cross_mask, positions, keys[1])
        x = self.residual(x, h, self.cross_attn_post_norm, keys[2])
        x = self.residual(x, self.ffn(x, keys[3]), self.ffn_post_norm, keys[4])
        return optional(self.extra_norm, x)


def of_each(positions, captions: int, count: int):
    """The positions of windows, int [W] or [P C, W], for the `count` = C W vectors of each caption.

    Windows that are the same give [C W], or [1] where one position stands for all; others give [P, C W].
    """
    if positions.ndim == 2:
        return positions.reshape(captions, count)
    return positions if len(positions) == 1 else jnp.tile(positions, count // len(positions))


Layer = EncoderLayer | DecoderLayer


def make_layers(layer_class: type[Layer], make: Maker) -> Layer | nnx.List:
    """One module whose parameters have a leading layer axis, or a list of layers where they are not alike."""
    if not make.config.layers_are_alike(make.layers):
        return nnx.List(layer_class(make, index) for index in range(make.layers))

    def one(key) -> Layer:
        return layer_class(Maker(make.config, make.stack, rngs=type(make.rngs)(key), dtype=make.dtype), 0)

    return nnx.vmap(one)(jax.random.split(make.rngs.params(), make.layers))


def _with_weights(primitive, *arrays, **parameters):
    """Is it a product with weights? A policy of `jax.checkpoint`."""
    known = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return primitive is product_p or known(primitive, *arrays, **parameters)


# The part of a layer's forward pass that is kept for the gradient: all, the products with weights, or its input.
REMAT = {
    "none": None,
    "dots": _with_weights,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class ForwardOptions(NamedTuple):
    """Options of a forward pass that only training sets.

    Attributes:
        key: draws dropout; without it there is none.
        remat: a key of `REMAT`: what is not kept for the gradient is computed again, less memory for more time.
        between: applied to the activations between layers, [B, T, D]: it says how devices share them.
    """

    key: jax.Array | None = None
    remat: str = "none"
    between: Callable[[jax.Array], jax.Array] = lambda x: x

    def split(self, count: int) -> list[ForwardOptions]:
        return [self._replace(key=key) for key in split_keys(self.key, count)]


PLAIN = ForwardOptions()


def run_layers(layers: Layer | nnx.List, x, body, options: ForwardOptions):
    """Run `x = body(layer, x, key)` over the layers, with a key for each if there is one."""
    if isinstance(layers, nnx.List):
        for layer, key in zip(layers, split_keys(options.key, len(layers)), strict=True):
            x = _step(layer, body, options)(x, (nnx.state(layer), key))[0]
        return x
    params = nnx.state(layers)
    keys = None if options.key is None else jax.random.split(options.key, len(jax.tree.leaves(params)[0]))
    return jax.lax.scan(_step(layers, body, options), x, (params, keys))[0]


def _step(layer: Layer, body, options: ForwardOptions):
    graphdef = nnx.graphdef(layer)

    def step(x, one):
        params, key = one
        return options.between(body(nnx.merge(graphdef, params), options.between(x), key)), None

    return step if options.remat == "none" else jax.checkpoint(step, policy=REMAT[options.remat], prevent_cse=False)


def unstack_layers(layers: Layer | nnx.List, count: int, *, consume: bool = False) -> list[Layer]:
    """The layers one by one, for decoding: slicing a stack at every token would copy every weight at every token.

    With `consume` each stacked array is freed once it is sliced, so that memory never holds all of them twice.
    """
    if isinstance(layers, nnx.List):
        return list(layers)
    graphdef, params = nnx.split(layers)
    stacks, tree = jax.tree.flatten(params)
    slices = []
    for stack in stacks:
        slices.append(_slices(stack, count))
        if consume:
            jax.block_until_ready(slices[-1])
            stack.delete()
    return [nnx.merge(graphdef, jax.tree.unflatten(tree, layer)) for layer in zip(*slices, strict=True)]


@partial(jax.jit, static_argnums=1)  # one program to compile, or to find compiled, for all stacks of a shape
def _slices(stack: jax.Array, count: int) -> list[jax.Array]:
    return [stack[i] for i in range(count)]


class Stack(nnx.Module):
    """The shared parts of encoder and decoder: embeddings in front of the layers and a norm behind them."""

    def __init__(self, layer_class: type[Layer], make: Maker, *, rows: int, length: int, final_ln: bool):
        config = make.config
        self.token_scale = config.d_model**0.5 if config.scale_embedding else 1.0
        self.dropout = config.dropout
        self.embed_tokens = make.embedding(rows)
        self.embed_positions = make.embedding(length) if config.use_absolute_position_embeddings else None
        self.layernorm_embedding = make.norm()
        self.layers = make_layers(layer_class, make)
        self.final_ln = make.norm_if(final_ln and config.ln_positions != "postln", use_scale=False)

    def embed(self, tokens, positions):
        """Tokens (any shape) at positions (broadcast to it) to vectors [..., D]."""
        x = self.token_scale * self.embed_tokens(tokens)
        return self.layernorm_embedding(x if self.embed_positions is None else x + self.embed_positions(positions))

    def run(self, tokens, body, options: ForwardOptions, positions=None):
        """The whole stack on tokens [B, T], `x = body(layer, x, key)` being a layer; [B, T, D].

        They are at `positions`, int [T] or [B, T], or where None the first T.
        """
        for_embeddings, for_layers = options.split(2)
        if positions is None:
            positions = jnp.arange(tokens.shape[1])
        x = dropout(self.embed(tokens, positions), self.dropout, for_embeddings.key)
        return self.finish(run_layers(self.layers, x, body, for_layers))

    def finish(self, x):
        return optional(self.final_ln, x)


class Encoder(Stack):
    def __init__(self, config: DalleBartConfig, *, rngs: nnx.Rngs, dtype):
        super().__init__(
            EncoderLayer,
            Maker(config, "encoder", rngs=rngs, dtype=dtype),
            rows=config.encoder_vocab_size,
            length=config.max_text_length,
            final_ln=config.use_final_ln_encoder,
        )

    def __call__(self, input_ids, attention_mask, options: ForwardOptions = PLAIN):
        mask = attention_mask[:, None, None, :].astype(bool)
        return self.run(input_ids, lambda layer, x, key: layer(x, mask, key), options)


class Decoder(Stack):
    def __init__(self, config: DalleBartConfig, *, rngs: nnx.Rngs, dtype):
        super().__init__(
            DecoderLayer,
            Maker(config, "decoder", rngs=rngs, dtype=dtype),
            rows=config.image_vocab_size + 1,
            length=config.image_length,
            final_ln=config.use_final_ln_decoder,
        )

    def __call__(self, tokens, states, attention_mask, options: ForwardOptions = PLAIN, positions=None):
        """Teacher forcing: tokens [B, T] at rising `positions`, [T] or [B, T], and states [B, S, D] -> [B, T, D]."""
        length = tokens.shape[1]
        cross_mask = attention_mask[:, None, None, :].astype(bool)
        causal_mask = jnp.tril(jnp.ones((length, length), bool))

        def body(layer, x, key):
            return layer(x, layer.cross_attn.keys_values(states), cross_mask, causal_mask, key)

        return self.run(tokens, body, options, positions)


class Context(NamedTuple):
    """The parts of R captions that decoding keeps."""

    cross: list[tuple[jax.Array, jax.Array]]  # keys and values of each layer's cross-attention, [R, H, S, K]
    mask: jax.Array  # bool [R, 1, 1, S]


export.register_namedtuple_serialization(Context, serialized_name="dalle_mini.Context")


@partial(jax.jit, static_argnums=1)
def _grown(cache: list[KVCache], room: int) -> list[KVCache]:
    return jax.tree.map(lambda leaf: jnp.pad(leaf, [(0, 0), (0, 0), (0, room - leaf.shape[2]), (0, 0)]), cache)


class DalleBart(Pretrained, nnx.Module):
    """Caption tokens -> image token logits.

    >>> model = DalleBart.from_pretrained(folder)
    >>> logits = model(input_ids, attention_mask, decoder_input_ids)    # float32 [B, T, image_vocab_size + 1]

    `decoder_input_ids` are the image tokens shifted right behind `config.decoder_start_token_id`.
    """

    config: DalleBartConfig
    config_class = DalleBartConfig
    map_keys = staticmethod(key_mapping.dalle_bart)

    def __init__(self, config: DalleBartConfig, *, rngs: nnx.Rngs, dtype=jnp.float32):
        self.config = config
        self.encoder = Encoder(config, rngs=rngs, dtype=dtype)
        self.decoder = Decoder(config, rngs=rngs, dtype=dtype)
        self.lm_head = Linear(
            config.d_model,
            config.image_vocab_size + 1,
            use_bias=config.final_logits_bias,
            kernel_init=nnx.initializers.normal(config.init_std),
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(self, input_ids, attention_mask, decoder_input_ids):
        """Teacher-forced logits, float32 [B, T, image_vocab_size + 1].

        input_ids and attention_mask are int [B, S], decoder_input_ids int [B, T].
        """
        return self.logits(self.hidden(input_ids, attention_mask, decoder_input_ids))

    def hidden(self, input_ids, attention_mask, decoder_input_ids, options: ForwardOptions = PLAIN, positions=None):
        """The input of `logits`, [B, T, D]; `positions` are those of `decoder_input_ids`, as in `Decoder`."""
        for_encoder, for_decoder = options.split(2)
        states = self.encoder(input_ids, attention_mask, for_encoder)
        return self.decoder(decoder_input_ids, states, attention_mask, for_decoder, positions)

    def encode(self, input_ids, attention_mask):
        """input_ids, attention_mask int [B, S] -> encoder states [B, S, D]."""
        return self.encoder(input_ids, attention_mask)

    def logits(self, x):
        """Decoder output [..., D] -> float32 [..., image_vocab_size + 1]."""
        return self.lm_head(x).astype(jnp.float32)

    # The rest makes it a `TokenModel`; see there for shapes.

    @property
    def dtype(self) -> jnp.dtype:
        return jnp.dtype(self.lm_head.dtype)

    @property
    def image_length(self) -> int:
        return self.config.image_length

    @property
    def vocabulary_size(self) -> int:
        return self.config.image_vocab_size + 1

    @property
    def start_token(self) -> int:
        return self.config.start_token

    def prefill(self, input_ids, attention_mask, candidates: int, room: int) -> tuple[Context, list[KVCache]]:
        # One by one: the same numbers for a caption whatever the others are.
        states = jax.lax.map(lambda row: self.encode(row[:1], row[1:])[0], jnp.stack([input_ids, attention_mask], 1))
        cross = [layer.cross_attn.keys_values(states) for layer in self._layers()]
        heads, kept = self.config.decoder_attention_heads, cross[0][0].dtype  # a step's type, maybe not the encoder's
        empty = jnp.zeros((len(states) * candidates, heads, room, self.config.d_model // heads), kept)
        mask = attention_mask[:, None, None, :].astype(bool)
        return Context(cross, mask), [KVCache(empty, empty) for _ in cross]

    def step(self, tokens, context: Context, cache: list[KVCache], position) -> tuple[jax.Array, list[KVCache]]:
        captions, _, window = tokens.shape
        inputs, filled = tokens.reshape(captions, -1), []
        positions = jnp.asarray(position).reshape(-1, 1) + jnp.arange(window)
        positions = positions[0] if jnp.ndim(position) == 0 else positions
        x = self.decoder.embed(inputs, of_each(positions, *inputs.shape))  # [R, C W, D]
        for layer, cross, before in zip(self._layers(), context.cross, cache, strict=True):
            x, after = layer.step(x, cross, context.mask, before, positions)
            filled.append(after)
        return self.logits(self.decoder.finish(x)).reshape(*tokens.shape, -1), filled

    def grow(self, cache: list[KVCache], room: int) -> list[KVCache]:
        return cache if cache[0].keys.shape[2] == room else _grown(cache, room)

    def rollback(self, cache: list[KVCache], length) -> list[KVCache]:
        return cache  # a step looks at no position behind its own, and writes over what was there

    def _layers(self) -> list[DecoderLayer]:
        return cast(list[DecoderLayer], unstack_layers(self.decoder.layers, self.config.decoder_layers))

    @classmethod
    def from_bart(
        cls,
        source: str | os.PathLike,
        *,
        rngs: nnx.Rngs,
        dtype=jnp.float32,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | os.PathLike | None = None,
        local_files_only: bool = False,
        **changes,
    ) -> DalleBart:
        """A model whose encoder is a trained BART's and whose decoder is fresh: how DALL·E mini was first trained.

        Args:
            source: BART's folder or repository, such as "facebook/bart-large-cnn", in torch's or Flax's format.
            revision, token, cache_dir, local_files_only: of the Hub, as in `hub.resolve`.
            changes: fields of the config that are not BART's own, such as `image_vocab_size`, `image_length`,
                `decoder_layers`; a `max_text_length` below BART's keeps its first positions.
        Raises:
            UserError: it is not a BART, no model computes in the dtype, or a change is no field of the config, has a
                value that a file's might not have, or does not fit BART's encoder; the message names it.
        """
        from dalle_mini.conversion.surgery import bart_encoder_into

        hub = {"revision": revision, "token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
        return bart_encoder_into(cls, source, rngs=rngs, dtype=dtype, changes=changes, **hub)

    def with_image_vocab(self, size: int, *, rngs: nnx.Rngs) -> DalleBart:
        """The same model for a codebook of another size: what fits is kept, new tokens are fresh.

        For a VQGAN with a larger or a smaller codebook. Tokens keep their numbers, the start token comes behind them.
        """
        from dalle_mini.conversion.surgery import with_image_vocab

        return with_image_vocab(self, size, rngs=rngs)

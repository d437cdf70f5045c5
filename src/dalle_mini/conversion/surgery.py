"""New models from parts of old ones: BART's encoder under a fresh decoder, a decoder for another codebook."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx

from dalle_mini.errors import UserError
from dalle_mini.weights import key_mapping
from dalle_mini.weights.folder import CONFIG, load_config, load_tensors
from dalle_mini.weights.hub.repository import blaming_cache, resolve
from dalle_mini.weights.pretrained import compute_dtype, flatten, mismatch, to_device, unflatten

if TYPE_CHECKING:
    from dalle_mini.models.dalle_bart import DalleBart

# The ids of image tokens that change with the vocabulary; None stands for the row behind it.
TOKEN_IDS = ("decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id")


def bart_encoder_into(
    cls: type[DalleBart], source: str | os.PathLike, *, rngs: nnx.Rngs, dtype, changes: dict[str, Any], **hub
) -> DalleBart:
    """`DalleBart.from_bart`."""
    dtype = compute_dtype(dtype)
    folder = resolve(source, **hub)
    with blaming_cache(folder):
        fields = load_config(folder)
        if fields.get("model_type") != "bart":
            raise UserError(f"{folder}: its {CONFIG} says model_type={fields.get('model_type')!r:.60}, not bart")
        config = cls.config_class.from_dict(fields)
        unknown = sorted(set(changes) - {field.name for field in dataclasses.fields(config)})
        if unknown:
            raise UserError(f"DalleBart has no setting {', '.join(unknown)}")
        # BART's own tokens would be words.
        fresh = {**dict.fromkeys(TOKEN_IDS), "final_logits_bias": False}
        config = cls.config_class.from_dict(config.to_dict() | fresh | changes)  # checks it as a file's
        model = cls(config, rngs=rngs, dtype=dtype)
        nnx.update(model, jax.tree.map(lambda array: array.astype(dtype), nnx.state(model)))
        tensors = load_tensors(folder)
        found = key_mapping.bart_encoder(tensors, config)
        state = nnx.state(model.encoder)
        wanted = {f"encoder.{name}": array for name, array in flatten(state).items()}
        problem = mismatch(wanted, found)
        if problem:
            raise UserError(f"{tensors.file} does not fit the encoder of DalleBart: {problem}")
        arrays = {name.removeprefix("encoder."): to_device(found[name], dtype) for name in wanted}
        nnx.update(model.encoder, unflatten(arrays, state))
    return model


def with_image_vocab(model: DalleBart, size: int, *, rngs: nnx.Rngs) -> DalleBart:
    """`DalleBart.with_image_vocab`."""
    old = model.config
    fresh_ids: dict[str, Any] = dict.fromkeys(TOKEN_IDS)
    config = dataclasses.replace(old, image_vocab_size=size, **fresh_ids)
    arrays = flatten(nnx.state(model))
    graph, state = model.shapes(config, arrays["lm_head.kernel"].dtype)
    # Rows from the start token's on are no image tokens: mega has some that round its vocabulary up.
    kept = min(size, old.image_vocab_size, old.start_token)
    for name, axis in (("decoder.embed_tokens.embedding", 0), ("lm_head.kernel", 1), ("lm_head.bias", 0)):
        if name not in arrays:
            continue
        array = jnp.moveaxis(arrays[name], axis, 0)
        fresh = old.init_std * rngs.params.normal((size - kept, *array.shape[1:]), array.dtype)
        start = array[old.start_token][None]
        arrays[name] = jnp.moveaxis(jnp.concatenate([array[:kept], fresh, start]), 0, axis)
    return nnx.merge(graph, unflatten(arrays, state))

"""A DalleBart in the form that the decoding loop reads fastest.

A step multiplies a few rows by every weight of the decoder, so it takes about as long as reading the weights. So the
layers are unstacked, because slicing a stack would copy every weight at every token; and the weights lie as the machine
reads them best, in as few bytes as the requested type allows.

On a CPU the products of a row with the weights are the same to the bit for 2 rows as for 200, in each of the three
types, and so are attention's for 2 queries as for 40. So an image does not depend on how many are drawn beside it. A
product of one row is another routine, so queries of cross-attention are filled up to two.

- float32 weights lie in tiles on a CPU (`cpu/tiles.py`), and [out, in] elsewhere.
- bfloat16 weights are half the bytes, and on a CPU products of them with bfloat16 rows, summed in float32, are quick.
  Everything else is float32 there, because XLA's small batched products, attention's, are slow in bfloat16.
- int8 weights are a quarter. The rows are split into two int8 parts, so the products are of integers, and exact.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import UnionType
from typing import TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dalle_mini.errors import UserError
from dalle_mini.generation.cpu.tiles import TiledLinear
from dalle_mini.models.dalle_bart import DalleBart, Layer, unstack_layers
from dalle_mini.models.linear import Linear, product
from dalle_mini.models.token_model import TokenModel, TokenModelConfig, token_model_shapes
from dalle_mini.weights.pretrained import compute_dtype

# Rows of bfloat16 that XLA multiplies at once on a CPU, where there are more than it takes at a time anyway: with 64
# rows of 4,096 products took 1.6 times as long as with 72.
AT_ONCE, ANYWAY = 12, 8


class RowLinear(nnx.Module):
    """x W^T + b with weight [out, in]; multiplied in `dtype`, summed and returned in `out_dtype`.

    With `whole`, the rows are filled up to what is multiplied at once.
    """

    def __init__(self, linear: nnx.Linear, out_dtype, whole: bool):
        self.weight = nnx.Param(linear.kernel[...].T)
        self.bias = None if linear.bias is None else nnx.Param(linear.bias[...])
        self.dtype, self.out_dtype, self.whole = linear.dtype, out_dtype, whole

    @property
    def kernel(self) -> jax.Array:
        return self.weight[...].T

    def __call__(self, x: jax.Array) -> jax.Array:
        rows = x.astype(self.dtype).reshape(-1, x.shape[-1])
        filled = _filled(rows) if self.whole else rows
        y = _rows(filled, self.weight[...].astype(self.dtype), self.out_dtype)[: len(rows)]
        y = y.reshape(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias[...].astype(self.out_dtype)


class Int8Linear(nnx.Module):
    """x W^T + b with weight int8 [out, in] and one scale an output: the largest weight of a row is 127.

    The products are of integers, or of `dtype`, and the weights are made wide on their way in.
    """

    def __init__(self, linear: nnx.Linear, integers: bool):
        weight = linear.kernel[...].T.astype(jnp.float32)
        scale = jnp.maximum(jnp.abs(weight).max(axis=1), 1e-12) / 127
        self.weight = nnx.Param(jnp.round(weight / scale[:, None]).astype(jnp.int8))
        self.scale = nnx.Param(scale)
        self.bias = None if linear.bias is None else nnx.Param(linear.bias[...])
        self.dtype, self.integers = linear.dtype, integers

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.integers:
            y = _integer_rows(x.astype(jnp.float32), self.weight[...]) * self.scale[...]
        else:
            y = _rows(x.astype(self.dtype), self.weight[...].astype(self.dtype), self.dtype) * self.scale[...]
        y = y.astype(self.dtype)
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)


M = TypeVar("M", bound=nnx.Module)


def optimize_for_decoding(
    model: TokenModel, *, int8: bool = False, consume: bool = False, platform: str | None = None
) -> TokenModel:
    """The same model with its decoder in the form that decoding reads fastest.

    One that has this form, and a network that has one form alone, is returned as it is.

    Args:
        int8: round the decoder's linear layers to 8 bits.
        consume: free what is no longer needed on the way, so that memory holds little more than one model. `model`
            is of no use afterwards. Without it `model` stays whole, and shares the parameters that are not changed.
        platform: "cpu", "gpu" or "tpu", where it will compute; JAX's default is the default.
    """
    if not isinstance(model, DalleBart) or is_optimized(model):
        return model
    ready, dtype = nnx.merge(*nnx.split(model)), model.dtype
    on_cpu = (platform or jax.default_backend()) == "cpu"
    between = step_dtype(dtype, platform)
    make: Callable[[nnx.Linear], nnx.Module]
    if int8:
        make = partial(Int8Linear, integers=on_cpu)
    else:
        in_rows = partial(RowLinear, out_dtype=between, whole=between != dtype)
        make = TiledLinear if on_cpu and dtype == jnp.float32 else in_rows
        _compute_in(ready.decoder, between)
    if between != dtype:
        # In a loop over stacked layers XLA makes the whole stack float32 first: 4 GB of mega's encoder.
        layers = unstack_layers(ready.encoder.layers, model.config.encoder_layers, consume=consume)
        ready.encoder.layers = nnx.List(layers)
        _multiply_with(ready.encoder, flat_dot_general)
    layers = unstack_layers(ready.decoder.layers, model.config.decoder_layers, consume=consume)
    for layer in layers:
        swap(layer, nnx.Linear, make)
    ready.decoder.layers = nnx.List(layers)
    ready.lm_head = cast(nnx.Linear, make(ready.lm_head))  # it does all that the network asks of one
    return ready


def compute_dtypes(dtype: str) -> tuple[np.dtype, np.dtype]:
    """The types that `--dtype` asks for: the seq2seq model's, and that of the VQGAN and CLIP.

    A CPU computes those two no faster in bfloat16.

    Raises:
        UserError: no model computes in this type.
    """
    wide = jax.default_backend() == "cpu"
    seq2seq = compute_dtype(("float32" if wide else "bfloat16") if dtype == "int8" else dtype)
    return seq2seq, compute_dtype("float32") if wide and seq2seq == jnp.bfloat16 else seq2seq


def step_dtype(dtype, platform: str | None = None) -> np.dtype:
    """The type in which such a model computes a step, but for products with its weights, and keeps its cache."""
    wide = (platform or jax.default_backend()) == "cpu" and dtype == jnp.bfloat16
    return jnp.dtype(jnp.float32 if wide else dtype)


def optimized_shapes(config: TokenModelConfig, dtype, **options) -> tuple[nnx.GraphDef, nnx.State]:
    """The shapes of what `optimize_for_decoding` makes, with these options, of a model of this configuration."""
    graph, state = token_model_shapes(config, dtype)
    state = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), state)
    return nnx.split(nnx.eval_shape(lambda state: optimize_for_decoding(nnx.merge(graph, state), **options), state))


def weight_type(model: TokenModel) -> str:
    """The type of the weights that a step reads: "int8", or the one that the model was loaded in."""
    is_int8 = isinstance(model, DalleBart) and isinstance(model.lm_head, Int8Linear)
    return "int8" if is_int8 else jnp.dtype(model.dtype).name


def is_optimized(model: DalleBart) -> bool:
    return not isinstance(model.lm_head, nnx.Linear)


def undo_optimization(model: TokenModel) -> TokenModel:
    """The inverse of `optimize_for_decoding`, for saving.

    Raises:
        UserError: the weights are int8, which are not those that were loaded.
    """
    if not isinstance(model, DalleBart) or not is_optimized(model):
        return model
    if isinstance(model.lm_head, Int8Linear):
        raise UserError("int8 weights are for drawing alone: load the model in another dtype to save it")
    ready = nnx.merge(*nnx.split(model))
    swap(ready, RowLinear | TiledLinear, _plain)
    _compute_in(ready.decoder, model.dtype)
    _multiply_with(ready.encoder, product)
    for stack in (ready.encoder, ready.decoder):
        if isinstance(stack.layers, nnx.List) and model.config.layers_are_alike(len(stack.layers)):
            stack.layers = _stacked(stack.layers)
    return ready


def _stacked(layers: nnx.List) -> Layer:
    states = [nnx.state(layer) for layer in layers]
    return nnx.merge(nnx.graphdef(layers[0]), jax.tree.map(lambda *leaves: jnp.stack(leaves), *states))


def _plain(linear: RowLinear | TiledLinear) -> nnx.Linear:
    inputs, outputs = linear.kernel.shape
    bias, dtype = linear.bias, linear.dtype
    made = nnx.eval_shape(
        lambda: Linear(inputs, outputs, use_bias=bias is not None, dtype=dtype, param_dtype=dtype, rngs=nnx.Rngs(0))
    )
    made.kernel = nnx.Param(linear.kernel)
    if bias is not None:
        made.bias = nnx.Param(bias[...])
    return made


def swap(module: nnx.Module, kinds: type[M] | UnionType, make: Callable[[M], nnx.Module]) -> None:
    """Replace every layer of these kinds within a module by what `make` makes of it."""
    for _, owner in list(nnx.iter_modules(module)):
        for name, child in list(vars(owner).items()):
            if isinstance(child, kinds):
                setattr(owner, name, make(child))


def _compute_in(decoder: nnx.Module, dtype) -> None:
    """Norms and embeddings compute in this type, and with them what is between the products.

    Their parameters are of it too: XLA would convert the whole table of a narrow embedding for a few rows of it.
    """
    for _, module in nnx.iter_modules(decoder):
        if isinstance(module, nnx.LayerNorm | nnx.RMSNorm | nnx.Embed):
            module.dtype = dtype
            for name, value in list(vars(module).items()):
                if isinstance(value, nnx.Param):
                    setattr(module, name, nnx.Param(value[...].astype(dtype)))


def _multiply_with(encoder: nnx.Module, dot_general: Callable[..., jax.Array]) -> None:
    for _, module in nnx.iter_modules(encoder):
        if isinstance(module, nnx.Linear):
            module.dot_general = dot_general


def flat_dot_general(x: jax.Array, kernel: jax.Array, dimensions, **options) -> jax.Array:
    """The product of x's last axis with the kernel's first, as one of matrices.

    With a third axis, or a sum in bfloat16, XLA multiplies bfloat16 as float32 on a CPU, a third as fast.
    """
    rows, options = x.reshape(-1, x.shape[-1]), options | {"preferred_element_type": jnp.float32}
    y = jax.lax.dot_general(_filled(rows), kernel, (((1,), (0,)), ((), ())), **options)[: len(rows)]
    return y.astype(x.dtype).reshape(*x.shape[:-1], -1)


def _filled(rows: jax.Array) -> jax.Array:
    """With zeros to a number of rows that a CPU is quick at."""
    return jnp.pad(rows, ((0, -len(rows) % AT_ONCE if len(rows) > ANYWAY else 0), (0, 0)))


def _rows(x: jax.Array, weight: jax.Array, dtype) -> jax.Array:
    """x [..., in], weight [out, in] -> [..., out], summed in `dtype`."""
    rows = x.reshape(-1, x.shape[-1])
    y = jax.lax.dot_general(rows, weight, (((1,), (1,)), ((), ())), preferred_element_type=dtype)
    return y.reshape(*x.shape[:-1], -1)


def _integer_rows(x: jax.Array, weight: jax.Array) -> jax.Array:
    """x float32 [..., in], weight int8 [out, in] -> float32 [..., out].

    A row is its largest number / 127 times (high + low / 254), both of -127 to 127: to a 65,000th of that number, which
    is far less than what rounding the weights did. High and low parts are rows of one product, which has no rounding.
    """
    rows = x.reshape(-1, x.shape[-1])
    unit = jnp.maximum(jnp.abs(rows).max(axis=-1, keepdims=True), jnp.finfo(x.dtype).tiny) / 127
    scaled = rows / unit
    high = jnp.round(scaled)
    low = jnp.round((scaled - high) * 254)
    parts = jnp.concatenate([high, low]).astype(jnp.int8)
    high, low = jnp.split(_rows(parts, weight, jnp.int32).astype(x.dtype), 2)
    return ((high + low / 254) * unit).reshape(*x.shape[:-1], -1)

"""Products of matrices in the forms that a CPU is quick at. On other platforms they are JAX's own.

- Gradients of a linear layer: by itself JAX differentiates x W, x [B, T, in], to products with three axes. On a CPU XLA
  makes these products of matrices with the second one transposed, and computes that matrix's origin a second time,
  column by column. The backward pass of a small model took six times as long as its forward pass that way, and takes
  three times as long with these forms.
- bfloat16: XLA leaves a product to the processor's own instructions for bfloat16 only if the sum is float32, and each
  matrix lies in memory, row after row, as it is multiplied. It makes float32 of all others first. On an AMD with
  AVX-512 the former are twice as quick, on an Intel with AMX five times. All are rounded to bfloat16 at the end.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

LEAST_ROWS = 2  # of a product, in decoding: that of a single row is another routine, with another rounding


def product(x: jax.Array, kernel: jax.Array, dimensions, *, precision=None, out_sharding=None) -> jax.Array:
    """x [..., in] times kernel [in, out] -> [..., out]; `jax.lax.dot_general` as `nnx.Linear` calls it."""
    if dimensions != (((x.ndim - 1,), (0,)), ((), ())) or precision is not None or out_sharding is not None:
        raise ValueError("a linear layer's product alone: x's last axis with the kernel's first")
    return _product(x, kernel)


Linear = partial(nnx.Linear, dot_general=product)


def _plain(x, kernel):
    return jax.lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))


def _summed_wide(x, kernel):
    return jnp.matmul(x, kernel, preferred_element_type=jnp.float32).astype(x.dtype)


# A primitive, and not `platform_dependent`, for `jax.checkpoint`: its policies see the product, and not what a branch
# that other platforms never take is made of.
product_p = Primitive("linear_product")
product_p.def_impl(jax.jit(product_p.bind))
product_p.def_abstract_eval(lambda x, kernel: jax.core.ShapedArray((*x.shape[:-1], kernel.shape[1]), x.dtype))
mlir.register_lowering(product_p, mlir.lower_fun(_plain, multiple_results=False))
mlir.register_lowering(product_p, mlir.lower_fun(_summed_wide, multiple_results=False), platform="cpu")
batching.primitive_batchers[product_p] = lambda arrays, axes: (jax.vmap(_plain, axes)(*arrays), 0)


def _forwards(x, kernel):
    return product_p.bind(x, kernel) if x.dtype == kernel.dtype == jnp.bfloat16 else _plain(x, kernel)


@jax.custom_vjp
def _product(x, kernel):
    return _forwards(x, kernel)


def _forward(x, kernel):
    return _forwards(x, kernel), (x, kernel)


def _backward(kept, grad):
    return jax.lax.platform_dependent(*kept, grad, cpu=_of_matrices, default=_as_differentiated)


_product.defvjp(_forward, _backward)


def _as_differentiated(x, kernel, grad):
    (of_x,) = jax.linear_transpose(lambda x: _plain(x, kernel), x)(grad)
    (of_kernel,) = jax.linear_transpose(lambda kernel: _plain(x, kernel), kernel)(grad)
    return of_x, of_kernel


def _of_matrices(x, kernel, grad):
    """Products of matrices that lie in memory as they are multiplied."""
    grads = jax.lax.optimization_barrier(grad.reshape(-1, grad.shape[-1]))
    of_x = jax.lax.dot_general(grads, kernel, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    return of_x.reshape(x.shape).astype(x.dtype), kernel_gradient(x, grads).astype(kernel.dtype)


def kernel_gradient(x: jax.Array, grad: jax.Array) -> jax.Array:
    """x [..., in], grad [..., out] -> the gradient of a kernel, float32 [in, out], in the form for CPUs."""
    columns = _arranged(x.reshape(-1, x.shape[-1]), (1, 0), (x.shape[-1], -1))
    return jnp.matmul(columns, grad.reshape(-1, grad.shape[-1]), preferred_element_type=jnp.float32)


def _arranged(array, axes, shape):
    """The array transposed by `axes` and reshaped, in memory.

    The barrier keeps XLA from computing what comes before it anew for each product, in the order of the other axis.
    The axis more is for the reshape, without which XLA takes a transposed matrix for one that lies the other way.
    """
    array = array[None].transpose(0, *(axis + 1 for axis in axes)).reshape(shape)
    return jax.lax.optimization_barrier(array)


def einsum(subscripts: str, left: jax.Array, right: jax.Array, *, out_dtype: Any = None) -> jax.Array:
    """`jnp.einsum` of two arrays whose axes are each in two of three terms, or in all three; in `out_dtype`, or theirs.

    >>> scores = einsum("bhtk,bhsk->bhts", queries, keys)
    """
    if left.dtype != jnp.bfloat16:
        return jnp.einsum(subscripts, left, right, preferred_element_type=out_dtype)
    return _einsum(subscripts, out_dtype, left, right)


def _einsum_forwards(subscripts, out_dtype, left, right):
    as_jax = partial(jnp.einsum, subscripts, preferred_element_type=out_dtype)
    in_matrices = partial(_batched, subscripts, out_dtype or left.dtype)
    return jax.lax.platform_dependent(left, right, cpu=in_matrices, default=as_jax)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _einsum(subscripts, out_dtype, left, right):
    return _einsum_forwards(subscripts, out_dtype, left, right)


def _einsum_forward(subscripts, out_dtype, left, right):
    return _einsum_forwards(subscripts, out_dtype, left, right), (left, right)


def _einsum_backward(subscripts, out_dtype, kept, grad):
    (left, right), (terms, out) = kept, subscripts.split("->")
    of_left, of_right = terms.split(",")

    def in_matrices(left, right, grad):
        by_left = _batched(f"{out},{of_right}->{of_left}", left.dtype, grad, right)
        return by_left, _batched(f"{out},{of_left}->{of_right}", right.dtype, grad, left)

    def as_differentiated(left, right, grad):
        as_jax = partial(jnp.einsum, subscripts, preferred_element_type=out_dtype)
        (by_left,) = jax.linear_transpose(lambda left: as_jax(left, right), left)(grad)
        (by_right,) = jax.linear_transpose(lambda right: as_jax(left, right), right)(grad)
        return by_left, by_right

    if grad.dtype != jnp.bfloat16:  # a product with float32 is one of float32
        return as_differentiated(left, right, grad)
    return jax.lax.platform_dependent(left, right, grad, cpu=in_matrices, default=as_differentiated)


_einsum.defvjp(_einsum_forward, _einsum_backward)


def _batched(subscripts, dtype, left, right):
    """The einsum as products of matrices, [batch, rows, inner] times [batch, inner, columns], summed in float32."""
    terms, out = subscripts.split("->")
    of_left, of_right = terms.split(",")
    size = dict(zip(of_left + of_right, left.shape + right.shape, strict=True))
    batch = [axis for axis in out if axis in of_left and axis in of_right]
    rows = [axis for axis in out if axis not in of_right]
    columns = [axis for axis in out if axis not in of_left]
    inner = [axis for axis in of_left if axis not in out]

    def matrices(array, named, *parts):
        axes = [named.index(axis) for part in parts for axis in part]
        shape = [math.prod(size[axis] for axis in part) for part in parts]
        return array.reshape(shape) if axes == sorted(axes) else _arranged(array, axes, shape)

    left, ends = matrices(left, of_left, batch, rows, inner), of_right[-1] in inner
    right = matrices(right, of_right, batch, *((columns, inner) if ends else (inner, columns)))
    numbers = (((2,), (2 if ends else 1,)), ((0,), (0,)))
    found = jax.lax.dot_general(left, right, numbers, preferred_element_type=jnp.float32).astype(dtype)
    made = [*batch, *rows, *columns]
    return found.reshape([size[axis] for axis in made]).transpose([made.index(axis) for axis in out])

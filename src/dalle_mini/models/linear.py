"""A linear layer whose gradient a CPU is quick at.

By itself JAX differentiates x W, x [B, T, in], to products with three axes. On a CPU XLA makes these products of
matrices with the second one transposed, and computes that matrix's origin a second time, column by column. The
backward pass of a small model took six times as long as its forward pass that way, and takes three times as long with
these forms. On other platforms the gradient is JAX's own.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

LEAST_ROWS = 2  # of a product, in decoding: that of a single row is another routine, with another rounding


def product(x: jax.Array, kernel: jax.Array, dimensions, *, precision=None, out_sharding=None) -> jax.Array:
    """x [..., in] times kernel [in, out] -> [..., out]; `jax.lax.dot_general` as `nnx.Linear` calls it."""
    if dimensions != (((x.ndim - 1,), (0,)), ((), ())) or precision is not None or out_sharding is not None:
        raise ValueError("a linear layer's product alone: x's last axis with the kernel's first")
    return _product(x, kernel)


Linear = partial(nnx.Linear, dot_general=product)


def _plain(x, kernel):
    return jax.lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))


@jax.custom_vjp
def _product(x, kernel):
    return _plain(x, kernel)


def _forward(x, kernel):
    return _plain(x, kernel), (x, kernel)


def _backward(kept, grad):
    return jax.lax.platform_dependent(*kept, grad, cpu=_of_matrices, default=_as_differentiated)


_product.defvjp(_forward, _backward)


def _as_differentiated(x, kernel, grad):
    (of_x,) = jax.linear_transpose(lambda x: _plain(x, kernel), x)(grad)
    (of_kernel,) = jax.linear_transpose(lambda kernel: _plain(x, kernel), kernel)(grad)
    return of_x, of_kernel


def _of_matrices(x, kernel, grad):
    """Products of matrices that lie in memory as they are multiplied.

    The barriers keep XLA from computing what comes before them anew for each product, in the order of the other axis.
    """
    rows, grads = (array.reshape(-1, array.shape[-1]) for array in (x, grad))
    grads = jax.lax.optimization_barrier(grads)
    columns = jax.lax.optimization_barrier(rows.T)
    of_x = jax.lax.dot_general(grads, kernel, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    of_kernel = jnp.matmul(columns, grads, preferred_element_type=jnp.float32)
    return of_x.reshape(x.shape).astype(x.dtype), of_kernel.astype(kernel.dtype)

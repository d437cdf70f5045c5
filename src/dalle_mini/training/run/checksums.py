"""Checksums of arrays that may lie on many devices."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec


def checksums(arrays: dict[str, jax.Array]) -> list[str]:
    """64 bits of each array, in hex: the same however it is sharded, and on whatever device.

    Each element's bits are hashed with its place in the whole array, and the hashes summed modulo 2**32, twice with
    different constants. A sum has no order, so every device adds up its own part. One changed element always shows (the
    hash is a bijection), others but for one in 2**64.
    """
    if not arrays:
        return []
    sharding = next(iter(arrays.values())).sharding
    if isinstance(sharding, NamedSharding) and sharding.mesh.size > 1:
        # One program: many that each end in a collective, all in flight at once, were seen to starve a CPU's threads.
        everywhere = NamedSharding(sharding.mesh, PartitionSpec())
        sums = np.asarray(_summing(everywhere)(list(arrays.values())))  # uint32 [arrays, 2]
    else:  # one for each shape, of which there are few: they compile in a fraction of the time
        sums = jax.device_get([_sum_of_one(leaf) for leaf in arrays.values()])
    return [f"{high:08x}{low:08x}" for high, low in sums]


@functools.cache
def _summing(everywhere: NamedSharding) -> Callable:
    return jax.jit(lambda leaves: jnp.stack([_sum(leaf) for leaf in leaves]), out_shardings=everywhere)


def _sum(leaf: jax.Array) -> jax.Array:
    """The two sums of an array: uint32 [2]."""
    if leaf.dtype == jnp.bool_:
        leaf = leaf.astype(jnp.uint8)
    size = min(leaf.dtype.itemsize, 4)  # 8 bytes become two words: a further axis
    words = jax.lax.bitcast_convert_type(leaf, f"uint{8 * size}").astype(jnp.uint32)
    place = jnp.zeros(words.shape, jnp.uint32)
    for axis, length in enumerate(words.shape):
        place = place * jnp.uint32(length) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    salts = (0x9E3779B9, 0x7F4A7C15)
    return jnp.stack([jnp.sum(_mix(words ^ _mix(place + jnp.uint32(salt))), dtype=jnp.uint32) for salt in salts])


_sum_of_one = jax.jit(_sum)


def _mix(x: jax.Array) -> jax.Array:
    """The finalizer of MurmurHash3: a bijection on uint32; every bit of the input moves half of the output's."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)

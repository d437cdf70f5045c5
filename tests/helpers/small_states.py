"""A small train state, and its checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np

from dalle_mini.training.run.checkpoint import Checkpoints


def state(value: float = 0.0, width: int = 300):
    """A train state in small: floats of two types, whole numbers, a scalar and an empty part."""
    rng = np.random.default_rng(int(value))
    return {
        "params": {"w": jnp.asarray(rng.random((width, 30), np.float32)), "b": jnp.full(7, value, jnp.float32)},
        "opt_state": [jnp.arange(5), jnp.asarray(rng.random((width, 30)), jnp.bfloat16), ()],
        "step": jnp.int32(value),
    }


LIKE = jax.eval_shape(state)


def restore(folder, like=LIKE):
    with Checkpoints(folder, keep=2) as checkpoints:
        return checkpoints.restore(like)


def steps(folder):
    return sorted(entry.name for entry in folder.iterdir())


def assert_same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert jax.tree.map(lambda leaf: leaf.dtype, found) == jax.tree.map(lambda leaf: leaf.dtype, expected)

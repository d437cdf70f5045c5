import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dalle_mini.models.linear import Linear


def layers(dtype=jnp.float32):
    return [kind(24, 40, dtype=dtype, rngs=nnx.Rngs(0)) for kind in (Linear, nnx.Linear)]


def value_and_grads(layer, x, weights):
    graph, params = nnx.split(layer)
    return jax.jit(
        jax.value_and_grad(lambda params, x: jnp.sum(weights * nnx.merge(graph, params)(x)), argnums=(0, 1))
    )(params, x)


@pytest.mark.parametrize("shape", [(24,), (7, 24), (3, 5, 24), (2, 3, 5, 24)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 3e-2)])
def test_value_and_gradients_are_those_of_a_plain_layer(shape, dtype, tolerance):
    x = jax.random.normal(jax.random.key(1), shape, dtype)
    weights = jax.random.normal(jax.random.key(2), (*shape[:-1], 40), dtype)
    ours, plain = (jax.tree.leaves(value_and_grads(layer, x, weights)) for layer in layers(dtype))
    assert [leaf.dtype for leaf in ours] == [leaf.dtype for leaf in plain]
    for one, other in zip(ours, plain, strict=True):
        np.testing.assert_allclose(
            np.asarray(one, np.float32), np.asarray(other, np.float32), rtol=tolerance, atol=tolerance
        )


def test_gradients_pass_through_scan_and_remat():
    def total(layer, x):
        def body(x, _):
            return jnp.tanh(layer(x)[..., :24]), None

        return jnp.sum(jax.lax.scan(jax.checkpoint(body), x, length=3)[0])

    x = jax.random.normal(jax.random.key(1), (4, 6, 24))
    ours, plain = (nnx.grad(total)(layer, x) for layer in layers())
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5), ours, plain)


def test_other_platforms_differentiate_as_jax_does():
    x = jnp.ones((2, 3, 24))
    traced = jax.jit(jax.grad(lambda x: jnp.sum(layers()[0](x) ** 2))).trace(x)
    programs = {name: traced.lower(lowering_platforms=(name,)).as_text() for name in ("cpu", "tpu", "cuda")}
    assert [name for name, text in programs.items() if "optimization_barrier" in text] == ["cpu"]


def test_other_products_are_refused():
    with pytest.raises(ValueError, match="linear layer's product"):
        nnx.Linear(24, 40, precision="highest", dot_general=layers()[0].dot_general, rngs=nnx.Rngs(0))(jnp.ones(24))

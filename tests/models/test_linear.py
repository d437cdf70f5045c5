import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dalle_mini.models.dalle_bart import REMAT
from dalle_mini.models.linear import Linear, einsum, product


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


EINSUMS = {
    "bhtk,bhsk->bhts": ((2, 3, 5, 7), (2, 3, 4, 7)),
    "bhts,bhsk->bthk": ((2, 3, 5, 4), (2, 3, 4, 7)),
    "bqhd,bkhd->bhqk": ((2, 5, 3, 7), (2, 6, 3, 7)),
    "bhqk,bkhd->bqhd": ((2, 3, 5, 6), (2, 6, 3, 7)),
    "bqc,bkc->bqk": ((2, 5, 7), (2, 6, 7)),
}


@pytest.mark.parametrize("subscripts", EINSUMS)
@pytest.mark.parametrize("out_dtype", [None, jnp.float32])
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 0), (jnp.bfloat16, 3e-2)])
def test_einsum_and_its_gradients_are_those_of_jax(subscripts, out_dtype, dtype, tolerance):
    arrays = [jax.random.normal(jax.random.key(i), shape, dtype) for i, shape in enumerate(EINSUMS[subscripts])]

    def with_gradients(multiply):
        value, pull = jax.vjp(lambda *arrays: multiply(subscripts, *arrays), *arrays)
        return value, *pull(jax.random.normal(jax.random.key(2), value.shape, value.dtype))

    ours = with_gradients(lambda *given: einsum(*given, out_dtype=out_dtype))
    plain = with_gradients(lambda *given: jnp.einsum(*given, preferred_element_type=out_dtype))
    for one, other in zip(ours, plain, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(np.float32(one), np.float32(other), rtol=tolerance, atol=tolerance)


def test_a_linear_layer_of_several():
    """`jax.vmap` over x, over kernels and over both."""
    x, kernels = jnp.ones((3, 5, 24), jnp.bfloat16), jnp.ones((3, 24, 40), jnp.bfloat16)
    for axes in ((0, None), (None, 0), (0, 0)):
        pair = [array if axis == 0 else array[0] for array, axis in zip((x, kernels), axes, strict=True)]
        found = jax.vmap(lambda x, kernel: product(x, kernel, (((1,), (0,)), ((), ()))), axes)(*pair)
        np.testing.assert_array_equal(found, jnp.full((3, 5, 40), 24, jnp.bfloat16))


def plain_product(x, kernel):
    return jax.lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))


def ours_product(x, kernel):
    return product(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))


def operations(multiply, attend, remat, platform):
    """The arithmetic of a small network's gradient as it is lowered for a platform: its operations, and all products.

    A function that is called twice is there once, so how often there is anything but a product means nothing.
    """

    def layer(x, kernel):
        heads = jnp.tanh(multiply(x, kernel)).reshape(2, 8, 4, -1).swapaxes(1, 2)
        weights = jax.nn.softmax(attend("bhtk,bhsk->bhts", heads, heads), -1)
        return attend("bhts,bhsk->bthk", weights, heads).reshape(x.shape), None

    def loss(x, kernels):
        body = layer if remat == "none" else jax.checkpoint(layer, policy=REMAT[remat], prevent_cse=False)
        return jnp.sum(jax.lax.scan(body, x, kernels)[0].astype(jnp.float32) ** 2)

    shapes = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((2, 8, 32), (3, 32, 32))]
    traced = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).trace(*shapes)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    # Names differ, and so do the branches that are chosen when a program is lowered: constants, in the end.
    lines = (re.sub(r"%[\w#:]+", "%", line.strip()) for line in text.splitlines())
    control = "constant|while|return|case"
    found = [line for line in lines if "stablehlo." in line and not re.search(control, line)]
    return set(found), sorted(line for line in found if "dot_general" in line)


@pytest.mark.parametrize("remat", REMAT)
def test_programs_for_other_platforms_are_those_of_plain_jax(remat):
    for platform in ("tpu", "cuda"):
        plain = operations(plain_product, jnp.einsum, remat, platform)
        assert operations(ours_product, einsum, remat, platform) == plain
        assert len(plain[1]) >= 9
    _, products = operations(ours_product, einsum, remat, "cpu")
    assert len(products) >= 9
    assert all(re.search(r"-> tensor<[\dx]*f32>$", line) for line in products)

"""Schedules, and Adafactor over a stack of layers against a loop over the layers."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dalle_mini.errors import UserError
from dalle_mini.training.optimizer import adafactor, adamw, per_layer, schedule

GOLDEN = Path(__file__).parents[1] / "golden" / "training"


@pytest.mark.parametrize("name", ["adafactor_tiny_scan", "adamw_tiny_scan"])
def test_the_published_warm_up(name):
    golden = json.loads((GOLDEN / name / "golden.json").read_text())
    recipe = golden["recipe"]
    ours = schedule(recipe["lr"], recipe["warmup_steps"], recipe["n_steps"], "constant")
    used = np.array([ours(step) for step in range(recipe["n_steps"])])
    np.testing.assert_array_equal(used, np.array(golden["learning_rate_used"], np.float32))


def test_where_the_decays_end():
    for decay, end in (("linear", 0.0), ("cosine", 0.02)):
        rate = schedule(1.0, 10, 110, decay)
        assert float(rate(0)) == 0
        assert float(rate(5)) == pytest.approx(5 / 11)
        assert float(rate(10)) == 1
        assert float(rate(60)) == pytest.approx((1 + end) / 2)
        assert float(rate(110)) == pytest.approx(end, abs=1e-6)


def test_a_decay_that_there_is_not():
    with pytest.raises(UserError, match="decay: 'step' is none of constant, linear, cosine"):
        schedule(1.0, 1, 2, "step")


LAYERS = 3
SHAPES = {"wide": (128, 136), "tall": (160, 128), "small": (20, 130), "bias": (128,), "scalar": ()}


def draw(seed: int, scale: float):
    """Two stacks and leaves outside them; each layer at its own scale, so that mixing layers shows."""
    rng = np.random.default_rng(seed)
    per_layer_scale = np.array([1.0, 10.0, 100.0])

    def stack():
        return {
            name: jnp.asarray(
                rng.standard_normal((LAYERS, *shape)) * per_layer_scale.reshape(LAYERS, *[1] * len(shape)) * scale,
                jnp.float32,
            )
            for name, shape in SHAPES.items()
        }

    outside = {name: jnp.asarray(rng.standard_normal(shape) * scale, jnp.float32) for name, shape in SHAPES.items()}
    return {"encoder": {"layers": stack(), "embed": outside}, "decoder": {"layers": {"attention": stack()}}}


def layer(tree, i: int):
    return {
        "encoder": jax.tree.map(lambda leaf: leaf[i], tree["encoder"]["layers"]),
        "decoder": jax.tree.map(lambda leaf: leaf[i], tree["decoder"]["layers"]),
    }


def run(tx, params, gradients):
    state = tx.init(params)
    update = jax.jit(tx.update)
    for grads in gradients:
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def assert_same(ours, expected):
    """But for the last bit: XLA fuses the two programs differently."""
    np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-7)


def test_per_layer_adafactor_is_a_loop_over_the_layers():
    params, gradients = draw(0, 0.1), [draw(seed, 0.01) for seed in (1, 2, 3)]
    alone = optax.adafactor(0.01, clipping_threshold=1.0)
    ours, state = run(adafactor(0.01), params, gradients)
    for i in range(LAYERS):
        expected, _ = run(alone, layer(params, i), [layer(grads, i) for grads in gradients])
        jax.tree.map(assert_same, layer(ours, i), expected)
    expected, _ = run(alone, params["encoder"]["embed"], [grads["encoder"]["embed"] for grads in gradients])
    jax.tree.map(assert_same, ours["encoder"]["embed"], expected)
    # It is the factored optimizer that was compared: row and column statistics of each layer.
    assert set(state) == {"single", "encoder.layers", "decoder.layers"}
    factored = state["encoder.layers"][0]
    assert factored.v_row["wide"].shape == (LAYERS, 128)
    assert factored.v_col["wide"].shape == (LAYERS, 136)
    assert factored.v["small"].shape == (LAYERS, 20, 130)


def test_a_plain_adafactor_on_the_stack_is_another_optimizer():
    params, gradients = draw(0, 0.1), [draw(1, 0.01)]
    ours, _ = run(adafactor(0.01), params, gradients)
    plain, _ = run(optax.adafactor(0.01, clipping_threshold=1.0), params, gradients)
    difference = np.abs(ours["encoder"]["layers"]["wide"] - plain["encoder"]["layers"]["wide"]).max()
    moved = np.abs(ours["encoder"]["layers"]["wide"] - params["encoder"]["layers"]["wide"]).max()
    assert difference > 0.5 * moved
    assert_same(ours["encoder"]["embed"]["wide"], plain["encoder"]["embed"]["wide"])


def test_per_layer_needs_no_stack():
    params = {"w": jnp.ones((2, 3))}
    ours, _ = run(per_layer(optax.sgd(0.1)), params, [params])
    np.testing.assert_allclose(ours["w"], 0.9)


def test_adamw_clips_by_the_global_norm():
    params = {"layers": {"w": jnp.zeros((2, 3))}}
    once, _ = run(adamw(0.1, max_grad_norm=1.0), params, [{"layers": {"w": jnp.full((2, 3), 1e6)}}])
    np.testing.assert_allclose(once["layers"]["w"], -0.1, rtol=1e-4)  # Adam's first update is the learning rate
    tx = adamw(0.1, max_grad_norm=1.0)
    _, state = tx.update({"layers": {"w": jnp.full((2, 3), 1e6)}}, tx.init(params), params)
    np.testing.assert_allclose(optax.global_norm(state[1][0].mu), 0.1, rtol=1e-5)  # (1 - b1) of a unit gradient

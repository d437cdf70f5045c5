"""Schedules, and Adafactor over a stack of layers against a loop over the layers."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dalle_mini.errors import UserError
from dalle_mini.training.config.sections import OptimizerConfig
from dalle_mini.training.engine.optimizer import make_optimizer, per_layer, schedule

GOLDEN = Path(__file__).parents[2] / "golden" / "training"


def config(**values) -> OptimizerConfig:
    return OptimizerConfig(**{"learning_rate": 0.01, "warmup_steps": 0, "decay": "constant", **values})


@pytest.mark.parametrize("name", ["adafactor_tiny_scan", "adamw_tiny_scan"])
def test_the_published_warm_up(name):
    golden = json.loads((GOLDEN / name / "golden.json").read_text())
    recipe = golden["recipe"]
    settings = config(learning_rate=recipe["lr"], warmup_steps=recipe["warmup_steps"])
    used = np.array([schedule(settings, recipe["n_steps"])(step) for step in range(recipe["n_steps"])])
    np.testing.assert_array_equal(used, np.array(golden["learning_rate_used"], np.float32))


@pytest.mark.parametrize(
    ("decay", "middle", "end"),
    [
        ({"decay": "linear"}, 0.5, 0.0),
        ({"decay": "linear", "final_rate": 0.2}, 0.6, 0.2),
        ({"decay": "cosine"}, 0.5, 0.0),
        ({"decay": "cosine", "final_rate": 0.02}, 0.51, 0.02),
        ({"decay": "exponential", "decay_factor": 0.5, "decay_every": 50}, 0.5, 0.25),
        ({"decay": "exponential", "decay_factor": 0.25, "decay_every": 200}, 0.25**0.25, 0.5),
    ],
)
def test_where_the_decays_are(decay, middle, end):
    rate = schedule(config(learning_rate=2.0, warmup_steps=10, **decay), steps=110)
    assert float(rate(0)) == 0
    assert float(rate(5)) == pytest.approx(2 * 5 / 11)
    assert float(rate(10)) == 2
    assert float(rate(60)) == pytest.approx(2 * middle)
    assert float(rate(110)) == pytest.approx(2 * end, abs=1e-6)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "sgd"}, "optimizer.name: 'sgd' is none of adafactor, adamw, muon"),
        ({"decay": "step"}, "optimizer.decay: 'step' is none of constant, linear, cosine, exponential"),
        ({"learning_rate": 0.0}, "optimizer.learning_rate: 0.0 is not a number above 0"),
        ({"learning_rate": float("nan")}, "optimizer.learning_rate: nan is not a number above 0"),
        ({"warmup_steps": -1}, "optimizer.warmup_steps: -1 is not a number of 0 or more"),
        ({"clip": float("inf")}, "optimizer.clip: inf is not"),
        ({"decay_every": 0}, "optimizer.decay_every: 0 is too small"),
        ({"eps": 0.0}, "optimizer.eps: 0.0 is not a number of at least 1e-37"),
        ({"eps": float("inf")}, "optimizer.eps: inf is not"),
        ({"ema": 1.0}, "optimizer.ema: 1.0 is not a decay"),
        ({"b2": 1.5}, "optimizer.b2: 1.5 is not a decay"),
    ],
)
def test_settings_that_make_no_sense(values, message):
    with pytest.raises(UserError, match=message):
        config(**values)


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
    alone = optax.adafactor(schedule(config(), 3), clipping_threshold=1.0)
    ours, state = run(make_optimizer(config(), 3), params, gradients)
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
    params, gradients = draw(0, 0.1), [draw(1, 0.01)] * 2  # the first update has the rate 0
    ours, _ = run(make_optimizer(config(), 3), params, gradients)
    plain, _ = run(optax.adafactor(schedule(config(), 3), clipping_threshold=1.0), params, gradients)
    difference = np.abs(ours["encoder"]["layers"]["wide"] - plain["encoder"]["layers"]["wide"]).max()
    moved = np.abs(ours["encoder"]["layers"]["wide"] - params["encoder"]["layers"]["wide"]).max()
    assert difference > 0.5 * moved
    assert_same(ours["encoder"]["embed"]["wide"], plain["encoder"]["embed"]["wide"])


def test_per_layer_needs_no_stack():
    params = {"w": jnp.ones((2, 3))}
    ours, _ = run(per_layer(optax.sgd(0.1)), params, [params])
    np.testing.assert_allclose(ours["w"], 0.9)


def test_a_list_of_layers_is_no_stack():
    """Layers that are not alike: each is updated as it is, not row by row."""
    params = {"layers": {0: {"w": jnp.ones((128, 128))}, 1: {"w": jnp.ones((128, 128))}}}
    state = per_layer(optax.adafactor(0.1)).init(params)
    assert set(state) == {"single"}
    assert state["single"][0].v_row["layers.0.w"].shape == (128,)


def test_adamw_clips_by_the_global_norm():
    params = {"layers": {"w": jnp.zeros((2, 3))}}
    huge = {"layers": {"w": jnp.full((2, 3), 1e6)}}
    tx = make_optimizer(config(name="adamw", clip=1.0), 10)
    _, state = tx.update(huge, tx.init(params), params)
    np.testing.assert_allclose(optax.tree.norm(state[1]["layers"][0].mu), 0.1, rtol=1e-5)  # (1 - b1) of a unit
    tx = make_optimizer(config(name="adamw", clip=0.0), 10)
    _, state = tx.update(huge, tx.init(params), params)
    np.testing.assert_allclose(optax.tree.norm(state["layers"][0].mu), 0.1 * np.sqrt(6) * 1e6, rtol=1e-5)


def test_muon_moves_kernels_of_convolutions_as_matrices():
    """The singular values of the first update are about alike, whatever those of the gradient are."""
    rng = np.random.default_rng(0)
    spread = np.linspace(0.01, 1, 12)
    gradient = {
        "conv": {"kernel": jnp.asarray(rng.standard_normal((3, 3, 8, 12)) * spread, jnp.float32), "bias": jnp.ones(12)},
        "codebook": {"embedding": jnp.asarray(rng.standard_normal((20, 4)), jnp.float32)},
    }
    params = jax.tree.map(jnp.ones_like, gradient)
    tx = make_optimizer(config(name="muon", clip=0.0), 10)
    state = tx.init(params)
    moved = params
    for _ in range(2):  # the rate of the first update is 0
        updates, state = tx.update(gradient, state, moved)
        moved = optax.apply_updates(moved, updates)
    values = np.linalg.svd(np.asarray(updates["conv"]["kernel"]).reshape(72, 12), compute_uv=False)
    assert values.max() < 3 * values.min()
    assert np.sqrt(np.mean(np.square(updates["conv"]["kernel"]))) == pytest.approx(0.2 * 0.01, rel=0.3)
    adamw = make_optimizer(config(name="adamw", clip=0.0), 10)
    state, plain = adamw.init(params), params
    for _ in range(2):
        updates, state = adamw.update(gradient, state, plain)
        plain = optax.apply_updates(plain, updates)
    for part, name in (("conv", "bias"), ("codebook", "embedding")):
        np.testing.assert_array_equal(moved[part][name], plain[part][name])

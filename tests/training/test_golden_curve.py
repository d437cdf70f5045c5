"""Our updates against the training curves of the published program, on one device and sharded over eight.

The published files keep losses, gradient norms, and of each final parameter its norm, mean and largest value: ours are
within 1e-4 of them. Against each other our runs are within 1e-5 in the loss and 5e-5 in every final parameter: sums
are taken in another order on every mesh, and 20 updates carry the last bits of float32 that far.
"""

import dataclasses
from functools import cache
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import children
import golden_curves
from dalle_mini.models import DalleBart
from dalle_mini.training.config.sections import MeshConfig
from dalle_mini.training.engine.sharding import gathered
from dalle_mini.weights import key_mapping
from dalle_mini.weights.pretrained import flatten
from golden_curves import STEPS, TINY, WEIGHTS, golden, recipe, run_case, trained, trainer

NAMES = ("adafactor_tiny_scan", "adamw_tiny_scan", "adafactor_factored_scan", "trainpy_adafactor")
FACTORED = "adafactor_factored_scan"
GRIDS, MICROBATCHES = ("1x1", "8x1", "4x2", "2x4"), (1, 2, 4)
EVERY = [f"{FACTORED}:{grid}:{microbatches}" for grid in GRIDS for microbatches in MICROBATCHES]
QUICK = [f"{TINY}:8x1:1", f"{TINY}:4x2:2", f"{FACTORED}:2x4:4"]


def assert_golden(found, name):
    published = golden(name)
    assert np.abs(found["loss"] - published["loss"]).max() < 1e-4
    if "global_grad_norm" in published:
        np.testing.assert_allclose(found["grad_norm"], published["global_grad_norm"], rtol=1e-4)
    config, _ = DalleBart.open_pretrained(WEIGHTS[name])
    theirs = {path: SimpleNamespace(**numbers) for path, numbers in published["final_params"].items()}
    theirs = key_mapping.dalle_bart(theirs, config)
    assert {*theirs} == {*found} - {"loss", "grad_norm"}
    for path, wanted in theirs.items():
        array = np.asarray(found[path], np.float64)
        assert list(array.shape) == wanted.shape, path
        assert abs(array.mean() - wanted.mean) < 1e-4, path
        assert abs(np.abs(array).max() - wanted.absmax) < 1e-4, path
        assert abs(np.linalg.norm(array) - wanted.norm) < 1e-4 * max(1, wanted.norm), path


def assert_same(found, wanted):
    assert np.abs(found["loss"] - wanted["loss"]).max() < 1e-5
    for path in wanted:
        np.testing.assert_allclose(found[path], wanted[path], rtol=0, atol=5e-5, err_msg=path)


def on_eight_devices(folder, cases):
    """{case: what it found}, of a process that has eight CPU devices."""
    children.output(golden_curves.__file__, folder, *cases, devices=8)
    return {case: dict(np.load(folder / f"{case}.npz")) for case in cases}


def test_the_shifted_labels_are_the_published_decoder_inputs():
    made = trainer(TINY)
    labels, inputs = (made.train.table[name] for name in ("labels", "decoder_input_ids"))
    start = np.full((STEPS, 6, 1), made.config.model.decoder_start_token_id)
    np.testing.assert_array_equal(np.concatenate([start, labels[..., :-1]], axis=-1), inputs)


@cache
def alone(name):
    """Trainer, program, state and curves of a published curve's 20 updates on one device."""
    made = trainer(name)
    return made, *trained(made, MeshConfig(1, 1))


@pytest.mark.parametrize("name", NAMES)
def test_the_published_curves(name):
    _, _, state, curves = alone(name)
    assert_golden(curves | flatten(gathered(state.params)), name)


@cache
def loss_and_gradient():
    made = trainer("adamw_tiny_scan")

    def loss(params, batch):
        found = made.loss(params, batch, None)
        return found.total / found.weight

    return jax.jit(jax.value_and_grad(loss))


def written_out(eps):
    """AdamW's curve (Loshchilov and Hutter 2019, algorithm 2), its updates in float64 and without optax."""
    made, rule, losses = trainer("adamw_tiny_scan"), recipe("adamw_tiny_scan"), []
    leaves, tree = jax.tree.flatten(made.loaded())
    params = [np.asarray(leaf, np.float64) for leaf in leaves]
    first, second = ([np.zeros_like(leaf) for leaf in params] for _ in "mv")
    for step in range(STEPS):
        rate = rule.learning_rate * min(step / (rule.warmup_steps + 1), 1)
        value, grads = loss_and_gradient()(
            tree.unflatten([leaf.astype(np.float32) for leaf in params]), made.batch(step)
        )
        losses.append(float(value))
        for place, grad in enumerate(np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(grads)):
            first[place] = rule.b1 * first[place] + (1 - rule.b1) * grad
            second[place] = rule.b2 * second[place] + (1 - rule.b2) * grad**2
            mean, square = first[place] / (1 - rule.b1 ** (step + 1)), second[place] / (1 - rule.b2 ** (step + 1))
            update = mean / (np.sqrt(square) + eps) + rule.weight_decay * params[place]
            params[place] = params[place] - rate * update
    return np.array(losses), params


@pytest.mark.slow
def test_another_epsilon_of_adam():
    """`written_out` is the published program's curve at its default; ours is as close at one that moves the curve."""
    published = golden("adamw_tiny_scan")
    losses, _ = written_out(eps=1e-8)
    assert np.abs(losses - published["loss"]).max() < 1e-5
    losses, params = written_out(eps=1e-3)
    made = trainer("adamw_tiny_scan", optimizer=dataclasses.replace(recipe("adamw_tiny_scan"), eps=1e-3))
    _, state, found = trained(made, MeshConfig(1, 1))
    assert np.abs(found["loss"] - losses).max() < 1e-5
    for one, other in zip(jax.tree.leaves(state.params), params, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)
    assert np.abs(found["loss"] - published["loss"]).max() > 0.01


def test_the_published_evaluation():
    """After the 20 updates, over 12 held-out rows in batches of three."""
    made, program, state, _ = alone("trainpy_adafactor")
    (published,) = golden("trainpy_adafactor")["eval_loss_final"]
    assert abs(made.evaluate(program, state, 3)["loss"] - published) < 1e-4


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """Some of the meshes and microbatches, and what else must not depend on them."""
    others = [f"{TINY}:8x1:1:plain", f"{TINY}:8x1:1:dropout", f"{TINY}:2x4:1:dropout"]
    return on_eight_devices(tmp_path_factory.mktemp("sharded"), [*QUICK, *others])


@pytest.mark.slow
@pytest.mark.parametrize("case", QUICK)
def test_sharded_and_in_microbatches(sharded, case):
    assert_golden(sharded[case], case.partition(":")[0])


@pytest.mark.slow
def test_fully_sharded_is_data_parallel(sharded):
    assert_same(sharded[f"{TINY}:8x1:1:plain"], sharded[f"{TINY}:8x1:1"])


@pytest.mark.slow
def test_dropout_is_the_same_on_any_mesh(sharded):
    alone = run_case(f"{TINY}:1x1:1:dropout")
    assert np.abs(alone["loss"] - golden(TINY)["loss"]).max() > 0.05  # it drops something
    for grid in ("8x1", "2x4"):
        assert_same(sharded[f"{TINY}:{grid}:1:dropout"], alone)


@pytest.mark.slow
def test_every_mesh_and_number_of_microbatches(tmp_path):
    plain = [f"{FACTORED}:2x4:1:plain"]
    muon = [f"{FACTORED}:{grid}:1:muon" for grid in ("1x1", "4x2")]
    found = on_eight_devices(tmp_path, [*EVERY, *plain, *muon])
    for case in (*EVERY, *plain):
        assert_golden(found[case], FACTORED)
        assert_same(found[case], found[f"{FACTORED}:1x1:1"])
    for case in muon[1:]:
        assert np.abs(found[case]["loss"] - found[muon[0]]["loss"]).max() < 1e-4

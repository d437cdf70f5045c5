"""An update beside learning: masks, microbatches, bad losses, frozen parameters, the running mean, bf16, Muon."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import golden_curves
import tiny_runs
from dalle_mini.errors import UserError
from dalle_mini.training.config.sections import LoopConfig, MeshConfig, OptimizerConfig
from dalle_mini.training.engine.optimizer import EMBEDDINGS
from dalle_mini.training.engine.sharding import make_mesh
from dalle_mini.training.engine.step import step_program
from dalle_mini.training.seq2seq.cross_entropy import cross_entropy
from dalle_mini.weights.pretrained import flatten
from golden_curves import recipe, trainer

TINY = "adafactor_tiny_scan"
CONSTANT = {"warmup_steps": 0, "decay": "constant"}


def begin(made, **loop):
    program = step_program(
        made, LoopConfig(**{"batch_size": made.train.rows, **loop}), MeshConfig(), make_mesh(MeshConfig())
    )
    return program, program.init(jax.random.key(0))


def copy(tree):
    return jax.tree.map(np.array, tree)


def after(program, state, batches, first_key=0):
    """(state, metrics of each step). The state that is given stays."""
    state, metrics = jax.tree.map(jnp.copy, state), []
    for step, batch in enumerate(batches):
        state, found = program.step(state, program.place(batch), jax.random.key(first_key + step))
        metrics.append(found)
    return state, metrics


@pytest.fixture(scope="module")
def plain():
    """A trainer on 12 rows, of which 6 count, and its program."""
    made = trainer(TINY, rows=12, optimizer=dataclasses.replace(recipe(TINY), warmup_steps=0))
    return made, *begin(made)


def test_what_is_masked_does_not_count(plain):
    made, program, state = plain
    batch = made.train.at(0)
    other = {**batch, "labels": batch["labels"].copy(), "input_ids": batch["input_ids"].copy()}
    other["labels"][6:] = 1
    other["input_ids"][6:] = 2
    (one, found), (two, same) = (after(program, state, [b, b]) for b in (batch, other))
    jax.tree.map(np.testing.assert_array_equal, one.params, two.params)
    assert float(found[1]["loss"]) == float(same[1]["loss"])


@pytest.mark.slow
def test_masks_of_rows_and_of_positions_are_one(plain):
    """A row's mask is that of all its positions; some positions' loss is their plain mean, in any microbatches."""
    made, program, state = plain
    batch = made.train.at(0)
    rows = float(program.evaluate(state.params, program.place(batch)).total)
    everywhere = {**batch, "label_mask": np.repeat(batch["label_mask"][:, None], 16, axis=1)}
    assert float(program.evaluate(state.params, program.place(everywhere)).total) == pytest.approx(rows, rel=1e-6)
    some = np.random.default_rng(0).random((12, 16)) < 0.3
    single = [
        program.evaluate(state.params, program.place({**batch, "label_mask": np.eye(12)[[row]].T * some})).total
        for row in range(12)
    ]
    for wanted in (program, begin(made, accumulation=3)[0]):
        _, (found,) = after(wanted, state, [{**batch, "label_mask": some.astype(np.float32)}])
        assert float(found["loss"]) == pytest.approx(float(sum(single)) / some.sum(), rel=1e-5)


def test_nothing_counts(plain):
    """A batch that is masked all over moves nothing but the step: no division by zero."""
    made, program, state = plain
    _, (found,) = after(program, state, [{**made.train.at(0), "label_mask": np.zeros(12, np.float32)}])
    assert float(found["loss"]) == float(found["grad_norm"]) == 0
    assert np.isfinite(float(found["param_norm"]))


@pytest.mark.parametrize("microbatches", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_loss_that_is_no_number_leaves_the_state_as_it_was(microbatches):
    made = tiny_runs.make("vqgan", None, tiny_runs.short_loop())
    loop = tiny_runs.short_loop(accumulation=microbatches)
    program = step_program(made, loop, MeshConfig(), make_mesh(MeshConfig()))
    state = program.init(jax.random.key(0))
    state = state._replace(params={**state.params, "codebook": {"embedding": jnp.full((16, 4), jnp.nan)}})
    before = copy(state)
    new, found = program.step(state, program.place(made.batch(0)), jax.random.key(0))
    assert float(found["bad"]) == 1 and not np.isfinite(float(found["loss"]))
    assert int(new.step) == 1
    jax.tree.map(np.testing.assert_array_equal, new._replace(step=0), before._replace(step=0))


@pytest.mark.slow
def test_a_spike_is_left_out():
    """Labels that were never seen, when the model has learned the others by heart."""
    made = trainer(TINY, optimizer=OptimizerConfig("adamw", 0.01, **CONSTANT))
    program, state = begin(made, spike=1.5)
    batch = {name: array.copy() for name, array in made.train.at(0).items()}
    state, metrics = after(program, state, [batch] * 30)
    assert not any(float(found["bad"]) for found in metrics)
    before = copy(state)
    odd = {**batch, "labels": np.flip(batch["labels"], axis=1) ^ 21}
    state, (found,) = after(program, state, [odd])
    assert float(found["bad"]) == 1 and float(found["loss"]) > 1.5 * float(before.loss_mean)
    jax.tree.map(np.testing.assert_array_equal, state._replace(step=0), before._replace(step=0))
    _, (found,) = after(program, state, [batch])
    assert float(found["bad"]) == 0


def test_embeddings_only():
    made = trainer(TINY, optimizer=dataclasses.replace(recipe(TINY), embeddings_only=True, warmup_steps=0))
    program, state = begin(made)
    before = flatten(copy(state.params))
    new, _ = after(program, state, [made.train.at(0), made.train.at(1)])
    moved = {name for name, leaf in flatten(new.params).items() if not np.array_equal(leaf, before[name])}
    assert moved == {name for name in before if EMBEDDINGS.match(name)}
    assert {name.partition(".")[0] for name in moved} == {"decoder", "lm_head"} and len(moved) == 6
    kept = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state))
    assert kept < 1.5 * sum(before[name].size for name in moved)  # no statistics of what is frozen


def test_embeddings_only_is_for_dalle_bart():
    config = dataclasses.replace(tiny_runs.CLIP, optimizer=OptimizerConfig("adamw", embeddings_only=True))
    made = tiny_runs.CLIPTrainer(config, None, None, golden_curves.AnyTokenizer(), {}, batch_size=4, seed=0)
    with pytest.raises(UserError, match="embeddings_only: this model has no decoder embeddings"):
        step_program(made, LoopConfig(batch_size=4), MeshConfig(), make_mesh(MeshConfig()))


def test_the_running_mean():
    made = trainer(TINY, optimizer=OptimizerConfig("adamw", 0.01, ema=0.3, **CONSTANT))
    program, state = begin(made)
    mean = copy(state.params)
    for step in range(4):
        state, _ = after(program, state, [made.train.at(step)])
        decay = min(0.3, (1 + step) / (10 + step))
        mean = jax.tree.map(lambda old, new, decay=decay: decay * old + (1 - decay) * new, mean, copy(state.params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state.ema, mean)
    assert state.weights is state.ema
    assert not np.allclose(state.ema["lm_head"]["kernel"], state.params["lm_head"]["kernel"], atol=1e-4)


@pytest.mark.slow
def test_dropout_has_a_key_a_step():
    made = trainer(TINY, **golden_curves.DROPOUT)
    program, state = begin(made)
    batch = made.train.at(0)
    (_, (one,)), (_, (same,)), (_, (other,)) = (after(program, state, [batch], key) for key in (0, 0, 1))
    assert float(one["loss"]) == float(same["loss"]) != float(other["loss"])
    quiet = begin(trainer(TINY))[0].evaluate(state.params, program.place(batch))
    assert float(program.evaluate(state.params, program.place(batch)).total) == float(quiet.total)


@pytest.mark.slow
def test_bfloat16_is_close_and_keeps_float32():
    made = trainer(TINY)
    made = golden_curves.Seq2SeqTrainer(
        dataclasses.replace(made.config, dtype="bfloat16"), made.train, made.held_out, golden_curves.AnyTokenizer()
    )
    program, state = begin(made)
    assert {leaf.dtype.name for leaf in jax.tree.leaves((state.params, state.opt_state))} == {"float32", "int32"}
    state, metrics = after(program, state, [made.train.at(step) for step in range(20)])
    losses = [float(found["loss"]) for found in metrics]
    np.testing.assert_allclose(losses, golden_curves.golden(TINY)["loss"], rtol=0.02)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state.params)} == {"float32"}


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["dots", "full"])
def test_what_is_kept_for_the_gradient_changes_nothing(remat):
    made = trainer(TINY)
    program, state = begin(made)
    _, (plain,) = after(program, state, [made.train.at(0)])
    made.config = dataclasses.replace(made.config, remat=remat)
    program, state = begin(made)
    _, (found,) = after(program, state, [made.train.at(0)])
    for name in ("loss", "grad_norm"):
        assert float(found[name]) == pytest.approx(float(plain[name]), rel=1e-5)


@pytest.mark.slow
def test_muon_learns():
    made = trainer("adafactor_factored_scan", optimizer=OptimizerConfig("muon", 0.005, **CONSTANT))
    program, state = begin(made)
    matrices = state.opt_state[1]["decoder.layers"].inner_states["muon"].inner_state[0].mu
    assert matrices["self_attn.q_proj.kernel"].shape == (2, 128, 128)
    _, metrics = after(program, state, [made.train.at(step) for step in range(20)])
    assert float(metrics[-1]["loss"]) < 0.6 * float(metrics[0]["loss"])


def test_cross_entropy_is_that_of_the_logits():
    """Against optax on whole logits: value and all gradients, with a bias, masked positions and a padded vocabulary."""
    rng = np.random.default_rng(0)
    hidden, kernel = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((3, 128, 8), (8, 21)))
    bias, weights = jnp.asarray(rng.standard_normal(21), jnp.float32), jnp.asarray(rng.random((3, 128)) < 0.7, float)
    labels = jnp.asarray(rng.integers(0, 19, (3, 128)))

    def ours(hidden, kernel, bias):
        return cross_entropy(hidden, kernel, bias, labels, weights, 19).total

    def plain(hidden, kernel, bias):
        logits = (hidden @ kernel + bias)[..., :19]
        return jnp.sum(weights * optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    found, wanted = (jax.value_and_grad(f, argnums=(0, 1, 2))(hidden, kernel, bias) for f in (ours, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, wanted)
    assert not np.any(found[1][1][:, 19:])  # of the padding
    right = cross_entropy(hidden, kernel, bias, labels, weights, 19).right
    best = (hidden @ kernel + bias)[..., :19].argmax(-1)
    assert float(right) == float(jnp.sum(weights * (best == labels)))

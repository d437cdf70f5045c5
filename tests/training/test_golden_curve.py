"""Our seq2seq update against the training curves of the published program (tests/golden/training).

20 steps from the same weights on the same batches. The published program accumulates two slices of three examples;
since every slice has as many tokens, the mean over slices is the mean over the whole batch.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx

from dalle_mini.models import DalleBart
from dalle_mini.training.optimizer import adamw, schedule
from dalle_mini.training.seq2seq import Seq2SeqTrainer, Seq2SeqTraining
from dalle_mini.training.step import init_state, make_step

GOLDEN = Path(__file__).parents[1] / "golden" / "training"
WEIGHTS = GOLDEN / "adafactor_tiny_scan"
STEPS = 20


class BlankTokenizer:
    """The golden batches are tokenised already."""

    def check_vocab_size(self, rows):
        pass

    def __call__(self, captions, max_length):
        return np.zeros((len(captions), max_length), np.int32), np.zeros((len(captions), max_length), np.int32)


@pytest.fixture(scope="module")
def model():
    return DalleBart.from_pretrained(WEIGHTS)


@pytest.fixture(scope="module")
def batches():
    arrays = np.load(WEIGHTS / "batches.npz")
    return {name: arrays[name].reshape(STEPS, 6, 16) for name in arrays.files}  # [step, accum * batch, ...]


def build(config, recipe):
    rows = SimpleNamespace(
        folder="golden", tokens=np.zeros((6, 16), np.uint16), captions=[""] * 6, vqgan="golden", codebook_size=64
    )
    training = Seq2SeqTraining(
        model=config, learning_rate=recipe["lr"], warmup_steps=recipe["warmup_steps"], decay="constant"
    )
    return Seq2SeqTrainer(training, rows, rows, BlankTokenizer(), None, steps=STEPS, batch_size=6, seed=0)


def curve(model, batches, golden, tx, update):
    assert golden["recipe"]["n_steps"] == STEPS
    state = init_state(nnx.to_pure_dict(nnx.split(model)[1]), tx)
    update = jax.jit(update)
    metrics = []
    for step in range(STEPS):
        batch = {name: batches[name][step] for name in ("input_ids", "attention_mask", "labels")}
        state, values = update(state, batch, jax.random.key(0))
        metrics.append((float(values["loss"]), float(values["grad_norm"])))
    return np.array(metrics).T


def test_the_shifted_labels_are_the_published_decoder_inputs(model, batches):
    start = np.full((STEPS, 6, 1), model.config.decoder_start_token_id)
    shifted = np.concatenate([start, batches["labels"][..., :-1]], axis=-1)
    np.testing.assert_array_equal(shifted, batches["decoder_input_ids"])


def test_adafactor(model, batches):
    golden = json.loads((WEIGHTS / "golden.json").read_text())
    trainer = build(model.config, golden["recipe"])
    loss, grad_norm = curve(model, batches, golden, trainer.tx, trainer.step)
    assert np.abs(loss - golden["loss"]).max() < 1e-5
    np.testing.assert_allclose(grad_norm, golden["global_grad_norm"], rtol=1e-4)


def test_adamw(model, batches):
    golden = json.loads((GOLDEN / "adamw_tiny_scan" / "golden.json").read_text())
    recipe = golden["recipe"]
    rate = schedule(recipe["lr"], recipe["warmup_steps"], STEPS, "constant")
    tx = adamw(rate, recipe["weight_decay"], max_grad_norm=np.inf, b2=recipe["b2"])  # it clips no global norm
    step = make_step(build(model.config, recipe)._loss, tx)
    loss, grad_norm = curve(model, batches, golden, tx, step)
    assert np.abs(loss - golden["loss"]).max() < 1e-5
    np.testing.assert_allclose(grad_norm, golden["global_grad_norm"], rtol=1e-4)

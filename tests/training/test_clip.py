"""The contrastive loss with captions that occur twice, the bound on the logit scale, and that a tiny CLIP learns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import CAPTIONS, CLIP, Pictures, begin, make, short_loop, train

from dalle_mini import models
from dalle_mini.errors import UserError
from dalle_mini.training.clip import MAX_LOGIT_SCALE, damaged

STEPS = 60


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    return make("clip", tmp_path_factory.mktemp("clip"), short_loop(steps=STEPS, batch_size=16))


def test_it_learns_and_exports(trainer, tmp_path):
    loop = short_loop(steps=STEPS, batch_size=16)
    program, state = begin(trainer, loop)
    before = trainer.evaluate(program, state, 16)
    program, state, _ = train(trainer, loop)
    after = trainer.evaluate(program, state, 16)
    assert after["loss"] < 0.5 * before["loss"]
    assert after["recall"] > before["recall"]
    assert after["recall"] >= 0.75  # of eight pictures
    trainer.export(state, tmp_path)
    clip = models.CLIP.from_pretrained(tmp_path)
    assert float(clip.logit_scale[...]) == float(state.params["logit_scale"])

    # The clip of the logit scale is part of the update.
    state.params["logit_scale"] = jnp.float32(20.0)
    state, metrics = program.step(state, program.place(trainer.batch(0)), jax.random.key(0))
    assert float(state.params["logit_scale"]) == np.float32(MAX_LOGIT_SCALE)
    assert np.isfinite(metrics["loss"])


class Known:
    """Stands in for the network: similarities that the test chooses."""

    def __init__(self, logits):
        self.logits = jnp.asarray(logits, jnp.float32)

    def similarity(self, *_):
        return self.logits


def loss(trainer, monkeypatch, logits, captions):
    monkeypatch.setattr("dalle_mini.training.clip.nnx.merge", lambda *_: Known(logits))
    batch = {"caption": np.array(captions), "pixels": None, "input_ids": None, "attention_mask": None}
    found = trainer.loss(None, batch, None)
    return float(found.total / found.weight), float(found.metrics["text_to_image"] / found.weight)


def test_the_loss_of_distinct_captions(trainer, monkeypatch):
    logits = np.array([[2.0, 0.5, -1.0], [0.0, 1.0, 0.0], [3.0, -2.0, 0.5]])

    def cross_entropy(rows):
        return np.mean(np.log(np.exp(rows).sum(axis=1)) - np.diag(rows))

    value, recall = loss(trainer, monkeypatch, logits, [0, 1, 2])
    assert value == pytest.approx((cross_entropy(logits) + cross_entropy(logits.T)) / 2, rel=1e-5)
    assert recall == pytest.approx(2 / 3)  # the first caption prefers the third picture


def test_equal_captions_are_not_punished(trainer, monkeypatch):
    """Two pictures share a caption: the best a network can do is to score both alike, and that is the minimum."""
    alike = 30 * np.array([[1.0, 1, 0], [1, 1, 0], [0, 0, 1]])
    apart = 30 * np.eye(3)
    value, recall = loss(trainer, monkeypatch, alike, [5, 5, 2])
    # what is left is the targets' own entropy: log 2 in the two rows that have two right answers
    assert value == pytest.approx(2 / 3 * np.log(2), abs=1e-5)
    assert recall == 1
    assert loss(trainer, monkeypatch, apart, [5, 5, 2])[0] > 10 * value
    assert loss(trainer, monkeypatch, alike, [0, 1, 2])[0] == pytest.approx(2 / 3 * np.log(2), abs=1e-5)
    assert loss(trainer, monkeypatch, apart, [0, 1, 2])[0] == pytest.approx(0, abs=1e-5)
    swapped = 30 * np.array([[0.0, 1, 0], [1, 0, 0], [0, 0, 1]])
    assert loss(trainer, monkeypatch, swapped, [5, 5, 2])[1] == 1  # either picture is right


def test_damaged_copies_are_wrong_answers_of_every_caption(trainer, monkeypatch):
    right = np.array([[2.0, 0.5], [0.0, 1.0]])
    copies = np.array([[5.0, -1.0], [0.0, 0.5]])
    to_text = np.mean(np.log(np.exp(right).sum(axis=1)) - np.diag(right))
    to_image = np.mean(np.log(np.exp(np.concatenate([right, copies])).sum(axis=0)) - np.diag(right))
    value, recall = loss(trainer, monkeypatch, np.concatenate([right, copies]), [0, 1])
    assert value == pytest.approx((to_text + to_image) / 2, rel=1e-5)
    assert recall == 0.5  # the first caption prefers the first copy


def test_damage():
    rng = np.random.default_rng(0)
    pictures = np.repeat(np.repeat(rng.integers(0, 256, (64, 8, 8, 3), np.uint8), 4, axis=1), 4, axis=2)
    copies = damaged(pictures, 0.5, 4, np.random.default_rng(1))
    assert copies.shape == pictures.shape and copies.dtype == np.uint8
    cells = (copies != pictures).reshape(64, 8, 4, 8, 4, 3)
    wrong = cells.any(axis=(2, 4, 5))
    np.testing.assert_array_equal(cells.all(axis=(2, 4)).any(axis=-1), wrong)  # whole cells
    share = wrong.mean(axis=(1, 2))
    assert 0.15 < share.mean() < 0.3  # half of at most 0.5, less the cells that came upon themselves
    assert share.max() < 0.65
    assert (damaged(pictures, 1e-9, 4, rng) != pictures).reshape(64, 8, 4, 8, 4, 3).any(axis=(2, 4, 5)).sum() <= 64


def test_copies_join_the_training_batch_alone(tmp_path):
    loop = short_loop(steps=1, batch_size=8)
    trainer = make("clip", tmp_path, loop, dataclasses.replace(CLIP, damage=0.3))
    batch = trainer.batch(0)
    assert len(batch["pixels"]) == 16 and len(batch["input_ids"]) == len(batch["caption"]) == 8
    assert len(trainer._examples(Pictures(), range(8))["pixels"]) == 8
    _, _, metrics = train(trainer, loop)
    assert np.isfinite(metrics["loss"]).all()


@pytest.mark.parametrize(("name", "value"), [("damage", 1.5), ("damage", -0.1), ("cell", 3)])
def test_damage_that_makes_no_sense(tmp_path, name, value):
    with pytest.raises(UserError, match=f"training.{name} {value}"):
        make("clip", tmp_path, short_loop(), dataclasses.replace(CLIP, **{"damage": 0.3, name: value}))


def test_a_run_starts_from_another(trainer, tmp_path):
    loop = short_loop(batch_size=16)
    _, first = begin(trainer, loop, seed=5)
    trainer.export(first, tmp_path / "first")
    start = dataclasses.replace(CLIP, init_from=str(tmp_path / "first"))
    _, state = begin(make("clip", tmp_path, loop, start), loop, seed=6)
    jax.tree.map(np.testing.assert_array_equal, state, first)
    narrow = dataclasses.replace(start, model=dataclasses.replace(CLIP.model, projection_dim=8))
    with pytest.raises(UserError, match=r"init_from=.*first: its config.json is of another model"):
        make("clip", tmp_path, loop, narrow).loaded()


def test_examples(trainer):
    batch = trainer.batch(0)
    assert batch["pixels"].shape == (16, 8, 8, 3)
    assert batch["pixels"].dtype == np.float32
    same_text = (batch["input_ids"][:, None] == batch["input_ids"]).all(axis=-1)
    np.testing.assert_array_equal(batch["caption"][:, None] == batch["caption"], same_text)
    jax.tree.map(np.testing.assert_array_equal, batch, trainer.batch(0))


def test_noise_is_for_training_alone(tmp_path):
    noisy = make("clip", tmp_path, short_loop(batch_size=400), dataclasses.replace(CLIP, noise=0.1), train=Gray())
    spread = noisy.batch(0)["pixels"].std() * 0.25  # back to [0, 1]
    assert spread == pytest.approx(0.1, rel=0.05)
    assert noisy._examples(Gray(), range(8))["pixels"].std() < 1e-6
    plain = make("clip", tmp_path, short_loop(), dataclasses.replace(CLIP, noise=0.0), train=Gray())
    assert plain.batch(0)["pixels"].std() < 1e-6


class Gray(Pictures):
    def batch(self, indices):
        rows = list(indices)
        return np.full((len(rows), 8, 8, 3), 128, np.uint8), [CAPTIONS[i % 8] for i in rows]


def test_a_tokenizer_that_does_not_fit(tmp_path):
    text = dataclasses.replace(CLIP.model.text, vocab_size=300)
    config = dataclasses.replace(CLIP, model=dataclasses.replace(CLIP.model, text=text))
    with pytest.raises(UserError, match=r"tokenizer.json: token ids go up to \d+ but .* has 300 rows"):
        make("clip", tmp_path, short_loop(), config)

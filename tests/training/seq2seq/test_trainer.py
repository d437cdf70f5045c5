"""The trainer: its refusals, noise and masks, and that it learns eight captions by heart."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dalle_mini.errors import UserError
from dalle_mini.models import DalleBart
from dalle_mini.text import CaptionTokenizer
from dalle_mini.training.config.sections import OptimizerConfig
from dalle_mini.training.seq2seq.trainer import Seq2SeqTraining, changing_positions
from dalle_mini.weights.bundle import TOKENS_RECORD
from tiny_runs import CAPTIONS, SEQ2SEQ, Tokens, begin, make, short_loop, train

LOOP = short_loop(steps=100, batch_size=16)


def changed(**model):
    return dataclasses.replace(SEQ2SEQ, model=dataclasses.replace(SEQ2SEQ.model, **model))


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    optimizer = OptimizerConfig(learning_rate=0.05, warmup_steps=2, decay="constant")
    return make("seq2seq", tmp_path_factory.mktemp("seq2seq"), LOOP, dataclasses.replace(SEQ2SEQ, optimizer=optimizer))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (changed(image_length=25), "train data: 16 tokens per image, not 25"),
        (changed(image_vocab_size=8), "train data: tokens of 16 codes, image_vocab_size 8"),
        (changed(encoder_vocab_size=200), r"tokenizer.json: token ids go up to \d+ but .* has 200 rows"),
        (
            changed(decoder_start_token_id=17),
            "decoder_start_token_id 17 is beyond image_vocab_size 16",
        ),
    ],
)
def test_what_does_not_fit(tmp_path, config, message):
    with pytest.raises(UserError, match=message):
        make("seq2seq", tmp_path, short_loop(), config)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"token_noise": 40.0}, "training.token_noise 40.0: from 0 to 2, the most is a share of the tokens"),
        ({"positions": 0}, "training.positions 0: 1 to 256, an image's tokens"),
        ({"positions": 257}, "training.positions 257: 1 to 256, an image's tokens"),
        ({"prefer_changes": 2.0}, "training.prefer_changes 2.0: 1 to 1, with training.positions"),
        ({"prefer_changes": 9.0, "positions": 32}, "training.prefer_changes 9.0: 1 to 8, with training.positions"),
        ({"caption_dropout": -0.1}, "training.caption_dropout -0.1: a share from 0 to 1"),
        ({"dtype": "float16"}, "training.dtype: 'float16' is none of bfloat16, float32"),
        ({"remat": "some"}, "training.remat: 'some' is none of none, dots, full"),
    ],
)
def test_settings_that_make_no_sense(values, message):
    with pytest.raises(UserError, match=message):
        Seq2SeqTraining(**values)


def test_tokens_of_two_vqgans_are_refused(trainer, tmp_path):
    other = Tokens(trainer.tokenizer)
    other.vqgan = "another"
    with pytest.raises(UserError, match=r"tokens of another VQGAN \(tiny\) than those of the train data \(another\)"):
        make("seq2seq", tmp_path, short_loop(), train=other)


def test_the_record_has_both_sets(trainer):
    data = trainer.settings()["data"]
    assert data == {"vqgan": "tiny", "train": trainer.train.origin(), "held_out": trainer.held_out.origin()}


def test_weights_of_another_model_are_refused(trainer, tmp_path):
    _, state = begin(trainer, LOOP)
    trainer.export(state, tmp_path / "weights")
    start = {"init_from": str(tmp_path / "weights")}
    same = make("seq2seq", tmp_path, LOOP, dataclasses.replace(SEQ2SEQ, **start))
    _, loaded = begin(same, LOOP, seed=7)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, state.params)
    other = make("seq2seq", tmp_path, LOOP, dataclasses.replace(changed(d_model=32), **start))
    with pytest.raises(UserError, match=r"init_from=.*weights: its config.json is of another model"):
        begin(other, LOOP)


def test_it_learns_and_exports(trainer, tmp_path):
    program, state = begin(trainer, LOOP)
    before = trainer.evaluate(program, state, 8)
    assert before["loss"] == pytest.approx(np.log(17), abs=0.3)  # as good as guessing
    program, state, _ = train(trainer, LOOP)
    after = trainer.evaluate(program, state, 8)
    assert after["loss"] < 0.5 * before["loss"]
    assert after["accuracy"] > 0.8

    trainer.export(state, tmp_path / "final")
    model = DalleBart.from_pretrained(tmp_path / "final")
    assert json.loads((tmp_path / "final" / TOKENS_RECORD).read_text()) == {"vqgan": "tiny"}
    tokenizer = CaptionTokenizer.from_pretrained(tmp_path / "final")
    np.testing.assert_array_equal(tokenizer(CAPTIONS, 8)[0], trainer.held_out.table["input_ids"])
    np.testing.assert_array_equal(model.lm_head.kernel[...], state.params["lm_head"]["kernel"])
    np.testing.assert_array_equal(
        model.decoder.layers.ffn.out.kernel[...], state.params["decoder"]["layers"]["ffn"]["out"]["kernel"]
    )


def test_evaluation_is_of_every_row_once(trainer):
    """Whatever the batches are, and however many rows of the last one are padding: 8 rows in 1, 2, 3 or 4 batches."""
    program, state = begin(trainer, LOOP)
    whole = trainer.evaluate(program, state, 8)
    for size in (2, 3, 5, 16):
        assert trainer.evaluate(program, state, size) == pytest.approx(whole, rel=1e-6)


def test_noise_changes_what_the_decoder_sees(trainer, tmp_path):
    noisy = make("seq2seq", tmp_path, short_loop(), dataclasses.replace(SEQ2SEQ, token_noise=0.4))
    labels = jnp.asarray(np.random.default_rng(0).integers(0, 16, (500, 16)), jnp.int32)
    seen = noisy._with_noise(labels, jax.random.key(0))
    wrong = np.mean(seen != labels, axis=1)
    assert 0.12 < wrong.mean() < 0.28 and wrong.std() > 0.05  # 0.2, less what hits the right token by chance
    assert 0 <= seen.min() <= seen.max() < 16
    np.testing.assert_array_equal(noisy._with_noise(labels, None), labels)  # evaluation
    np.testing.assert_array_equal(trainer._with_noise(labels, jax.random.key(0)), labels)


def test_half_of_the_pictures_can_be_all_noise(tmp_path):
    noisy = make("seq2seq", tmp_path, short_loop(), dataclasses.replace(SEQ2SEQ, token_noise=2.0))
    labels = jnp.full((500, 16), -1, jnp.int32)  # which no noise hits by chance
    wrong = np.mean(noisy._with_noise(labels, jax.random.key(0)) != labels, axis=1)
    assert 0.4 < np.mean(wrong == 1) < 0.65  # 0.5, and those with a share just below
    assert wrong.min() < 0.2


@pytest.mark.slow
def test_an_update_can_learn_some_positions(trainer, tmp_path):
    """It learns there as a model without any other positions would."""
    some = make("seq2seq", tmp_path, short_loop(), dataclasses.replace(SEQ2SEQ, positions=5))
    key = jax.random.key(3)
    _, _, positions_key = jax.random.split(key, 3)
    positions = np.asarray(some._positions(positions_key))
    assert len(set(positions)) == 5 and np.all(np.diff(positions) > 0) and positions[0] >= 0 and positions[-1] < 16
    assert not np.array_equal(positions, some._positions(jax.random.key(4)))
    assert some._positions(None) is None

    params, _ = some.parameters(jax.random.key(0))
    batch = jax.tree.map(jnp.asarray, some.batch(0))
    found = some.loss(params, batch, key)
    model = nnx.merge(some.graphdef, params)
    labels = batch["labels"].astype(jnp.int32)
    start = jnp.full((len(labels), 1), model.config.decoder_start_token_id)
    shifted = jnp.concatenate([start, labels[:, :-1]], axis=1)[:, positions]
    table = model.decoder.embed_positions.embedding
    table[...] = table[...].at[:5].set(table[...][positions])
    scores = model(batch["input_ids"], batch["attention_mask"], shifted)[..., : model.config.image_vocab_size + 1]
    wanted = -jnp.take_along_axis(jax.nn.log_softmax(scores), labels[:, positions][..., None], axis=-1)
    assert float(found.weight) == labels[:, positions].size
    assert float(found.total) == pytest.approx(float(wanted.sum()), rel=1e-5)


def test_positions_that_change_are_preferred_and_the_expected_loss_stays():
    plain = jnp.full((4000, 32), 7).at[:, 10:14].set(jnp.arange(4))
    positions, often = changing_positions(plain, 8, 3.0, jax.random.key(0))
    assert positions.shape == (4000, 8) and np.all(np.diff(positions) > 0)
    drawn = np.bincount(np.ravel(positions), minlength=32) / 4000
    changes = np.isin(np.arange(32), [0, 10, 11, 12, 13, 14])
    assert drawn[changes].mean() == pytest.approx(3 * drawn[~changes].mean(), rel=0.02)
    np.testing.assert_allclose(drawn, np.asarray(often[0]) * 8 / 32, atol=0.03)
    losses = jnp.arange(32.0) ** 2
    counted = jnp.take_along_axis(losses / often, positions, axis=1)
    assert float(counted.mean()) == pytest.approx(float(losses.mean()), rel=0.02)


def test_an_update_learns_positions_of_each_image(trainer, tmp_path):
    """The loss is the weighted mean over those that are drawn; preferring nothing is as before."""
    some = make("seq2seq", tmp_path, short_loop(), dataclasses.replace(SEQ2SEQ, positions=4, prefer_changes=2.0))
    params, _ = some.parameters(jax.random.key(0))
    batch = jax.tree.map(jnp.asarray, some.batch(0))
    key = jax.random.key(3)
    found = some.loss(params, batch, key)
    labels = batch["labels"].astype(jnp.int32)
    positions, often = changing_positions(labels, 4, 2.0, jax.random.split(key, 3)[2])
    model = nnx.merge(some.graphdef, params)
    start = jnp.full((len(labels), 1), model.config.decoder_start_token_id)
    shifted = jnp.concatenate([start, labels[:, :-1]], axis=1)
    total = weight = 0.0
    for row in range(len(labels)):  # one image alone, whose positions are those of all rows
        one = slice(row, row + 1)
        at = positions[row]
        hidden = model.hidden(batch["input_ids"][one], batch["attention_mask"][one], shifted[one, at], positions=at)
        scores = model.logits(hidden)[0, :, : model.config.image_vocab_size + 1]
        picked = jnp.take_along_axis(jax.nn.log_softmax(scores), labels[row, at][:, None], axis=-1)[:, 0]
        total -= float(jnp.sum(picked / often[row, at]))
        weight += float(jnp.sum(1 / often[row, at]))
    assert float(found.total) == pytest.approx(total, rel=1e-4)
    assert float(found.weight) == pytest.approx(weight, rel=1e-5)

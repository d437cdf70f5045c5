"""Caption dropout, what the trainer refuses, and that it learns eight captions by heart."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import tiny_runs
from tiny_runs import CAPTIONS, SEQ2SEQ, make, short_loop, tokens

from dalle_mini.errors import UserError
from dalle_mini.models import DalleBart
from dalle_mini.text import CaptionTokenizer
from dalle_mini.training.seq2seq import TOKENS_RECORD


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    config = dataclasses.replace(SEQ2SEQ, learning_rate=0.05, decay="constant")
    return make("seq2seq", tmp_path_factory.mktemp("seq2seq"), short_loop(steps=100, batch_size=16), config)


def test_dropped_captions_are_the_empty_one(tmp_path):
    loop = short_loop(batch_size=500)
    trainer = make("seq2seq", tmp_path, loop, dataclasses.replace(SEQ2SEQ, caption_dropout=0.2))
    ids, mask = trainer.tokenizer([""], max_length=8)
    assert ids[0].tolist()[:3] == [0, 2, 1]  # start, end, padding
    captions, _ = trainer.tokenizer(CAPTIONS, max_length=8)
    blank = 0
    for step in range(4):
        batch = trainer.batch(step)
        dropped = (batch["input_ids"] == ids).all(axis=1)
        np.testing.assert_array_equal(batch["attention_mask"][dropped], np.repeat(mask, dropped.sum(), axis=0))
        # the others are whole captions, and every row keeps its own picture
        rows = (batch["input_ids"][:, None] == captions).all(axis=-1)
        assert (rows.any(axis=1) == ~dropped).all()
        np.testing.assert_array_equal(batch["labels"][~dropped], tokens(8).tokens[rows[~dropped].argmax(axis=1)])
        blank += dropped.sum()
    assert 0.16 < blank / 2000 < 0.24  # four standard deviations


@pytest.mark.parametrize(("rate", "share"), [(0.0, 0.0), (1.0, 1.0)])
def test_never_and_always(tmp_path, rate, share):
    trainer = make("seq2seq", tmp_path, short_loop(), dataclasses.replace(SEQ2SEQ, caption_dropout=rate))
    assert (trainer.batch(0)["input_ids"] == trainer.blank["input_ids"]).all(axis=1).mean() == share


def test_noise_changes_what_the_decoder_sees_and_not_what_it_shall_say(tmp_path):
    config = dataclasses.replace(SEQ2SEQ, token_noise=0.4)
    trainer = make("seq2seq", tmp_path, short_loop(batch_size=500), config)
    batch = trainer.batch(0)
    clean = make("seq2seq", tmp_path, short_loop(batch_size=500)).batch(0)
    np.testing.assert_array_equal(batch["labels"], clean["labels"])
    wrong = (batch["seen"] != batch["labels"]).mean(axis=1)
    assert 0.12 < wrong.mean() < 0.28 and wrong.std() > 0.05  # 0.2, less what hits the right token by chance
    assert batch["seen"].max() < tokens().codebook_size
    assert "seen" not in clean


def test_captions_are_normalised_but_the_empty_one_is_not(tmp_path):
    plain = make("seq2seq", tmp_path, short_loop())
    sizes = {"steps": 8, "batch_size": 4, "seed": 0}
    trainer = tiny_runs.Seq2SeqTrainer(SEQ2SEQ, tokens(), tokens(8), plain.tokenizer, str.upper, **sizes)
    expected, _ = plain.tokenizer(["RED"], max_length=8)
    np.testing.assert_array_equal(trainer.train["input_ids"][0], expected[0])
    np.testing.assert_array_equal(trainer.blank["input_ids"], plain.blank["input_ids"])


def test_batches_depend_on_seed_and_step_alone(trainer, tmp_path):
    first, again, next_one = trainer.batch(3), trainer.batch(3), trainer.batch(4)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert not np.array_equal(first["labels"], next_one["labels"])
    other = make("seq2seq", tmp_path, short_loop(batch_size=16, seed=1))
    assert not np.array_equal(first["labels"], other.batch(3)["labels"])


def changed(**model):
    return dataclasses.replace(SEQ2SEQ, model=dataclasses.replace(SEQ2SEQ.model, **model))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (changed(image_length=25), "tokens: 16 tokens a picture, not 25"),
        (changed(image_vocab_size=8), "tokens: tokens of 16 codes, image_vocab_size 8"),
        (changed(encoder_vocab_size=200), r"tokenizer.json: token ids go up to \d+ but .* has 200 rows"),
        (
            changed(decoder_start_token_id=17),
            "decoder_start_token_id 17 is beyond image_vocab_size 16",
        ),
        (dataclasses.replace(SEQ2SEQ, decay="never"), "decay: 'never' is none of"),
        (dataclasses.replace(SEQ2SEQ, token_noise=40.0), "token_noise 40.0: a share from 0 to 1"),
    ],
)
def test_what_does_not_fit(tmp_path, config, message):
    with pytest.raises(UserError, match=message):
        make("seq2seq", tmp_path, short_loop(), config)


def test_tokens_of_two_vqgans_are_refused(tmp_path):
    train = tokens()
    train.vqgan = "another"
    with pytest.raises(UserError, match=r"tokens: tokens of another VQGAN \(tiny\) than those of tokens \(another\)"):
        make("seq2seq", tmp_path, short_loop(), train=train)


def test_the_record_tells_the_data_apart(tmp_path):
    def record(train=None):
        return make("seq2seq", tmp_path, short_loop(), train=train).settings()["data"]

    other_tokens, other_captions = tokens(), tokens()
    other_tokens.tokens = other_tokens.tokens[::-1]
    other_captions.captions = other_captions.captions[::-1]
    same, first, second = record(), record(other_tokens), record(other_captions)
    assert same == record(tokens())
    assert same["vqgan"] == "tiny"
    assert first["held_out"] == second["held_out"] == same["held_out"] != same["train"]
    assert first["train"]["captions"] == same["train"]["captions"]
    assert first["train"]["tokens"] != same["train"]["tokens"]
    assert second["train"]["captions"] != same["train"]["captions"]
    assert second["train"]["tokens"] == same["train"]["tokens"]


def test_it_learns_and_exports(trainer, tmp_path):
    state = jax.jit(trainer.init)(jax.random.key(0))
    before = trainer.evaluate(state)
    assert before["loss"] == pytest.approx(np.log(17), abs=0.3)  # as good as guessing
    update = jax.jit(trainer.step)
    for step in range(100):
        state, _ = update(state, trainer.batch(step), jax.random.key(step))
    after = trainer.evaluate(state)
    assert after["loss"] < 0.5 * before["loss"]
    assert after["accuracy"] > 0.8

    trainer.export(state, tmp_path / "final")
    model = DalleBart.from_pretrained(tmp_path / "final")
    assert json.loads((tmp_path / "final" / TOKENS_RECORD).read_text()) == {"vqgan": "tiny"}
    tokenizer = CaptionTokenizer.from_pretrained(tmp_path / "final")
    np.testing.assert_array_equal(tokenizer(CAPTIONS, 8)[0], trainer.held_out["input_ids"])
    np.testing.assert_array_equal(model.lm_head.kernel[...], state.params["lm_head"]["kernel"])
    np.testing.assert_array_equal(
        model.decoder.layers.ffn.out.kernel[...], state.params["decoder"]["layers"]["ffn"]["out"]["kernel"]
    )


def test_evaluation_weighs_examples_alike(trainer):
    """The last batch of 32 may be a smaller one."""
    state = jax.jit(trainer.init)(jax.random.key(0))
    rows = np.r_[np.zeros(32, int), np.arange(1, 9) % 8]
    whole = trainer.held_out
    trainer.held_out = {name: array[rows] for name, array in whole.items()}
    mixed = trainer.evaluate(state)["loss"]
    single = []
    for part in (rows[:32], rows[32:]):
        trainer.held_out = {name: array[part] for name, array in whole.items()}
        single.append(trainer.evaluate(state)["loss"])
    trainer.held_out = whole
    assert mixed == pytest.approx((32 * single[0] + 8 * single[1]) / 40, rel=1e-6)

"""A tiny CLIP learns, by either loss; its batches, in pieces too; and what of it is trained and decays."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dalle_mini import models
from dalle_mini.errors import UserError
from dalle_mini.imaging.clip_pixels import clip_pixels
from dalle_mini.training.clip.trainer import MAX_LOGIT_SCALE
from dalle_mini.training.engine.optimizer import make_optimizer
from dalle_mini.weights.pretrained import flatten
from tiny_runs import CAPTIONS, CLIP, PREPROCESSOR, Pictures, begin, make, short_loop, train

STEPS = 60


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    return make("clip", tmp_path_factory.mktemp("clip"), short_loop(steps=STEPS, batch_size=16))


@pytest.mark.slow
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


def test_copies_join_the_training_batch_alone(tmp_path):
    loop = short_loop(steps=1, batch_size=8)
    trainer = make("clip", tmp_path, loop, dataclasses.replace(CLIP, damage=0.3))
    batch = trainer.batch(0)
    assert len(batch["pixels"]) == 16 and len(batch["input_ids"]) == len(batch["numbers"]) == 8
    assert len(trainer.held_out_pairs()[0]) == 8
    _, _, metrics = train(trainer, loop)
    assert np.isfinite(metrics["loss"]).all()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("damage", 1.5), ("damage", -0.1), ("cell", 3), ("cell", 0), ("crop_scale", 0.0), ("crop_scale", 1.1)),
        *(("colour", 1.0), ("noise", -1.0)),
    ],
)
def test_augmentations_that_make_no_sense(tmp_path, name, value):
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


def test_batches(trainer):
    batch = trainer.batch(0)
    assert batch["pixels"].shape == (16, 8, 8, 3)
    assert batch["pixels"].dtype == np.uint8
    same_text = (batch["input_ids"][:, None] == batch["input_ids"]).all(axis=-1)
    caption, picture = batch["numbers"].T
    np.testing.assert_array_equal(caption[:, None] == caption, same_text)
    np.testing.assert_array_equal(picture[:, None] == picture, same_text)  # each of the eight has its own caption
    jax.tree.map(np.testing.assert_array_equal, batch, trainer.batch(0))
    assert (trainer.batch(1)["pixels"] != batch["pixels"]).any()
    normalised = trainer._normalised(jnp.asarray(batch["pixels"]))
    np.testing.assert_allclose(normalised, clip_pixels(batch["pixels"], PREPROCESSOR), atol=1e-6)


class Several(Pictures):
    """Pictures of which each has two captions."""

    def captions(self, index):
        return [CAPTIONS[index % 8], CAPTIONS[index % 8].upper() + "!"]


def test_one_of_several_captions(tmp_path):
    loop = short_loop(batch_size=400)
    source = Several()
    chosen = {"train": source, "captions_of": source.captions}
    several = make("clip", tmp_path, loop, dataclasses.replace(CLIP, noise=0.0), **chosen).batch(0)
    caption, picture = several["numbers"].T
    assert len(np.unique(picture)) == 8 and len(np.unique(caption)) == 16
    first = make("clip", tmp_path, loop, dataclasses.replace(CLIP, captions="first"), **chosen).batch(0)
    assert len(np.unique(first["numbers"][:, 0])) == 8


AUGMENTED = {"crop_scale": 0.4, "flip": True, "colour": 0.3, "noise": 0.05, "damage": 0.5}


@pytest.mark.parametrize("name", AUGMENTED)
def test_augmentations_are_a_function_of_seed_and_step(tmp_path, name):
    plain, loop = dataclasses.replace(CLIP, noise=0.0), short_loop(batch_size=32)  # all eight, of which few mirror
    one, same = (make("clip", tmp_path, loop, dataclasses.replace(plain, **{name: AUGMENTED[name]})) for _ in range(2))
    batch = one.batch(5)
    one.batch(3)
    jax.tree.map(np.testing.assert_array_equal, one.batch(5), batch)
    jax.tree.map(np.testing.assert_array_equal, same.batch(5), batch)
    unchanged = make("clip", tmp_path, loop, plain).batch(5)
    np.testing.assert_array_equal(batch["numbers"], unchanged["numbers"])
    assert (batch["pixels"][-32:] != unchanged["pixels"]).any()


def test_noise_is_for_training_alone(tmp_path):
    noisy = make("clip", tmp_path, short_loop(batch_size=400), dataclasses.replace(CLIP, noise=0.1), train=Gray())
    assert noisy.batch(0)["pixels"].std() / 255 == pytest.approx(0.1, rel=0.05)
    plain = make("clip", tmp_path, short_loop(), dataclasses.replace(CLIP, noise=0.0), train=Gray())
    assert plain.batch(0)["pixels"].std() == 0


class Gray(Pictures):
    def batch(self, indices):
        rows = list(indices)
        return np.full((len(rows), 8, 8, 3), 128, np.uint8), [CAPTIONS[i % 8] for i in rows]


def test_a_tokenizer_that_does_not_fit(tmp_path):
    text = dataclasses.replace(CLIP.model.text, vocab_size=300)
    config = dataclasses.replace(CLIP, model=dataclasses.replace(CLIP.model, text=text))
    with pytest.raises(UserError, match=r"tokenizer.json: token ids go up to \d+ but .* has 300 rows"):
        make("clip", tmp_path, short_loop(), config)


@pytest.fixture(scope="module")
def sigmoid(tmp_path_factory):
    config = dataclasses.replace(CLIP, loss="sigmoid", damage=0.3, noise=0.0)
    return make("clip", tmp_path_factory.mktemp("sigmoid"), short_loop(steps=STEPS, batch_size=16), config)


@pytest.mark.slow
def test_the_sigmoid_loss_has_a_bias_that_is_saved(sigmoid, tmp_path):
    loop = short_loop(steps=STEPS, batch_size=16)
    program, state = begin(sigmoid, loop)
    assert float(state.params["logit_bias"]) == -10
    assert float(state.params["logit_scale"]) == pytest.approx(np.log(10))
    before = sigmoid.evaluate(program, state, 16)
    program, state, metrics = train(sigmoid, loop)
    after = sigmoid.evaluate(program, state, 16)
    assert metrics["loss"][-5:].mean() < 0.8 * metrics["loss"][:5].mean()
    assert after["loss"] < before["loss"] and after["recall"] >= 0.75
    sigmoid.export(state, tmp_path)
    clip = models.CLIP.from_pretrained(tmp_path)
    assert clip.config.logit_bias_init_value == -10
    bias = float(clip.logit_bias[...])
    assert bias == float(state.params["logit_bias"]) != -10
    images, captions = Pictures().batch(range(8))
    squares, tokens = clip_pixels(images, PREPROCESSOR), sigmoid.tokenizer(captions, max_length=16)
    cosines = clip.image_embeds(squares) @ clip.text_embeds(*tokens).T
    np.testing.assert_allclose(
        clip.similarity(squares, *tokens), np.exp(clip.logit_scale[...]) * cosines + bias, rtol=1e-4
    )


@pytest.mark.parametrize("loss", ["softmax", pytest.param("sigmoid", marks=pytest.mark.slow)])
def test_pieces_are_the_whole_batch(tmp_path, loss):
    """GradCache: the loss is not that of the pieces by themselves. Adam's means are the first step's gradients."""
    loop = short_loop(steps=1, batch_size=8)
    made = make("clip", tmp_path, loop, dataclasses.replace(CLIP, loss=loss, damage=0.3))
    _, whole, metrics = train(made, loop)
    _, pieces, found = train(made, dataclasses.replace(loop, accumulation=4))
    for name in ("loss", "grad_norm", "recall"):
        np.testing.assert_allclose(found[name], metrics[name], rtol=1e-5, err_msg=name)
    gradients = [leaf for leaf in jax.tree.leaves(whole.opt_state) if leaf.dtype == np.float32]
    largest = max(float(abs(leaf).max()) for leaf in gradients)
    assert largest > 1e-3
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * largest), pieces.opt_state, whole.opt_state
    )


@pytest.mark.parametrize(
    ("which", "frozen"),
    [("text", ("vision_model", "visual_")), pytest.param("vision", ("text_",), marks=pytest.mark.slow)],
)
def test_a_tower_can_stay_as_it_is(tmp_path, which, frozen):
    made = make("clip", tmp_path, short_loop(steps=3), dataclasses.replace(CLIP, train=which))
    program, state = begin(made, short_loop(steps=3))
    before = {name: np.array(leaf) for name, leaf in flatten(state.params).items()}
    for step in range(2):  # the first has the rate 0
        state, _ = program.step(state, program.place(made.batch(step)), jax.random.key(step))
    moved = {name for name, leaf in flatten(state.params).items() if not np.array_equal(leaf, before[name])}
    stay = {name for name in before if name.startswith(frozen)}
    assert stay and not moved & stay
    indifferent = {name for name in before if name.endswith("k_proj.bias")}  # a softmax does not see them
    assert before.keys() - stay - indifferent <= moved
    kept = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state))
    assert kept < 2.2 * sum(before[name].size for name in before.keys() - stay)  # no statistics of what is frozen


def test_vectors_and_the_temperature_do_not_decay(trainer):
    """Without gradients nothing else moves them."""
    params = {"kernel": jnp.ones((2, 2)), "scale": jnp.ones(2), "logit_scale": jnp.ones(())}
    zeros = jax.tree.map(jnp.zeros_like, params)
    config = dataclasses.replace(trainer.optimizer, warmup_steps=0)
    for name in ("adamw", "adafactor", "muon"):
        tx = make_optimizer(dataclasses.replace(config, name=name), 10, decay_vectors=trainer.decay_vectors)
        _, state = jax.jit(tx.update)(zeros, tx.init(params), params)
        updates, _ = jax.jit(tx.update)(zeros, state, params)
        assert (updates["kernel"] < 0).all(), name
        assert not updates["scale"].any() and not updates["logit_scale"].any(), name

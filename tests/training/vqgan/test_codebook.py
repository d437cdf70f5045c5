"""The codebook's life: entries follow their vectors, the dead are revived, and entropy wants all of them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dalle_mini.errors import UserError
from dalle_mini.training.vqgan import codebook
from dalle_mini.training.vqgan.trainer import VQGANTraining

CONFIG = VQGANTraining(revive_every=3)


def update(codes, state, latents, step, config=CONFIG, **options):
    tokens = jnp.argmin(((latents[:, None] - codes) ** 2).sum(-1), axis=-1)
    return codebook.update(config, codes, state, latents, tokens, jnp.int32(step), jax.random.key(0), **options)


@pytest.mark.parametrize("how", codebook.UPDATES)
def test_dead_codes_are_revived_where_service_is_worst(how):
    """16 codes: the first serves the vectors near 0, the others are far from everything."""
    config = dataclasses.replace(CONFIG, codebook=how)
    codes = jnp.concatenate([jnp.zeros((1, 4)), jnp.full((15, 4), 1e3)])
    state = {"uses": jnp.r_[100.0, jnp.zeros(15)], "sums": jnp.zeros((16, 4))}
    latents = jnp.concatenate([jnp.full((90, 4), 1e-3), jnp.full((10, 4), 5.0)])  # a tenth is badly served

    same, _ = update(codes, state, latents, 1, config)  # not due: every third step is
    np.testing.assert_array_equal(same[1:], codes[1:])

    revived, after = update(codes, state, latents, 3, config)
    np.testing.assert_array_equal(revived[1:], np.full((15, 4), 5.0))  # drawn in proportion to the squared error
    assert np.abs(revived[0]).max() < 0.2  # the living one only follows its vectors, or its optimizer
    np.testing.assert_array_equal(after["uses"][1:], 1.0)
    np.testing.assert_array_equal(after["sums"][1:], revived[1:])

    never, _ = update(codes, state, latents, 3, dataclasses.replace(config, revive_every=0))
    np.testing.assert_array_equal(never[1:], codes[1:])


def test_a_revived_code_has_no_more_credit_than_its_share():
    """In a large codebook even living codes are used less than once a step of a small batch."""
    codes, latents = jnp.full((64, 4), 1e3), jnp.ones((16, 4))
    _, after = update(codes, codebook.no_uses(codes), latents, 0)
    np.testing.assert_array_equal(np.asarray(after["uses"])[1:], 0.25)


def test_codes_follow_the_moving_average_of_their_vectors():
    decay = CONFIG.codebook_decay
    codes = jnp.arange(16.0)[:, None].repeat(4, axis=1)
    state = {"uses": jnp.full(16, 2.0), "sums": 2 * codes}
    latents = jnp.full((3, 4), 7.25)
    moved, after = update(codes, state, latents, 1)
    uses = decay * 2 + (1 - decay) * 3
    assert after["uses"][7] == pytest.approx(uses)
    np.testing.assert_allclose(moved[7], (decay * 14 + (1 - decay) * 3 * 7.25) / uses, rtol=1e-6)
    np.testing.assert_allclose(moved[6], codes[6], rtol=1e-6)  # unused: its count fades, its place stays
    assert after["uses"][6] == pytest.approx(decay * 2)


def test_a_loss_moves_the_codes_instead():
    config = dataclasses.replace(CONFIG, codebook="loss")
    codes = jnp.arange(16.0)[:, None].repeat(4, axis=1)
    same, after = update(codes, codebook.no_uses(codes), jnp.full((3, 4), 7.25), 1, config)
    np.testing.assert_array_equal(same, codes)
    assert after["uses"][7] == pytest.approx(0.02 * 3)  # its uses are counted all the same


def test_a_codebook_that_was_trained_is_not_revived_at_once():
    rng = np.random.default_rng(0)
    codes = jnp.asarray(rng.normal(size=(16, 4)), jnp.float32)
    latents = jnp.full((32, 4), 10.0)
    fresh, _ = update(codes, codebook.no_uses(codes), latents, 0)
    np.testing.assert_allclose(fresh, 10, rtol=1e-5)
    kept, after = update(codes, codebook.no_uses(codes), latents, 0, trained=True)
    used = int(np.argmin(((10 - codes) ** 2).sum(-1)))
    others = np.arange(16) != used
    np.testing.assert_allclose(np.asarray(kept)[others], np.asarray(codes)[others], rtol=1e-6)
    # The used one moves by the share of this batch in its running mean, of 2 uses a step.
    uses = 0.98 * 2 + 0.02 * 32
    np.testing.assert_allclose(kept[used], (0.98 * 2 * codes[used] + 0.02 * 32 * 10) / uses, rtol=1e-5)
    # From then on its counts are those of its vectors: what nothing uses dies.
    quick = dataclasses.replace(CONFIG, codebook_decay=0.8)
    move = jax.jit(lambda codes, state, step: update(codes, state, latents, step, quick, trained=True))
    for step in range(1, 40):
        kept, after = move(kept, after, step)
    np.testing.assert_allclose(kept, 10, rtol=1e-2)  # the one that was used before is still on its way


def test_cosine_codes_stay_on_the_sphere():
    rng = np.random.default_rng(0)

    def directions(count):
        x = rng.normal(size=(count, 3))
        return jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), jnp.float32)

    codes, state, latents = directions(8), codebook.no_uses(np.zeros((8, 3))), directions(64)
    for step in range(4):
        codes, state = update(codes, state, latents, step, cosine=True)
        np.testing.assert_allclose(np.linalg.norm(codes, axis=1), 1, rtol=1e-5)
    tokens = np.argmax(latents @ codes.T, axis=1)
    assert len(np.unique(tokens)) > 4


def test_perplexity():
    assert codebook.perplexity(jnp.array([3.0, 3, 0, 3, 3])) == pytest.approx(4, rel=1e-5)
    assert codebook.perplexity(jnp.array([0.0, 7, 0])) == pytest.approx(1, rel=1e-5)


def test_entropy_loss_is_minus_the_mutual_information():
    codes = jnp.eye(4) * 3
    assert codebook.entropy_loss(codes, codes, 0.1) == pytest.approx(-np.log(4), abs=1e-4)  # sure, and all wanted
    assert codebook.entropy_loss(codes[:1].repeat(5, axis=0), codes, 0.1) == pytest.approx(0, abs=1e-4)  # one for all
    assert codebook.entropy_loss(jnp.zeros((5, 4)), codes, 0.1) == pytest.approx(0, abs=1e-4)  # nothing is sure


def test_entropy_loss_by_hand():
    rng = np.random.default_rng(0)
    z, codes, temperature = rng.normal(size=(2, 3, 4)), rng.normal(size=(5, 4)), 0.7
    logits = -((z.reshape(6, 1, 4) - codes) ** 2).sum(-1) / temperature
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    mean = p.mean(axis=0)
    wanted = -(p * np.log(p)).sum(axis=1).mean() + (mean * np.log(mean)).sum()
    found = codebook.entropy_loss(jnp.asarray(z, jnp.float32), jnp.asarray(codes, jnp.float32), temperature)
    assert found == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codebook": "gumbel"}, "training.codebook: 'gumbel' is none of ema, loss"),
        ({"codebook_decay": 1.0}, "training.codebook_decay: 1.0 is not a decay"),
        ({"entropy_temperature": 0.0}, "training.entropy_temperature: 0.0 is not a number above 0"),
        ({"revive_every": -1}, "training.revive_every: -1 is not a number of 0 or more"),
        ({"l1_weight": -0.5}, "training.l1_weight: -0.5 is not a number of 0 or more"),
        ({"dtype": "float16"}, "training.dtype: 'float16' is none of float32, bfloat16"),
    ],
)
def test_settings_that_cannot_be(change, message):
    with pytest.raises(UserError, match=message):
        VQGANTraining(**change)

"""The sampling steps against the published program's (tests/golden/sampling)."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dalle_mini.generation.sampling import (
    guide,
    mask_beyond,
    noise_of_ids,
    process_logits,
    sample_of_all,
    sample_of_few,
    top_k_filter,
    top_p_filter,
)
from dalle_mini.settings import SAMPLERS, SamplingParams

FOLDER = Path(__file__).parents[1] / "golden" / "sampling"
CASES = {
    name: case for name, case in json.loads((FOLDER / "golden.json").read_text())["cases"].items() if "case" in name
}
INF = np.inf


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(FOLDER / "golden.npz"))


def kept(logits):
    return np.flatnonzero(np.isfinite(logits)).tolist()


@pytest.mark.parametrize("name", CASES)
def test_the_published_order_and_numbers(golden, name):
    case = CASES[name]
    cond, uncond, guidance = golden["cond"], golden["uncond"], case["condition_scale"]
    logits = cond if guidance == 1.0 else guide(cond, uncond, guidance)
    settings = {"temperature": case.get("temperature", 1.0), "top_k": case.get("top_k", 50), "top_p": case.get("top_p")}
    logits = process_logits(logits, **settings)
    np.testing.assert_array_equal(np.isneginf(logits), np.isneginf(golden[name]))
    np.testing.assert_allclose(logits, golden[name], rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(jax.nn.softmax(logits), golden[f"{name}_probs"], rtol=0, atol=1e-5)
    with jax.threefry_partitionable(False):  # the generator's default when the golden values were made
        tokens = jax.random.categorical(jax.random.PRNGKey(0), logits)
    np.testing.assert_array_equal(tokens, golden[f"{name}_token_key0"])


def test_there_are_all_the_cases():
    assert set(CASES) == {f"case{i}_cs{guidance}" for i in range(11) for guidance in (1, 10)}


def test_guidance_of_1_and_0(golden):
    np.testing.assert_allclose(guide(golden["cond"], golden["uncond"], 1.0), golden["cond"], atol=1e-6)
    np.testing.assert_array_equal(guide(golden["cond"], golden["uncond"], 0.0), golden["uncond"])


def test_mask_beyond():
    logits = mask_beyond(jnp.arange(12.0).reshape(2, 6), 4)
    np.testing.assert_array_equal(logits, [[0, 1, 2, 3, -INF, -INF], [6, 7, 8, 9, -INF, -INF]])
    np.testing.assert_array_equal(mask_beyond(logits, 6), logits)
    np.testing.assert_array_equal(mask_beyond(logits, 100), logits)


def test_top_k_keeps_exactly_k_and_of_equal_logits_the_lower_ids():
    logits = jnp.array([[1, 3, 3, 2, 3, 3], [0, 0, 0, 0, 0, 0], [5, 4, 3, 2, 1, 0]], jnp.bfloat16)
    assert [kept(row) for row in top_k_filter(logits, 3).astype(float)] == [[1, 2, 4], [0, 1, 2], [0, 1, 2]]
    assert [kept(row) for row in top_k_filter(logits, 1).astype(float)] == [[1], [0], [0]]


@pytest.mark.parametrize("k", [0, 6, 7, 10**9])
def test_top_k_without_effect(k):
    logits = jnp.array([[1.0, 3, 3, 2, 3, 3]])
    np.testing.assert_array_equal(top_k_filter(logits, k), logits)


def test_top_k_beyond_what_is_left():
    logits = mask_beyond(jnp.arange(6.0), 2)
    assert kept(top_k_filter(logits, 4)) == [0, 1]


def test_top_p_keeps_the_token_that_crosses_p():
    logits = jnp.log(jnp.array([0.1, 0.4, 0.2, 0.3]))
    for p, want in {0.0: [1], 0.39: [1], 0.41: [1, 3], 0.69: [1, 3], 0.71: [1, 2, 3], 0.95: [0, 1, 2, 3]}.items():
        assert kept(top_p_filter(logits, p)) == want
    assert kept(top_p_filter(mask_beyond(logits, 3), 0.99)) == [0, 1, 2]


def test_top_p_of_1_is_no_limit_and_of_equal_tokens_the_lower_ids_are_kept():
    logits = jnp.array([0.0, -30, 0, 0, -40, 0])
    for p, want in {0.0: [0], 0.3: [0, 2], 0.6: [0, 2, 3], 0.9: [0, 2, 3, 5], 1.0: [0, 1, 2, 3, 4, 5]}.items():
        assert kept(top_p_filter(logits, p)) == want
        assert kept(jax.jit(top_p_filter)(logits, p)) == want
    assert kept(top_p_filter(mask_beyond(logits, 3), 1.0)) == [0, 1, 2]


def test_the_largest_are_found_without_sorting_the_vocabulary():
    program = jax.jit(lambda logits: top_k_filter(logits, 50)).lower(jnp.zeros((2, 4, 16384))).compile().as_text()
    assert "sort(" not in program


def test_every_leading_axis_is_a_batch(golden):
    logits = golden["cond"].reshape(2, 2, -1)
    batch = process_logits(logits, temperature=0.7, top_k=9, top_p=0.8)
    for i in range(2):
        for j in range(2):
            row = process_logits(logits[i, j], temperature=0.7, top_k=9, top_p=0.8)
            np.testing.assert_array_equal(batch[i, j], row)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_draw_depends_on_its_own_key_and_row_alone(golden, sampler):
    logits = jnp.asarray(golden["cond"]).reshape(2, 2, -1)
    keys = jax.random.split(jax.random.key(0), (2, 2))
    params = SamplingParams(temperature=jnp.ones((2, 2)))
    tokens = sample_of_all(keys, logits, params, sampler)
    assert tokens.shape == (2, 2) and tokens.dtype == jnp.int32
    assert tokens[1, 0] == sample_of_all(keys[1, 0], logits[1, 0], SamplingParams(temperature=jnp.ones(())), sampler)
    np.testing.assert_array_equal(sample_of_all(keys[::-1], logits[::-1], params, sampler), tokens[::-1])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_draws_follow_the_probabilities(sampler):
    keys = jax.random.split(jax.random.key(0), 4000)
    logits = jnp.broadcast_to(jnp.log(jnp.array([0.5, 0.0, 0.2, 0.3])), (4000, 4))
    params = SamplingParams(temperature=jnp.ones(4000), top_k=jnp.full(4000, 3))
    for tokens in (sample_of_all(keys, logits, params, sampler), sample_of_few(keys, logits, params, 3, sampler)):
        np.testing.assert_allclose(np.bincount(tokens, minlength=4) / 4000, [0.5, 0.0, 0.2, 0.3], atol=0.03)


def test_the_published_draw_from_the_whole_vocabulary():
    logits = jax.random.normal(jax.random.key(1), (50, 9))
    keys = jax.random.split(jax.random.key(0), 50)
    tokens = sample_of_all(keys, logits, SamplingParams(temperature=jnp.ones(50)), "rank")
    np.testing.assert_array_equal(tokens, jax.vmap(jax.random.categorical)(keys, logits))


def test_noise_of_an_id_is_the_same_in_any_company():
    """Gumbel's distribution has mean 0.5772 and variance pi^2 / 6."""
    keys = jax.random.split(jax.random.key(2), (3, 2))
    every = noise_of_ids(keys, jnp.broadcast_to(jnp.arange(20_000), (3, 2, 20_000)))
    few = jnp.array([7, 19_999, 0])
    np.testing.assert_array_equal(noise_of_ids(keys, jnp.broadcast_to(few, (3, 2, 3))), every[..., few])
    np.testing.assert_allclose([every.mean(), every.var()], [0.5772, np.pi**2 / 6], atol=0.02)
    assert len(np.unique(every)) > 0.99 * every.size

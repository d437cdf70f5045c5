"""The fast decoder against the plain one."""

from pathlib import Path

import jax
import numpy as np
import pytest

from dalle_mini.generation import generate_tokens
from dalle_mini.generation.reference import draw_image
from dalle_mini.models.dalle_bart import DalleBart
from dalle_mini.settings import SamplingParams

GOLDEN = Path(__file__).parents[1] / "golden" / "dallebart"


@pytest.fixture(scope="module")
def model():
    return DalleBart.from_pretrained(GOLDEN / "e_megalike_fp16_scan")


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(GOLDEN / "e_megalike_fp16_scan" / "golden.npz"))


@pytest.mark.parametrize(("window", "sampler"), [(1, "rank"), (5, "id")])
@pytest.mark.parametrize("uncond", ["the empty caption", "another caption"])
@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(guidance=1.0, top_k=1),
        SamplingParams(top_k=1),
        SamplingParams(guidance=1.0),
        SamplingParams(),
        SamplingParams(guidance=3.0, last_guidance=1.3),
        SamplingParams(temperature=2.5, top_k=20, top_p=0.9),
        SamplingParams(guidance=2.0, top_k=0, top_p=0.95),
        SamplingParams(guidance=2.0, temperature=3.0, top_k=0),
    ],
    ids=["greedy", "guided-greedy", "sampled", "guided", "schedule", "top-k-and-p", "top-p", "unlimited"],
)
def test_the_fast_decoder_draws_the_same_tokens(model, golden, sampling, uncond, window, sampler):
    """Tokens for three prompts with two candidates each, drawn together."""
    keys = jax.random.split(jax.random.key(3), (3, 2))
    texts = golden["input_ids"], golden["attention_mask"]
    other = golden["input_ids_uncond"], golden["attention_mask_uncond"]
    if uncond == "another caption":
        other = tuple(part[::-1] for part in texts)
    fast = generate_tokens(
        model, *texts, keys, sampling=sampling, uncond_input_ids=other[0], uncond_attention_mask=other[1],
        codebook_size=64, window=window, sampler=sampler,
    )  # fmt: skip
    for row in range(3):
        text, against = ([part[row] for part in both] for both in (texts, other))
        options = {"uncond": against, "codebook_size": 64, "sampler": sampler}
        plain = [draw_image(model, text, key, sampling, **options) for key in keys[row]]
        np.testing.assert_array_equal(fast[row], plain)


def test_forced_tokens_are_kept(model, golden):
    keys, forced = jax.random.split(jax.random.key(1), 1), np.full(model.image_length, -1)
    forced[[0, 5]] = 7, 8
    text, sampling = (golden["input_ids"][0], golden["attention_mask"][0]), SamplingParams(guidance=1.0)
    plain = draw_image(model, text, keys[0], sampling, forced=forced)
    for window in (1, 4, model.image_length):
        fast = generate_tokens(
            model, *(part[None] for part in text), keys, sampling=sampling, forced=forced, window=window
        )
        np.testing.assert_array_equal(fast[0], plain)

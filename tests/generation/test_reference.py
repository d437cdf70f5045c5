"""The fast decoder against the plain one."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from dalle_mini.generation import generate_tokens
from dalle_mini.generation.reference import draw_image
from dalle_mini.generation.sampling import stack
from dalle_mini.models.dalle_bart import DalleBart
from dalle_mini.settings import SamplingParams

GOLDEN = Path(__file__).parents[1] / "golden" / "dallebart"


@pytest.fixture(scope="module")
def model():
    return DalleBart.from_pretrained(GOLDEN / "e_megalike_fp16_scan")


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(GOLDEN / "e_megalike_fp16_scan" / "golden.npz"))


# Settings that one program draws: as many rows as settings, times the captions.
GREEDY, OWN = SamplingParams(guidance=1.0, top_k=1), SamplingParams(guidance=1.0)
TOGETHER = {
    "unguided": [GREEDY, OWN],
    "guided": [SamplingParams(top_k=1), SamplingParams(), SamplingParams(guidance=3.0, last_guidance=1.3)],
    "top-p": [SamplingParams(temperature=2.5, top_k=20, top_p=0.9), SamplingParams(guidance=1.0, top_k=5, top_p=0.8)],
    "no top-k": [SamplingParams(guidance=2.0, temperature=3.0, top_k=0), SamplingParams(guidance=2.0, top_k=9)],
    "top-p alone": [SamplingParams(guidance=2.0, top_k=0, top_p=0.95)],
}


@pytest.mark.slow
@pytest.mark.parametrize(("window", "sampler"), [(1, "rank"), (5, "id")])
@pytest.mark.parametrize("settings", TOGETHER.values(), ids=TOGETHER)
def test_the_fast_decoder_draws_the_same_tokens(model, golden, settings, window, sampler):
    """Three captions with each of the settings, in one call. For every other row another caption is the empty one."""
    top_k = model.config.sampling.top_k
    each = [dataclasses.replace(one, top_k=top_k if one.top_k is None else one.top_k) for one in settings] * 3
    rows = np.repeat(np.arange(3), len(settings))
    texts = [golden[name][rows] for name in ("input_ids", "attention_mask")]
    others = [golden[f"{name}_uncond"][rows] for name in ("input_ids", "attention_mask")]
    for other, text in zip(others, texts, strict=True):
        other[::2] = text[::-1][::2]
    keys = jax.random.split(jax.random.key(3), len(rows))
    fast = generate_tokens(
        model, *texts, keys, sampling=stack(each), uncond_input_ids=others[0], uncond_attention_mask=others[1],
        codebook_size=64, window=window, sampler=sampler,
    )  # fmt: skip
    for row, one in enumerate(each):
        text, against = ([part[row] for part in both] for both in (texts, others))
        plain = draw_image(model, text, keys[row], one, uncond=against, codebook_size=64, sampler=sampler)
        np.testing.assert_array_equal(fast[row], plain)


@pytest.mark.slow
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

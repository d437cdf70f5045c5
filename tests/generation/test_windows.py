"""Windows of positions draw the tokens of single steps, in fewer passes."""

from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from dalle_mini.errors import UserError
from dalle_mini.generation.decode import decode_tokens, generate_tokens
from dalle_mini.generation.windows import UNMEASURED, window_of
from dalle_mini.models.dalle_bart import DalleBart
from dalle_mini.settings import GenerationSettings

GOLDEN = Path(__file__).parents[1] / "golden" / "dallebart"
LENGTH = 16


@pytest.fixture(scope="module", params=["a_normformer_glu_scan", "e_megalike_fp16_scan"])
def folder(request):
    return GOLDEN / request.param


@pytest.fixture(scope="module")
def model(folder):
    return DalleBart.from_pretrained(folder)


@pytest.fixture(scope="module")
def texts(folder):
    golden = np.load(folder / "golden.npz")
    own = golden["input_ids"], golden["attention_mask"]
    # Another caption stands for the empty one, which not every file has.
    return {"own": own, "uncond_input_ids": own[0][::-1], "uncond_attention_mask": own[1][::-1]}


def passes(model, texts, keys, **options):
    """All that `decode_tokens` yields."""
    own, uncond = texts["own"], {name: texts[name] for name in texts if name != "own"}
    return list(decode_tokens(model, *own, keys, codebook_size=64, **uncond, **options))


def keys_of(*shape):
    return jax.random.split(jax.random.key(0), shape)


@pytest.mark.parametrize("window", [2, 5, 100])
@pytest.mark.parametrize(
    "options",
    [
        {"guidance": 1.0, "top_k": 1},
        {"guidance": 1.0},
        {"guidance": 8.0, "last_guidance": 1.5, "temperature": 1.4, "top_p": 0.9},
        {
            "guidance": np.array([1.0, 3.0, 10.0]),
            "temperature": np.array([0.5, 1.0, 2.0]),
            "top_k": np.array([0, 5, 50]),
        },
    ],
    ids=["greedy", "sampled", "schedule", "mixed"],
)
def test_the_tokens_are_those_of_single_steps(model, texts, window, options):
    keys = keys_of(3, 2)
    (single,) = passes(model, texts, keys, every=LENGTH, **options)
    (windowed,) = passes(model, texts, keys, every=LENGTH, window=window, **options)
    np.testing.assert_array_equal(windowed.tokens, single.tokens)
    assert np.all(np.asarray(single.passes) == LENGTH) and np.all(np.asarray(windowed.passes) <= LENGTH)


@pytest.mark.parametrize("window", [3, LENGTH])
def test_forced_tokens_are_kept(model, texts, window):
    keys, forced = keys_of(3, 2), np.full((3, 2, LENGTH), -1)
    forced[0, :, 2:9], forced[1, 1, ::2] = 7, np.arange(8)
    (single,) = passes(model, texts, keys, every=LENGTH, forced=forced)
    (windowed,) = passes(model, texts, keys, every=LENGTH, forced=forced, window=window)
    np.testing.assert_array_equal(windowed.tokens, single.tokens)


def test_drafts_that_are_right_are_taken_at_once(model, texts):
    """Tokens that are forced are right drafts from the beginning: each pass of four takes four."""
    forced = np.arange(1, LENGTH + 1)
    (found,) = passes(model, texts, keys_of(3, 1), every=LENGTH, forced=forced, window=4)
    np.testing.assert_array_equal(found.tokens, np.broadcast_to(forced, (3, 1, LENGTH)))
    assert np.all(np.asarray(found.passes) == LENGTH // 4)


def test_tokens_are_shown_once_they_are_final(model, texts):
    keys = keys_of(3, 2)
    shown = passes(model, texts, keys, every=5, window=4)
    assert [progress.drawn for progress in shown] == [5, 10, 15, LENGTH]
    whole = np.asarray(shown[-1].tokens)
    for progress in shown:
        tokens = np.asarray(progress.tokens)
        np.testing.assert_array_equal(tokens[..., : progress.drawn], whole[..., : progress.drawn])
        assert np.all((tokens == whole) | (tokens == 0))
    np.testing.assert_array_equal(whole, passes(model, texts, keys)[-1].tokens)


def test_an_image_is_the_same_alone(model, texts):
    keys = keys_of(3, 4)
    (together,) = passes(model, texts, keys, every=LENGTH, window=5)
    alone = {name: value[:1] for name, value in texts.items() if name != "own"}
    ids, mask = (part[:1] for part in texts["own"])
    tokens = generate_tokens(model, ids, mask, keys[:1, 2:3], codebook_size=64, window=5, **alone)
    np.testing.assert_array_equal(tokens[0, 0], together.tokens[0, 2])


CONFIG = SimpleNamespace(cache_width=2048, image_length=256)


@pytest.mark.parametrize(
    ("options", "platform", "rows", "window"),
    [
        ({"decode": "sequential"}, "cpu", 1, 1),
        ({"decode": "parallel", "window": 7}, "cpu", 1, 7),
        ({"decode": "parallel", "window": 999}, "cpu", 1, 256),
        ({"decode": "parallel"}, "a kind that nobody measured", 1, UNMEASURED),
        ({"decode": "parallel"}, "cpu", 10**6, UNMEASURED),
        ({}, "a kind that nobody measured", 1, 1),
        ({}, "cpu", 10**6, 1),
    ],
)
def test_the_window_is_asked_for_or_the_tables(options, platform, rows, window):
    assert window_of(GenerationSettings(guidance=1.0, **options), CONFIG, platform, rows) == window


def test_the_table_has_smaller_windows_for_more_rows():
    for guidance in (1.0, 10.0):
        settings = GenerationSettings(guidance=guidance)
        windows = [window_of(settings, CONFIG, "cpu", rows) for rows in range(1, 100)]
        assert windows == sorted(windows, reverse=True) and windows[0] >= 16 and windows[-1] == 1
        large = SimpleNamespace(cache_width=24_576, image_length=256)
        assert window_of(settings, large, "cpu", 1) == 1


@pytest.mark.parametrize(
    "options", [{"decode": "quick"}, {"window": 1}, {"decode": "sequential", "window": 4}, {"sampler": "x"}]
)
def test_settings_that_make_no_sense_are_refused(options):
    with pytest.raises(UserError, match=next(iter(options)) if len(options) == 1 else "window is 4"):
        GenerationSettings(**options)

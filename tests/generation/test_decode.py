"""The decoding loop: the published sequences, and pictures that depend on nothing but their caption and key."""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dalle_mini.generation import generate_tokens
from dalle_mini.generation.sampling import guide, mask_beyond, sample, warp
from dalle_mini.models.dalle_bart import DalleBart

GOLDEN = Path(__file__).parents[1] / "golden" / "dallebart"
SCANNED, UNROLLED = GOLDEN / "a_normformer_glu_scan", GOLDEN / "b_normformer_glu_unrolled"
MEGALIKE, SHARDED = GOLDEN / "e_megalike_fp16_scan", GOLDEN / "f_sharded_of_e"
ALL_IDS = 10**6  # a codebook_size that rules nothing out, as in the published program


def load_golden(folder):
    return dict(np.load((MEGALIKE if folder == SHARDED else folder) / "golden.npz"))


@pytest.fixture(scope="module")
def golden():
    return load_golden(SCANNED)


@pytest.fixture(scope="module")
def model():
    return DalleBart.from_pretrained(SCANNED)


@pytest.fixture(scope="module")
def mega():
    """A model whose last 16 of 80 ids are beyond its VQGAN's codebook of 64, and its golden values."""
    return DalleBart.from_pretrained(MEGALIKE), load_golden(MEGALIKE)


def generate(model, golden, keys, rows=slice(None), guidance=10.0, **settings):
    uncond = {}
    if guidance != 1.0:
        uncond = {f"uncond_{name}": golden[f"{name}_uncond"][rows] for name in ("input_ids", "attention_mask")}
    ids, mask = golden["input_ids"][rows], golden["attention_mask"][rows]
    return np.asarray(generate_tokens(model, ids, mask, keys, guidance=guidance, **uncond, **settings))


def keys_of(*shape, seed=0):
    return jax.random.split(jax.random.key(seed), shape)


@partial(jax.jit, static_argnums=0)
def forward(graphdef, params, ids, mask, tokens):
    return nnx.merge(graphdef, params)(ids, mask, tokens)


def teacher_forced(model, golden, tokens, guidance):
    """Guided logits at every position, without a cache: tokens [P, T], as they were sampled -> [P, T, V]."""
    start = np.full((len(tokens), 1), model.config.decoder_start_token_id)
    shifted = np.concatenate([start, tokens[:, :-1]], axis=1)
    split = nnx.split(model)
    cond = forward(*split, golden["input_ids"], golden["attention_mask"], shifted)
    if guidance == 1.0:
        return cond
    return guide(cond, forward(*split, golden["input_ids_uncond"], golden["attention_mask_uncond"], shifted), guidance)


@pytest.mark.parametrize(
    ("folder", "guidances"),
    [
        (SCANNED, {"greedy": 1.0, "sc_greedy": 10.0, "sc3_greedy": 3.0}),
        (UNROLLED, {"greedy": 1.0}),  # the only one in that folder
        (MEGALIKE, {"greedy": 1.0, "sc_greedy": 10.0, "sc3_greedy": 3.0}),
        (SHARDED, {"greedy": 1.0, "sc_greedy": 10.0, "sc3_greedy": 3.0}),
    ],
    ids=lambda value: value.name if isinstance(value, Path) else "",
)
def test_published_greedy_sequences(folder, guidances):
    golden, model = load_golden(folder), DalleBart.from_pretrained(folder)
    for name, guidance in guidances.items():
        tokens = generate(model, golden, keys_of(3), guidance=guidance, top_k=1, codebook_size=ALL_IDS)
        assert tokens.dtype == np.int32
        np.testing.assert_array_equal(tokens, golden[f"{name}_sequences"][:, 1:])


@pytest.mark.parametrize("name", ["default", "warped", "nocond"])
def test_published_sampled_sequences(model, golden, name):
    """Their loop, with our parts: one key a step for the whole batch, and rows that end in padding."""
    settings = json.loads((SCANNED / "golden.json").read_text())["sample"][name]
    top_k = settings["top_k"] if isinstance(settings["top_k"], int) else model.config.top_k
    key, tokens, finished = jax.random.PRNGKey(settings["seed"]), np.zeros((3, 16), np.int32), np.zeros(3, bool)
    with jax.threefry_partitionable(False):
        for t in range(16):
            this, key = jax.random.split(key)
            logits = teacher_forced(model, golden, tokens, settings["condition_scale"])[:, t]
            temperature = settings.get("temperature") or 1.0
            logits = warp(logits, temperature=temperature, top_k=top_k, top_p=settings.get("top_p"))
            drawn = np.asarray(jax.random.categorical(this, logits))
            finished |= drawn == model.config.eos_token_id
            tokens[:, t] = np.where(finished, model.config.pad_token_id, drawn)
    np.testing.assert_array_equal(tokens, golden[f"sample_{name}_sequences"][:, 1:])


@pytest.mark.parametrize(("guidance", "top_p"), [(1.0, None), (10.0, 0.9)])
def test_cached_sampling_equals_teacher_forcing(model, golden, guidance, top_p):
    keys, settings = keys_of(3, 2), {"temperature": 1.3, "top_k": 20, "top_p": top_p}
    tokens = generate(model, golden, keys, guidance=guidance, **settings)
    step_keys = jax.vmap(jax.vmap(lambda key: jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(16))))(keys)
    for candidate in range(2):
        logits = teacher_forced(model, golden, tokens[:, candidate], guidance)
        logits = warp(mask_beyond(logits, 64), **settings)
        np.testing.assert_array_equal(sample(step_keys[:, candidate], logits), tokens[:, candidate])


def test_greedy_tokens_are_the_likeliest_of_teacher_forcing(mega):
    model, golden = mega
    tokens = generate(model, golden, keys_of(3), top_k=1, codebook_size=64)
    logits = np.asarray(teacher_forced(model, golden, tokens, 10.0))
    np.testing.assert_array_equal(logits[..., :64].argmax(axis=-1), tokens)
    assert (logits.argmax(axis=-1) != tokens).any()  # ids beyond the codebook would have won


def test_ids_beyond_the_codebook_are_never_sampled(mega):
    model, golden = mega
    keys, settings = keys_of(3, 20), {"guidance": 1.0, "temperature": 5.0, "top_k": 80}
    everything = generate(model, golden, keys, codebook_size=ALL_IDS, **settings)
    assert everything.max() == 79
    assert generate(model, golden, keys, **settings).max() == 78  # image_vocab_size leaves out the last row
    tokens = generate(model, golden, keys, codebook_size=64, **settings)
    assert tokens.max() == 63 and tokens.min() == 0


def test_top_k_above_the_vocabulary_is_no_limit(model, golden):
    keys = keys_of(3, seed=1)
    tokens = generate(model, golden, keys, guidance=3.0, temperature=4.0, top_k=65)
    np.testing.assert_array_equal(generate(model, golden, keys, guidance=3.0, temperature=4.0, top_k=10**9), tokens)
    assert len(np.unique(tokens)) > 20


def test_none_is_the_top_k_of_the_config(model, golden):
    keys = keys_of(3, seed=2)
    tokens = generate(model, golden, keys, guidance=3.0, temperature=9.0)
    np.testing.assert_array_equal(generate(model, golden, keys, guidance=3.0, temperature=9.0, top_k=50), tokens)


def test_a_picture_is_the_same_among_1_and_among_7(model, golden):
    """In chunks of one shape, whatever else is drawn in them."""
    keys, filler = keys_of(3, 7), keys_of(3, 8, seed=5)
    settings = {"guidance": 3.0, "temperature": 3.0}  # that make 24 different pictures
    seven = generate(model, golden, jnp.concatenate([keys, filler[:, :1]], axis=1), **settings)
    one = generate(model, golden, jnp.concatenate([keys[:, :1], filler[:, 1:]], axis=1), **settings)
    np.testing.assert_array_equal(one[:, 0], seven[:, 0])
    assert len(np.unique(seven.reshape(24, -1), axis=0)) == 24
    # ... and wherever in the chunk, with the captions in any order
    order = np.array([2, 0, 1])
    shuffled = generate(
        model, golden, jnp.concatenate([filler[:, 1:], keys[:, :1]], axis=1)[order], rows=order, **settings
    )
    np.testing.assert_array_equal(shuffled[:, 7], seven[order, 0])


@pytest.mark.parametrize("temperature", [1e-4, 1.0], ids=["greedy", "sampled"])
def test_both_forms_of_keys_agree(model, golden, temperature):
    keys = keys_of(3, 2)
    candidates = generate(model, golden, keys, temperature=temperature)
    assert candidates.shape == (3, 2, 16)
    rows = generate(model, golden, keys.reshape(6), rows=np.repeat(np.arange(3), 2), temperature=temperature)
    np.testing.assert_array_equal(rows.reshape(3, 2, 16), candidates)
    single = generate(model, golden, keys[:, :1], temperature=temperature)
    np.testing.assert_array_equal(single, candidates[:, :1])
    np.testing.assert_array_equal(generate(model, golden, keys[:, 0], temperature=temperature), single[:, 0])
    if temperature < 1:
        np.testing.assert_array_equal(candidates[:, 1], golden["sc_greedy_sequences"][:, 1:])


def test_progress_is_told_and_changes_nothing(model, golden, monkeypatch):
    from dalle_mini.generation import decode

    monkeypatch.setattr(decode, "PROGRESS_EVERY", 5)
    keys, told = keys_of(3, 2), []
    tokens = generate(model, golden, keys, progress=told.append)
    assert told == [5, 10, 15, 16]
    np.testing.assert_array_equal(tokens, generate(model, golden, keys))


def test_keys_make_the_difference(model, golden):
    one, other = (generate(model, golden, keys_of(3, 2, seed=seed)) for seed in (0, 1))
    assert (one != other).any(axis=-1).all()


def test_greedy_is_greedy_in_bfloat16_too(golden):
    model = DalleBart.from_pretrained(SCANNED, dtype=jnp.bfloat16)
    tokens = generate(model, golden, keys_of(3, 8), guidance=3.0, top_k=1)
    assert (tokens == tokens[:, :1]).all()  # whatever the key, though logits tie


def test_guidance_needs_the_unconditional_rows(model, golden):
    ids, mask = golden["input_ids"], golden["attention_mask"]
    with pytest.raises(ValueError, match=r"guidance 10\.0 needs uncond_input_ids and uncond_attention_mask"):
        generate_tokens(model, ids, mask, keys_of(3))
    with pytest.raises(ValueError, match=r"guidance 0\.5 needs"):
        generate_tokens(model, ids, mask, keys_of(3), guidance=0.5, uncond_input_ids=golden["input_ids_uncond"])

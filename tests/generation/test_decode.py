"""The decoding loop: the published sequences, and pictures that depend on nothing but their caption and key."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dalle_mini.errors import UserError
from dalle_mini.generation import decode, generate_tokens, programs, stream_tokens
from dalle_mini.generation.cpu.tiles import USUAL, WHOLE, TiledLinear
from dalle_mini.generation.optimize import (
    Int8Linear,
    optimize_for_decoding,
    optimized_shapes,
    undo_optimization,
)
from dalle_mini.generation.sampling import guide, mask_beyond, process_logits, sample_of_few
from dalle_mini.models.dalle_bart import DalleBart
from dalle_mini.runtime.xla import compiler_options
from dalle_mini.settings import SamplingParams
from golden_captions import MEGALIKE, SCANNED, SHARDED, UNROLLED, generate, keys_of, load_golden

ALL_IDS = 10**6  # a codebook_size that rules nothing out, as in the published program


@pytest.fixture(scope="module")
def mega():
    """A model whose last 16 of 80 ids are beyond its VQGAN's codebook of 64, and its golden values."""
    return DalleBart.from_pretrained(MEGALIKE), load_golden(MEGALIKE)


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


@pytest.mark.parametrize(("top_k", "unlimited"), [(63, False), (64, True), (80, True), (0, True)])
def test_as_many_as_the_codebook_has_is_no_limit(mega, top_k, unlimited):
    ids = np.ones((1, mega[0].config.text_length), np.int32)
    call = programs.call_of(mega[0], ids, ids, keys_of(1), guidance=1.0, top_k=top_k, codebook_size=64)
    assert (call.programs.unlimited, call.programs.most) == (unlimited, 0 if unlimited else top_k)


@pytest.mark.slow
def test_a_cache_that_grows_gives_the_same_tokens(model, golden, monkeypatch):
    length, keys = model.config.image_length, keys_of(len(golden["input_ids"]), 3)
    assert decode.cache_lengths(model) == [length]
    whole = generate(model, golden, keys)
    with monkeypatch.context() as patch:
        patch.setattr(decode, "LARGE_CACHE", 1)
        assert len(decode.cache_lengths(model)) == decode.CACHES
        jax.clear_caches()  # of the programs with the whole cache
        np.testing.assert_array_equal(generate(model, golden, keys), whole)
    jax.clear_caches()


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
            logits = process_logits(logits, temperature=temperature, top_k=top_k, top_p=settings.get("top_p"))
            drawn = np.asarray(jax.random.categorical(this, logits))
            finished |= drawn == model.config.eos_token_id
            tokens[:, t] = np.where(finished, model.config.pad_token_id, drawn)
    np.testing.assert_array_equal(tokens, golden[f"sample_{name}_sequences"][:, 1:])


@pytest.mark.parametrize(("guidance", "top_p"), [(1.0, None), (10.0, 0.9)])
def test_cached_sampling_equals_teacher_forcing(model, golden, guidance, top_p):
    keys = keys_of(3, 2)
    tokens = generate(model, golden, keys, guidance=guidance, temperature=1.3, top_k=20, top_p=top_p)
    settings = {"temperature": jnp.full((3, 16), 1.3), "top_k": jnp.full((3, 16), 20)}
    step_keys = jax.vmap(jax.vmap(lambda key: jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(16))))(keys)
    for candidate in range(2):
        logits = teacher_forced(model, golden, tokens[:, candidate], guidance)
        settings["top_p"] = None if top_p is None else jnp.full((3, 16), top_p)
        want = sample_of_few(step_keys[:, candidate], mask_beyond(logits, 64), SamplingParams(**settings), most=20)
        np.testing.assert_array_equal(want, tokens[:, candidate])


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


def test_pauses_on_the_way_change_nothing(model, golden):
    keys = keys_of(3, 2)
    uncond = {f"uncond_{name}": golden[f"{name}_uncond"] for name in ("input_ids", "attention_mask")}
    looks = dict(stream_tokens(model, golden["input_ids"], golden["attention_mask"], keys, every=5, **uncond))
    assert list(looks) == [5, 10, 15, 16]
    for count, tokens in looks.items():
        np.testing.assert_array_equal(tokens[..., :count], looks[16][..., :count])
        assert not tokens[..., count:].any()
    np.testing.assert_array_equal(looks[16], generate(model, golden, keys))


@pytest.mark.slow
def test_eight_devices_draw_what_one_does():
    """In a process of its own: the number of devices is fixed when JAX starts."""
    code = f"""
import numpy as np, jax
from dalle_mini.generation import generate_tokens
from dalle_mini.models import DalleBart
model, golden = DalleBart.from_pretrained({str(SCANNED)!r}), np.load({str(SCANNED / "golden.npz")!r})
for shape, guidance in (((1, 16), 10.0), ((8, 1), 10.0), ((3, 8), 1.0)):
    rows = np.arange(shape[0]) % len(golden["input_ids"])
    options = dict(guidance=guidance)
    for name in ("input_ids", "attention_mask"):
        options["uncond_" + name] = golden[name + "_uncond"][rows]
    args = model, golden["input_ids"][rows], golden["attention_mask"][rows], jax.random.split(jax.random.key(0), shape)
    one = generate_tokens(*args, **options)
    for window in (1, 5):
        eight = generate_tokens(*args, devices=jax.devices(), window=window, **options)
        assert len(eight.sharding.device_set) == 8
        np.testing.assert_array_equal(one, eight)
"""
    flags = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", code], check=True, env=flags)


def test_devices_that_cannot_share_evenly_are_named(model, golden):
    with pytest.raises(ValueError, match="4 devices cannot share 3 captions of 2 candidates"):
        generate(model, golden, keys_of(3, 2), devices=jax.devices() * 4)


def test_forced_tokens_are_kept_and_seen_by_what_follows(model, golden):
    keys = keys_of(3, 2)
    free = generate(model, golden, keys)
    np.testing.assert_array_equal(generate(model, golden, keys, forced=np.full(16, -1)), free)
    forced = np.full((3, 1, 16), -1)
    forced[:, :, :6] = free[:, :1, :6]  # the upper part of the first candidate
    continued = generate(model, golden, keys, forced=forced)
    np.testing.assert_array_equal(continued[:, :, :6], np.broadcast_to(free[:, :1, :6], (3, 2, 6)))
    np.testing.assert_array_equal(continued[:, 0], free[:, 0])  # it goes on as it did by itself
    forced = np.full(16, -1)
    forced[[3, 9]] = 7, 8
    infilled = generate(model, golden, keys, forced=forced)
    assert (infilled[..., 3] == 7).all() and (infilled[..., 9] == 8).all()
    np.testing.assert_array_equal(infilled[..., :3], free[..., :3])
    assert (infilled[..., 4:] != free[..., 4:]).any()


def test_an_option_stands_above_the_sampling_params(model, golden):
    keys = keys_of(3, 2)
    found = generate(model, golden, keys, sampling=SamplingParams(guidance=2.0, top_k=5), guidance=8.0)
    np.testing.assert_array_equal(found, generate(model, golden, keys, guidance=8.0, top_k=5))
    with pytest.raises(TypeError, match="top_q"):
        generate(model, golden, keys, sampling=SamplingParams(), top_q=1)


def test_guidance_may_change_along_the_way(model, golden):
    keys = keys_of(3, 2)
    constant, linear = (generate(model, golden, keys, guidance=8.0, last_guidance=last) for last in (8.0, 1.0))
    np.testing.assert_array_equal(constant, generate(model, golden, keys, guidance=8.0))
    assert (linear != constant).any()
    schedule = 8.0 + (1.0 - 8.0) * np.arange(16) / 15
    logits = [np.asarray(teacher_forced(model, golden, linear[:, 0], scale))[:, t] for t, scale in enumerate(schedule)]
    step_keys = jax.vmap(lambda key: jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(16)))(keys[:, 0])
    ones = jnp.ones((3, 16))
    logits = mask_beyond(np.stack(logits, axis=1), 64)
    want = sample_of_few(step_keys, logits, SamplingParams(temperature=ones, top_k=50 * ones), most=50)
    np.testing.assert_array_equal(want, linear[:, 0])


def test_a_prepared_model_draws_the_same_and_can_be_restored(model, golden):
    ready = optimize_for_decoding(model)
    assert optimize_for_decoding(ready) is ready
    keys = keys_of(3, 2)
    np.testing.assert_array_equal(generate(ready, golden, keys), generate(model, golden, keys))
    args = golden["input_ids"], golden["attention_mask"], golden["decoder_input_ids"]
    np.testing.assert_allclose(ready(*args), golden["logits"], atol=1e-4)
    before, after = (
        jax.tree.leaves_with_path(nnx.to_pure_dict(nnx.state(m))) for m in (model, undo_optimization(ready))
    )
    assert [path for path, _ in before] == [path for path, _ in after]
    for (_, one), (_, other) in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)


def test_bfloat16_weights_keep_their_type_and_can_be_restored(golden):
    model = DalleBart.from_pretrained(SCANNED, dtype=jnp.bfloat16)
    args = golden["input_ids"], golden["attention_mask"], golden["decoder_input_ids"]
    ready = optimize_for_decoding(model)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(nnx.state(ready.decoder.layers[0].ffn.linear))} == {"bfloat16"}
    rms = [float(np.sqrt(np.mean((np.asarray(one(*args)) - golden["logits"]) ** 2))) for one in (model, ready)]
    assert rms[1] < rms[0] < 0.05 * golden["logits"].std()  # less is rounded than in bfloat16 throughout
    again = undo_optimization(ready)
    before, after = (jax.tree.leaves(nnx.to_pure_dict(nnx.state(m))) for m in (model, again))
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other, strict=True)
    np.testing.assert_array_equal(again(*args), model(*args))


@pytest.mark.parametrize(("platform", "kinds"), [("tpu", {"bfloat16"}), ("cpu", {"bfloat16", "float32"})])
def test_what_is_prepared_depends_on_where_it_will_compute(model, platform, kinds):
    _, params = optimized_shapes(model.config, jnp.bfloat16, platform=platform)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(nnx.to_pure_dict(params)["decoder"])} == kinds


@pytest.mark.parametrize("tile", [USUAL, WHOLE])
@pytest.mark.parametrize("terms", [256, 768, 2730, 3001])
def test_long_products_of_float32_are_made_of_short_sums(terms, tile):
    """Whatever library multiplies: their error is that of chains of 256 terms. (3001 is a prime: it stays whole.)"""
    linear = nnx.Linear(terms, 100, use_bias=False, rngs=nnx.Rngs(0))
    ready = TiledLinear(linear, tile)
    np.testing.assert_array_equal(ready.kernel, linear.kernel[...])
    graphdef, params = nnx.split(ready)
    program = jax.jit(
        lambda params, x: nnx.merge(graphdef, params)(x),
        compiler_options=compiler_options("float32", "cpu", short_sums=True),
    )
    x = np.random.default_rng(0).normal(size=(8, terms)).astype(np.float32)
    weight = np.asarray(ready.kernel)
    wanted, total = x.astype(np.float64) @ weight.astype(np.float64), np.zeros((8, 100), np.float32)
    for start in range(0, terms, 256):
        chain = np.zeros_like(total)
        for k in range(start, min(start + 256, terms)):
            chain = (x[:, k : k + 1].astype(np.float64) * weight[k] + chain).astype(np.float32)
        total += chain
    error, allowed = (np.sqrt(np.mean((one - wanted) ** 2)) for one in (program(params, x), total))
    assert error < (1.1 if terms < 3001 else 2) * allowed


def test_int8_products_are_as_exact_as_float32():
    linear = nnx.Linear(300, 20, rngs=nnx.Rngs(0), bias_init=nnx.initializers.normal())
    ready = Int8Linear(linear, integers=True)
    wide = np.asarray(ready.weight[...], np.float64) * np.asarray(ready.scale[...], np.float64)[:, None]
    x = np.random.default_rng(0).normal(size=(2, 3, 300)).astype(np.float32)
    x[0, 1] = 0
    want = x.astype(np.float64) @ wide.T + np.asarray(linear.bias[...])
    np.testing.assert_allclose(ready(x), want, atol=1e-4 * np.abs(want).max())
    np.testing.assert_array_equal(ready(x)[0, 1], linear.bias[...])


def test_int8_weights_are_close_and_cannot_be_saved(model, golden):
    ready = optimize_for_decoding(model, int8=True)
    args = golden["input_ids"], golden["attention_mask"], golden["decoder_input_ids"]
    error = np.asarray(ready(*args)) - golden["logits"]
    assert 1e-4 < np.sqrt(np.mean(error**2)) < 0.02 * golden["logits"].std()
    with pytest.raises(UserError, match="int8 weights are for drawing alone"):
        undo_optimization(ready)


def test_keys_make_the_difference(model, golden):
    one, other = (generate(model, golden, keys_of(3, 2, seed=seed), temperature=3.0) for seed in (0, 1))
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

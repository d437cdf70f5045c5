"""DalleBart against the states, logits, loss and gradients of the published program (tests/golden/dallebart)."""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dalle_mini.generation.sampling import guide
from dalle_mini.models.config import DalleBartConfig
from dalle_mini.models.dalle_bart import DalleBart, ForwardOptions, unstack_layers
from dalle_mini.weights.formats.tensors import Tensor
from dalle_mini.weights.key_mapping import dalle_bart
from dalle_mini.weights.pretrained import flatten

GOLDEN = Path(__file__).parents[1] / "golden" / "dallebart"
SCANNED, UNROLLED = GOLDEN / "a_normformer_glu_scan", GOLDEN / "b_normformer_glu_unrolled"
PRELN, POSTLN = GOLDEN / "c_ffn_bias_preln_scan", GOLDEN / "d_ffn_bias_postln_unrolled"
MEGALIKE, SHARDED = GOLDEN / "e_megalike_fp16_scan", GOLDEN / "f_sharded_of_e"


def load_golden(folder):
    return dict(np.load((MEGALIKE if folder == SHARDED else folder) / "golden.npz"))


def sum_embeddings_in_float16(model):
    """The published program adds token and position embeddings in the type they are stored in, we in float32."""
    for part in (model.encoder, model.decoder):
        part.embed_tokens.dtype = part.embed_positions.dtype = jnp.float16
    return model


def load_model(folder, dtype=jnp.float32):
    model = DalleBart.from_pretrained(folder, dtype=dtype)
    return sum_embeddings_in_float16(model) if folder in (MEGALIKE, SHARDED) else model


@pytest.fixture(
    scope="module", params=[SCANNED, UNROLLED, PRELN, POSTLN, MEGALIKE, SHARDED], ids=lambda folder: folder.name
)
def case(request):
    """Golden values, and what our model says to the captions (0) and the empty captions (1)."""
    golden = load_golden(request.param)
    return golden, *forward(load_model(request.param), *both_captions(golden), golden["decoder_input_ids"])


@pytest.fixture(scope="module")
def model():
    return load_model(SCANNED)


@pytest.fixture(scope="module")
def golden():
    return load_golden(SCANNED)


def both_captions(golden):
    """input_ids and attention_mask [2, P, S]: conditional, unconditional."""
    return tuple(np.stack([golden[name], golden[f"{name}_uncond"]]) for name in ("input_ids", "attention_mask"))


def forward(model, ids, mask, tokens):
    """ids, mask [2, P, S], tokens [P, T] -> encoder states [2, P, S, D] and logits [2, P, T, V]."""
    rows = [np.concatenate(part) for part in (ids, mask, [tokens, tokens])]
    return [part.reshape(2, -1, *part.shape[1:]) for part in _forward(*nnx.split(model), *rows)]


@partial(jax.jit, static_argnums=0)
def _forward(graphdef, params, ids, mask, tokens):
    model = nnx.merge(graphdef, params)
    return model.encode(ids, mask), model(ids, mask, tokens)


def close(actual, expected, tolerance=1e-4):
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


def cross_entropy(logits, labels):
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], axis=-1).mean()


def gradients(model, golden, remat):
    graphdef, params = nnx.split(model)
    tokens = golden["decoder_input_ids"]

    def loss(params):
        model = nnx.merge(graphdef, params)
        logits = model.logits(
            model.hidden(golden["input_ids"], golden["attention_mask"], tokens, ForwardOptions(remat=remat))
        )
        return cross_entropy(logits, golden["labels"])

    return flatten(jax.jit(jax.grad(loss))(params))


@pytest.fixture(scope="module")
def gradient(model, golden):
    return gradients(model, golden, remat="none")


@partial(jax.jit, static_argnums=0)
def cached_logits(graphdef, params, ids, mask, tokens):
    """Teacher forcing one position at a time: captions of P rows, tokens [P, C, T] -> logits [P, C, T, V]."""
    model = nnx.merge(graphdef, params)
    context, cache = model.prefill(ids, mask, tokens.shape[1], model.image_length)

    def step(cache, position):
        logits, cache = model.step(tokens[:, :, position, None], context, cache, position)
        return cache, logits[:, :, 0]

    logits = jax.lax.scan(step, cache, jnp.arange(tokens.shape[2]))[1]
    return jnp.moveaxis(logits, 0, 2)


def test_encoder_states(case):
    golden, states, _ = case
    close(states[0], golden["encoder_last_hidden_state"])
    if "encoder_last_hidden_state_uncond" in golden:
        close(states[1], golden["encoder_last_hidden_state_uncond"])


def test_logits_and_loss(case):
    golden, _, (logits, _) = case
    close(logits, golden["logits"])
    close(cross_entropy(logits, golden["labels"]), golden["loss"])


def test_guided_logits(case):
    golden, _, (cond, uncond) = case
    guided = guide(cond, uncond, 10.0)
    golden = {**load_golden(SCANNED), **golden}  # the unrolled folder has the scanned one's weights, and fewer values
    close(uncond, golden["logits_uncond"])
    close(guided, golden["logits_super10"])
    close(cond[:, 0], golden["sc_first_logits_cond"])
    close(uncond[:, 0], golden["sc_first_logits_uncond"])
    close(guided[:, 0], golden["sc_first_logits_super10"])


@pytest.mark.parametrize("folder", [MEGALIKE, SHARDED], ids=lambda folder: folder.name)
def test_float16_weights_are_computed_with_in_float32(folder):
    golden = load_golden(folder)
    _, logits = forward(DalleBart.from_pretrained(folder), *both_captions(golden), golden["decoder_input_ids"])
    close(logits[0], golden["logits_params_cast_fp32"])


@pytest.mark.parametrize(
    "folder",
    [
        SCANNED,
        *(pytest.param(folder, marks=pytest.mark.slow) for folder in (UNROLLED, PRELN, POSTLN, MEGALIKE)),
    ],
    ids=lambda folder: folder.name,
)
def test_gradients(model, gradient, folder):
    if folder in (PRELN, POSTLN, MEGALIKE):
        model = DalleBart.from_pretrained(folder)
        gradient = gradients(model, load_golden(folder), remat="full" if folder == POSTLN else "none")
    published = json.loads((folder / "grads.json").read_text())
    # Which tensors of the file make up each of ours: send their numbers through the layout.
    numbered = {name: Tensor.of(np.full(value["shape"], float(i))) for i, (name, value) in enumerate(published.items())}
    sources = {name: tensor.read() for name, tensor in dalle_bart(numbered, model.config).items()}
    assert set(gradient) == set(sources)
    seen = set()
    for name, ours in gradient.items():
        numbers = [int(number) for number in np.unique(sources[name])]  # several: the layers of the unrolled layout
        for number, part in zip(numbers, ours if len(numbers) > 1 else [ours], strict=True):
            want = list(published.values())[number]
            assert list(part.shape) == want["shape"]
            summary = [part.mean(), jnp.linalg.norm(part.ravel()), jnp.abs(part).max()]
            np.testing.assert_allclose(summary, [want["mean"], want["norm"], want["absmax"]], rtol=1e-4, atol=1e-5)
            seen.add(number)
    assert len(seen) == len(published)


@pytest.mark.slow
def test_rematerialised_gradients_are_the_same(model, golden, gradient):
    remat = gradients(model, golden, remat="full")
    for name in gradient:
        np.testing.assert_allclose(remat[name], gradient[name], rtol=0, atol=1e-6)


def test_hidden_states_of_each_layer(model):
    golden = load_golden(UNROLLED)
    ids, mask = golden["input_ids"], golden["attention_mask"]
    encoder, decoder, tokens = model.encoder, model.decoder, golden["decoder_input_ids"]
    key_mask, causal = mask[:, None, None, :].astype(bool), np.tril(np.ones((16, 16), bool))
    x = encoder.embed(ids, jnp.arange(16))
    close(x, golden["encoder_hidden_states"][0])
    for i, layer in enumerate(unstack_layers(encoder.layers, model.config.encoder_layers)):
        x = layer(x, key_mask)
        close(x, golden["encoder_hidden_states"][i + 1])
    states = encoder.finish(x)
    x = decoder.embed(tokens, jnp.arange(16))
    close(x, golden["decoder_hidden_states"][0])
    for i, layer in enumerate(unstack_layers(decoder.layers, model.config.decoder_layers)):
        x = layer(x, layer.cross_attn.keys_values(states), key_mask, causal)
        close(x, golden["decoder_hidden_states"][i + 1])


@pytest.mark.parametrize("folder", [SCANNED, PRELN, POSTLN, MEGALIKE], ids=lambda folder: folder.name)
def test_cached_steps_give_the_published_logits(folder):
    golden = load_golden(folder)
    names = ("greedy", "sc_greedy", "sc3_greedy")
    tokens = np.stack([golden[f"{name}_sequences"][:, :-1] for name in names], axis=1)  # as if candidates
    ids, mask = (np.concatenate(part) for part in both_captions(golden))
    logits = cached_logits(*nnx.split(load_model(folder)), ids, mask, np.concatenate([tokens, tokens]))
    cond, uncond = jnp.split(logits, 2)
    for i, (name, guidance) in enumerate(zip(names, (1.0, 10.0, 3.0), strict=True)):
        close(guide(cond[:, i], uncond[:, i], guidance), golden[f"{name}_logits"])


def test_cached_steps_of_many_candidates_equal_teacher_forcing(model, golden):
    (ids, mask), candidates = both_captions(golden), np.random.default_rng(0).integers(0, 64, (3, 2, 16))
    logits = cached_logits(*nnx.split(model), ids[0], mask[0], candidates)
    for i in range(2):
        close(logits[:, i], forward(model, ids, mask, candidates[:, i])[1][0], 1e-5)


@pytest.mark.parametrize("folder", [SCANNED, PRELN], ids=lambda folder: folder.name)
def test_a_window_of_positions_equals_steps_of_one(folder):
    golden, model = load_golden(folder), load_model(folder)
    ids, mask = golden["input_ids"], golden["attention_mask"]
    tokens = np.random.default_rng(0).integers(0, 64, (3, 2, 16))
    wanted = cached_logits(*nnx.split(model), ids, mask, tokens)
    context, cache = model.prefill(ids, mask, 2, 8)
    step = jax.jit(model.step)
    logits, cache = step(tokens[..., :5], context, cache, 0)
    close(logits, wanted[:, :, :5], 1e-5)
    _, cache = step(tokens[..., 5:8] + 1, context, cache, 5)  # tokens that are taken back
    cache = model.grow(model.rollback(cache, 5), 16)
    logits, cache = step(tokens[..., 5:], context, cache, 5)
    close(logits, wanted[:, :, 5:], 1e-5)


def test_later_tokens_and_padding_have_no_effect(model, golden):
    (ids, mask), tokens = both_captions(golden), golden["decoder_input_ids"].copy()
    assert (mask[0] == 0).any()
    tokens[:, 9:] = 5
    logits = forward(model, np.where(mask, ids, 7), mask, tokens)[1][0]
    close(logits[:, :9], golden["logits"][:, :9])
    assert np.abs(logits[:, 9:] - golden["logits"][:, 9:]).max() > 0.1


def test_fewer_positions_than_the_model_has(model, golden):
    length = int(golden["attention_mask"].sum(axis=1).max())
    ids, mask = (part[..., :length] for part in both_captions(golden))
    close(forward(model, ids, mask, golden["decoder_input_ids"][:, :5])[1][0], golden["logits"][:, :5])


def test_bfloat16_compute_stays_as_close_as_the_published_program(golden):
    model = load_model(SCANNED, jnp.bfloat16)
    states, logits = forward(model, *both_captions(golden), golden["decoder_input_ids"])
    assert states.dtype == jnp.bfloat16 and logits.dtype == jnp.float32
    error, published_error = (np.abs(x - golden["logits"]) for x in (logits[0], golden["logits_compute_bf16"]))
    assert error.max() < 2 * published_error.max() and error.mean() < 2 * published_error.mean()


def test_a_new_model_knows_nothing_yet():
    config = DalleBartConfig(
        encoder_vocab_size=40, image_vocab_size=30, max_text_length=8, image_length=9, d_model=16, encoder_layers=1,
        encoder_attention_heads=2, encoder_ffn_dim=24, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=20,
    )  # fmt: skip
    ids = np.random.default_rng(0).integers(0, 30, (2, 9))

    @jax.jit
    def start(key):
        model = DalleBart(config, rngs=nnx.Rngs(key))
        return model(ids[:, :8], np.ones((2, 8)), ids), model.decoder.layers.ffn.gate.kernel[...]

    (logits, kernel), (_, other) = map(start, jax.random.split(jax.random.key(0)))
    assert logits.shape == (2, 9, 31)
    assert abs(cross_entropy(logits, ids) - np.log(31)) < 0.1
    assert kernel.shape == (2, 16, 20) and not np.array_equal(kernel[0], kernel[1])
    assert not np.array_equal(kernel, other)
    assert abs(kernel.std() - config.init_std) < 0.003

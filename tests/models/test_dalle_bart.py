"""DalleBart against the states, logits, loss and gradients of the published program (tests/golden/dallebart)."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dalle_mini.generation.sampling import guide
from dalle_mini.models.config import DalleBartConfig
from dalle_mini.models.dalle_bart import DalleBart, KVCache, unstack_layers
from dalle_mini.weights.layouts import dalle_bart
from dalle_mini.weights.pretrained import flatten

GOLDEN = Path(__file__).parents[1] / "golden" / "dallebart"
SCANNED, UNROLLED = GOLDEN / "a_normformer_glu_scan", GOLDEN / "b_normformer_glu_unrolled"
MEGALIKE, SHARDED = GOLDEN / "e_megalike_fp16_scan", GOLDEN / "f_sharded_of_e"


def load_golden(folder):
    return dict(np.load((MEGALIKE if folder == SHARDED else folder) / "golden.npz"))


def sum_embeddings_in_float16(model):
    """The published program adds token and position embeddings in the type they are stored in, we in float32."""
    for part in (model.encoder, model.decoder):
        part.embed_tokens.dtype = part.embed_positions.dtype = jnp.float16
    return model


@pytest.fixture(scope="module", params=[SCANNED, UNROLLED, MEGALIKE, SHARDED], ids=lambda folder: folder.name)
def case(request):
    """A model and its golden values."""
    model = DalleBart.from_pretrained(request.param)
    if request.param in (MEGALIKE, SHARDED):
        sum_embeddings_in_float16(model)
    return model, load_golden(request.param)


@pytest.fixture(scope="module")
def model():
    return DalleBart.from_pretrained(SCANNED)


@pytest.fixture(scope="module")
def golden():
    return load_golden(SCANNED)


def caption(golden, uncond=False):
    suffix = "_uncond" if uncond else ""
    return golden[f"input_ids{suffix}"], golden[f"attention_mask{suffix}"]


def close(actual, expected, tolerance=1e-4):
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


def cross_entropy(logits, labels):
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], axis=-1).mean()


def gradients(model, golden, remat=False):
    graphdef, params = nnx.split(model)

    def loss(params):
        logits = nnx.merge(graphdef, params)(*caption(golden), golden["decoder_input_ids"], remat=remat)
        return cross_entropy(logits, golden["labels"])

    return flatten(jax.jit(jax.grad(loss))(params))


def cached_logits(model, caption, tokens):
    """Teacher forcing one position at a time: caption of P rows, tokens [P, C, T] -> logits [P, C, T, V]."""
    ids, mask = caption
    config = model.config
    layers = unstack_layers(model.decoder.layers, config.decoder_layers)
    states = model.encode(ids, mask)
    cross = [layer.cross_attn.keys_values(states) for layer in layers]
    heads = config.decoder_attention_heads
    empty = jnp.zeros((*tokens.shape[:2], heads, config.image_length, config.d_model // heads))

    def step(caches, position):
        x = model.decoder.embed(jnp.asarray(tokens)[:, :, position], position)
        filled = []
        for layer, layer_cross, cache in zip(layers, cross, caches, strict=True):
            x, cache = layer.step(x, layer_cross, mask[:, None, None, :].astype(bool), cache, position)
            filled.append(cache)
        return filled, model.logits(model.decoder.final_ln(x))

    caches = [KVCache(empty, empty) for _ in layers]
    logits = jax.lax.scan(step, caches, jnp.arange(tokens.shape[2]))[1]
    return jnp.moveaxis(logits, 0, 2)


def test_encoder_states(case):
    model, golden = case
    close(model.encode(*caption(golden)), golden["encoder_last_hidden_state"])
    if "encoder_last_hidden_state_uncond" in golden:
        close(model.encode(*caption(golden, uncond=True)), golden["encoder_last_hidden_state_uncond"])


def test_logits_and_loss(case):
    model, golden = case
    logits = model(*caption(golden), golden["decoder_input_ids"])
    close(logits, golden["logits"])
    close(cross_entropy(logits, golden["labels"]), golden["loss"])


def test_guided_logits(case):
    model, golden = case
    if "logits_uncond" not in golden:
        pytest.skip("not in the golden values of this folder")
    tokens = golden["decoder_input_ids"]
    cond, uncond = model(*caption(golden), tokens), model(*caption(golden, uncond=True), tokens)
    close(uncond, golden["logits_uncond"])
    close(guide(cond, uncond, 10.0), golden["logits_super10"])
    close(cond[:, 0], golden["sc_first_logits_cond"])
    close(uncond[:, 0], golden["sc_first_logits_uncond"])
    close(guide(cond, uncond, 10.0)[:, 0], golden["sc_first_logits_super10"])


@pytest.mark.parametrize("folder", [MEGALIKE, SHARDED], ids=lambda folder: folder.name)
def test_float16_weights_are_computed_with_in_float32(folder):
    golden = load_golden(folder)
    logits = DalleBart.from_pretrained(folder)(*caption(golden), golden["decoder_input_ids"])
    close(logits, golden["logits_params_cast_fp32"])


@pytest.mark.parametrize("folder", [SCANNED, UNROLLED], ids=lambda folder: folder.name)
def test_gradients(folder):
    model, golden = DalleBart.from_pretrained(folder), load_golden(folder)
    published = json.loads((folder / "grads.json").read_text())
    # Which tensors of the file make up each of ours: send their numbers through the layout.
    numbered = {name: np.full(value["shape"], i) for i, (name, value) in enumerate(published.items())}
    sources = dalle_bart(numbered, model.config)
    found = gradients(model, golden)
    assert set(found) == set(sources)
    seen = set()
    for name, gradient in found.items():
        layers = {int(source.flat[0]): layer for source, layer in zip(sources[name], gradient, strict=True)}
        parts = layers if len(layers) > 1 else {int(sources[name].flat[0]): gradient}
        for number, part in parts.items():
            want = list(published.values())[number]
            assert list(part.shape) == want["shape"]
            summary = [part.mean(), jnp.linalg.norm(part.ravel()), jnp.abs(part).max()]
            np.testing.assert_allclose(summary, [want["mean"], want["norm"], want["absmax"]], rtol=1e-4, atol=1e-5)
            seen.add(number)
    assert len(seen) == len(published)


def test_rematerialised_gradients_are_the_same(model, golden):
    plain, remat = gradients(model, golden), gradients(model, golden, remat=True)
    for name in plain:
        np.testing.assert_allclose(remat[name], plain[name], rtol=0, atol=1e-6)


def test_hidden_states_of_each_layer():
    model, golden = DalleBart.from_pretrained(UNROLLED), load_golden(UNROLLED)
    ids, mask = caption(golden)
    encoder, decoder, tokens = model.encoder, model.decoder, golden["decoder_input_ids"]
    key_mask, causal = mask[:, None, None, :].astype(bool), np.tril(np.ones((16, 16), bool))
    x = encoder.layernorm_embedding(encoder.embed_tokens(ids) + encoder.embed_positions(jnp.arange(16)))
    close(x, golden["encoder_hidden_states"][0])
    for i, layer in enumerate(unstack_layers(encoder.layers, model.config.encoder_layers)):
        x = layer(x, key_mask)
        close(x, golden["encoder_hidden_states"][i + 1])
    states = encoder.final_ln(x)
    x = decoder.embed(tokens, jnp.arange(16))
    close(x, golden["decoder_hidden_states"][0])
    for i, layer in enumerate(unstack_layers(decoder.layers, model.config.decoder_layers)):
        x = layer(x, layer.cross_attn.keys_values(states), key_mask, causal)
        close(x, golden["decoder_hidden_states"][i + 1])


@pytest.mark.parametrize(("name", "guidance"), [("greedy", 1.0), ("sc_greedy", 10.0), ("sc3_greedy", 3.0)])
def test_cached_steps_give_the_published_logits(case, name, guidance):
    model, golden = case
    if f"{name}_logits" not in golden:
        pytest.skip("not in the golden values of this folder")
    tokens = golden[f"{name}_sequences"][:, None, :-1]
    logits = cached_logits(model, caption(golden), tokens)
    if guidance != 1.0:
        logits = guide(logits, cached_logits(model, caption(golden, uncond=True), tokens), guidance)
    close(logits[:, 0], golden[f"{name}_logits"])


def test_cached_steps_of_many_candidates_equal_teacher_forcing(model, golden):
    candidates = np.random.default_rng(0).integers(0, 64, (3, 4, 16))
    logits = cached_logits(model, caption(golden), candidates)
    for i in range(4):
        close(logits[:, i], model(*caption(golden), candidates[:, i]), 1e-5)


def test_later_tokens_and_padding_have_no_effect(model, golden):
    (ids, mask), tokens = caption(golden), golden["decoder_input_ids"].copy()
    ids = np.where(mask, ids, 7)
    assert (mask == 0).any()
    tokens[:, 9:] = 5
    logits = model(ids, mask, tokens)
    close(logits[:, :9], golden["logits"][:, :9])
    assert np.abs(logits[:, 9:] - golden["logits"][:, 9:]).max() > 0.1


def test_fewer_positions_than_the_model_has(model, golden):
    ids, mask = caption(golden)
    length = int(mask.sum(axis=1).max())
    logits = model(ids[:, :length], mask[:, :length], golden["decoder_input_ids"][:, :5])
    close(logits, golden["logits"][:, :5])


def test_bfloat16_compute_stays_as_close_as_the_published_program(golden):
    model = DalleBart.from_pretrained(SCANNED, dtype=jnp.bfloat16)
    assert model.encode(*caption(golden)).dtype == jnp.bfloat16
    error = np.abs(model(*caption(golden), golden["decoder_input_ids"]) - golden["logits"])
    published_error = np.abs(golden["logits_compute_bf16"] - golden["logits"])
    assert error.max() < 2 * published_error.max() and error.mean() < 2 * published_error.mean()


def test_a_new_model_knows_nothing_yet():
    config = DalleBartConfig(
        encoder_vocab_size=40, image_vocab_size=30, max_text_length=8, image_length=9, d_model=16, encoder_layers=1,
        encoder_attention_heads=2, encoder_ffn_dim=24, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=20,
    )  # fmt: skip
    one, other = (DalleBart(config, rngs=nnx.Rngs(seed)) for seed in (0, 1))
    ids = np.random.default_rng(0).integers(0, 30, (2, 9))
    logits = one(ids[:, :8], np.ones((2, 8)), ids)
    assert logits.shape == (2, 9, 31)
    assert abs(cross_entropy(logits, ids) - np.log(31)) < 0.1
    kernel = one.decoder.layers.ffn.gate.kernel[...]
    assert kernel.shape == (2, 16, 20) and not np.array_equal(kernel[0], kernel[1])
    assert not np.array_equal(kernel, other.decoder.layers.ffn.gate.kernel[...])

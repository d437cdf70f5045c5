"""Every variant of DalleBart: the published names of its tensors, its arithmetic, and decoding with a cache."""

import dataclasses
import functools
import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dalle_mini.errors import UserError
from dalle_mini.generation import generate_tokens
from dalle_mini.models.config import DalleBartConfig
from dalle_mini.models.dalle_bart import DalleBart, ForwardOptions
from dalle_mini.models.layers import ACTIVATIONS, Attention, Maker
from dalle_mini.weights.key_mapping import published_modules
from dalle_mini.weights.pretrained import flatten

BART_OF_2021 = Path(__file__).parents[1] / "golden" / "v0_bart_2021"

SMALL = DalleBartConfig(
    encoder_vocab_size=30,
    image_vocab_size=20,
    max_text_length=8,
    image_length=9,
    d_model=16,
    encoder_layers=2,
    encoder_attention_heads=2,
    encoder_ffn_dim=24,
    decoder_layers=2,
    decoder_attention_heads=4,
    decoder_ffn_dim=20,
    init_std=0.3,
)
VARIANTS = {
    "normformer": {},
    "cogview": {"ln_positions": "cogview"},
    "preln": {"ln_positions": "preln", "use_glu": False, "activation_function": "relu"},
    "postln": {"ln_positions": "postln"},
    "postln-unrolled": {"ln_positions": "postln", "use_scan": False},
    "postln-unrolled-scaled": {"ln_positions": "postln", "use_scan": False, "force_ln_scale": True},
    "deepnet": {"ln_positions": "deepnet", "use_deepnet_scaling": True},
    "swinv2": {"ln_positions": "swinv2", "use_cosine_attention": True, "tau_init": 0.1},
    "swinv2-deep": {"ln_positions": "swinv2", "encoder_layers": 7, "decoder_layers": 8},
    "subln": {"ln_positions": "subln", "use_subln_init": True},
    "rmsnorm": {"ln_type": "rmsnorm"},
    "rmsnorm-scaled": {"ln_type": "rmsnorm", "force_ln_scale": True},
    "rmsnorm-postln": {"ln_type": "rmsnorm", "ln_positions": "postln", "use_scan": False},
    "biases": {"use_bias": True},
    "head scale": {"use_head_scale": True},
    "relative positions": {"use_swin_position_embeddings": True, "use_absolute_position_embeddings": False},
    "sinkhorn": {"sinkhorn_iters": 3},
    "bare": {"use_final_ln_encoder": False, "use_final_ln_decoder": False, "scale_embedding": True},
    "logits bias": {"final_logits_bias": True},
}
# Made of what others have singly
COMBINED = {"postln-unrolled", "postln-unrolled-scaled", "swinv2-deep", "rmsnorm-scaled", "rmsnorm-postln"}


def variant(name):
    return dataclasses.replace(SMALL, **{"use_scan": None, **VARIANTS[name]})


@functools.cache
def make(config, key=0):
    """A model whose every parameter is random, also those that start as zeros or ones. Its users leave it as it is."""
    model = DalleBart(config, rngs=nnx.Rngs(key))
    leaves, tree = jax.tree.flatten(nnx.state(model))
    keys = jax.random.split(jax.random.key(key + 1), len(leaves))
    noisy = [leaf + 0.2 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    nnx.update(model, jax.tree.unflatten(tree, noisy))
    return model


@pytest.fixture(scope="module")
def captions():
    rng = np.random.default_rng(0)
    mask = np.ones((3, 8), np.int32)
    mask[0, 5:] = mask[1, 3:] = 0
    return rng.integers(0, 30, (3, 8)), mask


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in COMBINED else name for name in VARIANTS]
)
def test_cached_decoding_is_teacher_forcing(name, captions):
    model, (ids, mask) = make(variant(name)), captions
    keys = jax.random.split(jax.random.key(0), (3, 2))
    tokens = np.asarray(generate_tokens(model, ids, mask, keys, guidance=1.0, top_k=1))
    windowed = generate_tokens(model, ids, mask, keys, guidance=1.0, top_k=1, window=3)
    np.testing.assert_array_equal(windowed, tokens)
    assert len(np.unique(tokens)) > 3
    np.testing.assert_array_equal(tokens[:, 0], tokens[:, 1])  # greedy
    shifted = np.concatenate([np.full((3, 1), model.config.decoder_start_token_id), tokens[:, 0, :-1]], axis=1)
    logits = model(ids, mask, shifted)
    np.testing.assert_array_equal(logits[..., :20].argmax(axis=-1), tokens[:, 0])


@pytest.mark.parametrize("name", VARIANTS)
def test_later_tokens_and_padding_have_no_effect(name, captions):
    model, (ids, mask) = make(variant(name)), captions
    tokens = np.random.default_rng(1).integers(0, 20, (3, 9))
    logits = model(ids, mask, tokens)
    changed = tokens.copy()
    changed[:, 5:] = (changed[:, 5:] + 1) % 20
    # Sinkhorn's turn over the queries takes in those of the padding, as published.
    other = model(ids if name == "sinkhorn" else np.where(mask, ids, 3), mask, changed)
    np.testing.assert_allclose(other[:, :5], logits[:, :5], atol=2e-5)
    assert np.abs(other[:, 5:] - logits[:, 5:]).max() > 1e-3
    assert np.isfinite(logits).all()


@pytest.mark.parametrize("name", VARIANTS)
def test_saved_and_loaded_bit_by_bit(name, tmp_path):
    model = make(variant(name))
    model.save_pretrained(tmp_path)
    again = DalleBart.from_pretrained(tmp_path)
    assert again.config == model.config
    expected = flatten(nnx.state(model))
    found = flatten(nnx.state(again))
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        np.testing.assert_array_equal(found[key], array, err_msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sinkhorn", "swinv2", "relative positions", "postln-unrolled"])
def test_gradients_are_finite_with_padding(name, captions):
    graphdef, params = nnx.split(make(variant(name)))
    tokens = np.zeros((3, 9), int)

    def loss(params):
        model = nnx.merge(graphdef, params)
        return jax.nn.log_softmax(model.logits(model.hidden(*captions, tokens, ForwardOptions(remat="full"))))[
            ..., 1
        ].mean()

    plain = flatten(jax.grad(loss)(params))
    assert all(np.isfinite(leaf).all() for leaf in plain.values())
    assert max(np.abs(leaf).max() for leaf in plain.values()) > 1e-4


# The rows of the published program's table of norms: what each numbered module is, without the attentions and the
# projections.
NORMS = {
    "normformer": (
        {"0": "self_attn_norm", "1": "self_attn_post_norm", "2": "extra_norm"},
        {"0": "self_attn_norm", "1": "self_attn_post_norm", "2": "cross_attn_norm", "3": "cross_attn_post_norm"},
        {"0": "ffn.norm", "1": "ffn.mid_norm"},
    ),
    "cogview": (
        {"0": "self_attn_norm", "1": "self_attn_post_norm"},
        {"0": "self_attn_norm", "1": "self_attn_post_norm", "2": "cross_attn_norm", "3": "cross_attn_post_norm"},
        {"0": "ffn.norm", "1": "ffn_post_norm"},
    ),
    "preln": ({"0": "self_attn_norm"}, {"0": "self_attn_norm", "1": "cross_attn_norm"}, {"0": "ffn.norm"}),
    "swinv2": (
        {"0": "self_attn_post_norm", "1": "extra_norm"},
        {"0": "self_attn_post_norm", "1": "cross_attn_post_norm", "2": "extra_norm"},
        {"0": "ffn_post_norm"},
    ),
    "postln": (
        {"0": "self_attn_post_norm", "1": "ffn_post_norm"},
        {"0": "self_attn_post_norm", "1": "cross_attn_post_norm", "2": "ffn_post_norm"},
        {},
    ),
    "subln": ({"0": "self_attn_norm"}, {}, {"0": "ffn.norm", "1": "ffn.mid_norm"}),
}


@pytest.mark.parametrize("ln_type", ["layernorm", "rmsnorm"])
@pytest.mark.parametrize("positions", NORMS)
def test_published_numbers_of_norms(positions, ln_type):
    config = dataclasses.replace(SMALL, ln_positions=positions, ln_type=ln_type)
    norm = {"layernorm": "LayerNorm", "rmsnorm": "RMSNorm"}[ln_type]
    for stack, outside in zip(("encoder", "decoder"), NORMS[positions], strict=False):
        names = published_modules(config, stack)
        for number, ours in outside.items():
            assert names[f"{norm}_{number}"] == ours
        for number, ours in NORMS[positions][2].items():
            assert names[f"GLU_0.{norm}_{number}"] == ours


def test_scales_of_norms_are_where_the_published_files_have_them():
    def scaled(config):
        return {name.removesuffix(".scale") for name in flatten(nnx.state(make(config))) if name.endswith(".scale")}

    stems = ("encoder.layernorm_embedding", "decoder.layernorm_embedding")
    after = ("encoder.layers.self_attn_post_norm", "decoder.layers.self_attn_post_norm")
    cross = "decoder.layers.cross_attn_post_norm"
    assert scaled(variant("normformer")) == {*stems, *after, cross}
    assert scaled(variant("rmsnorm")) == {*stems, *after, cross}
    mids = ("encoder.layers.self_attn.mid_norm", "decoder.layers.self_attn.mid_norm")
    assert scaled(variant("subln")) == {*stems, *mids}
    unrolled = scaled(variant("postln-unrolled"))
    assert "decoder.layers.0.ffn_post_norm" in unrolled and "decoder.layers.1.ffn_post_norm" not in unrolled
    deep = scaled(variant("swinv2-deep"))
    assert [i for i in range(8) if f"decoder.layers.{i}.extra_norm" in deep] == [5]


def attention_by_hand(attention, config, x, states, mask):
    """Numpy, one head and one query at a time."""

    def linear(layer, x):
        bias = 0 if layer.bias is None else np.asarray(layer.bias[...])
        return x @ np.asarray(layer.kernel[...]) + bias

    heads, width = attention.heads, attention.width
    q, k, v = linear(attention.q_proj, x), linear(attention.k_proj, states), linear(attention.v_proj, states)
    out = np.zeros_like(x)
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        qh, kh, vh = q[:, part], k[:, part], v[:, part]
        if config.use_cosine_attention:
            qh, kh = (y / (np.linalg.norm(y, axis=1, keepdims=True) + 1e-8) for y in (qh, kh))
            scores = qh @ kh.T / config.tau_init
        else:
            scores = qh @ kh.T / np.sqrt(width)
        if config.use_swin_position_embeddings:
            table = np.asarray(attention.rel_bias.embedding[...])
            scores += np.array([[table[i, j * heads + h] for j in range(len(states))] for i in range(len(x))])
        weights = np.where(mask, np.exp(scores), 0)
        for i in range(config.sinkhorn_iters):
            weights = weights / np.maximum(weights.sum(axis=1 - i % 2, keepdims=True), 1e-30)
        out[:, part] = weights @ vh
        if config.use_head_scale:
            out[:, part] *= np.asarray(attention.head_scale[...])[0, 0, h, 0]
    if attention.mid_norm is not None:
        out = np.asarray(attention.mid_norm(out))
    return linear(attention.out_proj, out)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_bias": True},
        {"use_cosine_attention": True, "tau_init": 0.2},
        {"use_swin_position_embeddings": True},
        {"use_head_scale": True},
        {"sinkhorn_iters": 4},
        {"sinkhorn_iters": 5, "use_swin_position_embeddings": True, "use_bias": True, "use_head_scale": True},
    ],
    ids=str,
)
def test_attention_by_hand(options):
    config = dataclasses.replace(SMALL, **options)
    attention = Attention(Maker(config, "encoder", rngs=nnx.Rngs(0), dtype=jnp.float32), 5, 7, norm_within=True)
    if config.use_head_scale:
        attention.head_scale[...] = jnp.array([0.5, 2.0]).reshape(1, 1, 2, 1)
    rng = np.random.default_rng(0)
    x, states = rng.normal(size=(5, 16)).astype(np.float32), rng.normal(size=(7, 16)).astype(np.float32)
    mask = np.array([1, 1, 0, 1, 1, 1, 0], bool)
    ours = attention(x[None], attention.keys_values(states[None]), mask[None, None, None])
    np.testing.assert_allclose(ours[0], attention_by_hand(attention, config, x, states, mask), atol=1e-5)


def test_the_decoder_has_no_sinkhorn():
    config = dataclasses.replace(SMALL, sinkhorn_iters=4)
    assert Attention(Maker(config, "decoder", rngs=nnx.Rngs(0), dtype=jnp.float32), 5, 7).sinkhorn_iters == 1


@pytest.mark.parametrize(
    ("name", "at", "value"),
    [
        ("gelu", 1.0, 0.8413447),
        ("gelu_new", 1.0, 0.8411920),
        ("quick_gelu", 1.0, 0.8457958),
        ("relu", -1.0, 0.0),
        ("silu", 1.0, 0.7310586),
        ("swish", 1.0, 0.7310586),
        ("smelu", -1.5, 0.0),
        ("smelu", 0.0, 0.25),
        ("smelu", 1.5, 1.5),
    ],
)
def test_activations(name, at, value):
    np.testing.assert_allclose(ACTIVATIONS[name](jnp.float32(at)), value, atol=1e-6)


def test_deepnet_and_magneto_scales():
    def make(stack, **options):
        return Maker(dataclasses.replace(SMALL, **options), stack, rngs=nnx.Rngs(0), dtype=jnp.float32)

    deepnet = {"use_deepnet_scaling": True, "encoder_layers": 18, "decoder_layers": 6}
    assert make("encoder", **deepnet).residual_scale == pytest.approx(0.81 * (18**4 * 6) ** (1 / 16))
    assert make("decoder", **deepnet).residual_scale == pytest.approx(18**0.25)
    assert make("encoder", **deepnet).sublayer_gain == pytest.approx(0.87 * (18**4 * 6) ** (-1 / 16))
    assert make("decoder", **deepnet).sublayer_gain == pytest.approx(72**-0.25)
    magneto = {"use_subln_init": True, "encoder_layers": 18, "decoder_layers": 6}
    assert make("decoder", **magneto).sublayer_gain == pytest.approx(np.sqrt(np.log(18)))
    assert make("encoder", **magneto).sublayer_gain == pytest.approx(np.sqrt(np.log(18) * np.log(36) / 3))
    assert make("decoder").residual_scale == make("decoder").sublayer_gain == 1


@pytest.mark.parametrize("options", [{}, {"use_deepnet_scaling": True}, {"use_subln_init": True}], ids=str)
def test_gains_of_new_kernels(options):
    config = dataclasses.replace(SMALL, d_model=128, encoder_ffn_dim=128, decoder_ffn_dim=128, **options)
    kernels = flatten(nnx.state(DalleBart(config, rngs=nnx.Rngs(0))))
    gain = {}
    for stack in ("encoder", "decoder"):
        gain[stack] = Maker(config, stack, rngs=nnx.Rngs(0), dtype=jnp.float32).sublayer_gain
        assert (gain[stack] == 1) == (not options)
    cross = 1 if "use_subln_init" in options else gain["decoder"]  # Magneto's is of self-attention alone
    for stack, sublayer, expected in (
        ("encoder", "self_attn", gain["encoder"]),
        ("decoder", "self_attn", gain["decoder"]),
        ("decoder", "cross_attn", cross),
    ):
        for name, factor in (("q_proj", 1), ("k_proj", 1), ("v_proj", expected), ("out_proj", expected)):
            std = float(kernels[f"{stack}.layers.{sublayer}.{name}.kernel"].std())
            assert std == pytest.approx(factor * config.init_std, rel=0.02), (stack, sublayer, name)
    for stack, name in itertools.product(gain, ("gate", "linear", "out")):
        std = float(kernels[f"{stack}.layers.ffn.{name}.kernel"].std())
        assert std == pytest.approx(gain[stack] * config.init_std, rel=0.02), (stack, name)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ln_positions": "everywhere"}, "ln_positions='everywhere' is not supported .supported: normformer, cogview"),
        ({"ln_type": "batchnorm"}, "ln_type='batchnorm' is not supported"),
        ({"use_alibi": True}, "use_alibi=True is not supported"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings=True is not supported"),
        ({"model_type": "t5"}, "model_type='t5' is another kind of model"),
    ],
)
def test_unknown_variants(fields, message):
    with pytest.raises(UserError, match=message):
        DalleBartConfig.from_dict(fields)


def test_an_unknown_activation_names_the_folder(tmp_path):
    make(SMALL).save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text()) | {"activation_function": "mish"}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match=rf"{tmp_path.name}: config: activation 'mish' is not supported"):
        DalleBart.from_pretrained(tmp_path)


def test_the_model_of_2021():
    golden = dict(np.load(BART_OF_2021 / "golden.npz"))
    model = DalleBart.from_pretrained(BART_OF_2021)
    ids, mask = golden["input_ids"], golden["attention_mask"]
    np.testing.assert_allclose(model.encode(ids, mask), golden["encoder_last_hidden_state"], atol=1e-4)
    logits = model(ids, mask, golden["decoder_input_ids"])
    np.testing.assert_allclose(logits, golden["logits"], atol=1e-4)
    loss = -jnp.take_along_axis(jax.nn.log_softmax(logits), golden["labels"][..., None], axis=-1).mean()
    np.testing.assert_allclose(loss, golden["loss"], atol=1e-4)
    keys = jax.random.split(jax.random.key(0), len(ids))
    every = model.config.image_vocab_size + 1  # the published program samples its start token too
    tokens = generate_tokens(model, ids, mask, keys, guidance=1.0, top_k=1, codebook_size=every)
    np.testing.assert_array_equal(tokens, golden["greedy_sequences"][:, 1:])


def test_the_model_of_2021_where_its_config_is_silent():
    config = DalleBartConfig.from_dict({"model_type": "bart", "vocab_size": 50264})
    assert (config.encoder_vocab_size, config.image_vocab_size, config.image_length) == (50264, 16384, 256)
    assert (config.encoder_ffn_dim, config.decoder_layers, config.max_text_length) == (4096, 12, 1024)
    assert config.text_length == 128
    assert DalleBartConfig.from_dict({"model_type": "bart", "max_position_embeddings": 20}).text_length == 20

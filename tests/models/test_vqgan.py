"""VQGAN against the latents, indices and pictures of the published program (tests/golden/vqgan)."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dalle_mini.imaging.pixels import to_uint8
from dalle_mini.models.config import VQGANConfig
from dalle_mini.models.vqgan import VQGAN

FOLDER = Path(__file__).parents[1] / "golden" / "vqgan" / "tiny_f4_64"
SMALL = VQGANConfig(
    ch=32, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,), resolution=8, z_channels=8, embed_dim=6, n_embed=10
)


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(FOLDER / "golden.npz"))


@pytest.fixture(scope="module")
def vqgan():
    return VQGAN.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def small():
    return build(SMALL)


def build(config):
    """A VQGAN with random weights, from NumPy: compiling the initialisers takes seconds."""
    random = np.random.default_rng(0)
    graphdef, shapes = nnx.split(nnx.eval_shape(lambda: VQGAN(config, rngs=nnx.Rngs(0))))
    return nnx.merge(
        graphdef, jax.tree.map(lambda leaf: jnp.asarray(random.normal(0, 0.1, leaf.shape), leaf.dtype), shapes)
    )


def close(actual, expected, tolerance=1e-4):
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


def test_pictures_to_tokens(vqgan, golden):
    latents = vqgan.encode_latents(golden["pixel_values"])
    close(latents, golden["latents"])
    tokens = vqgan.encode(golden["pixel_values"])
    assert tokens.dtype == jnp.int32
    np.testing.assert_array_equal(tokens, golden["indices"])
    np.testing.assert_array_equal(vqgan.quantize(latents).reshape(2, -1), golden["indices"])
    close(vqgan.codebook(tokens).reshape(golden["quant_states"].shape), golden["quant_states"])


def test_tokens_to_pictures(vqgan, golden):
    close(vqgan.decode(golden["indices"]), golden["decoded_from_indices"])
    close(vqgan.decode_latents(golden["quant_states"]), golden["decoded_from_indices"])
    images = vqgan.decode(golden["random_indices"])
    close(images, golden["random_decoded"])
    # Truncated, not rounded. (A value within float error of a step may fall on its other side: none does here.)
    np.testing.assert_array_equal(to_uint8(images), golden["random_decoded_uint8"])
    assert (np.round(np.clip(images, 0, 1) * 255) != golden["random_decoded_uint8"]).any()


def test_pictures_are_the_uint8_ones_divided_by_255(vqgan, golden):
    images = golden["image_uint8"].astype(np.float32) / 255
    np.testing.assert_array_equal(vqgan.encode(images), golden["indices"])


def test_a_picture_depends_on_its_own_tokens_alone(vqgan, golden):
    tokens = golden["random_indices"]
    close(vqgan.decode(tokens[1:]), golden["random_decoded"][1:], 1e-5)


@pytest.mark.parametrize("count", [2, 15, 17])
def test_tokens_of_no_square_are_refused(vqgan, count):
    with pytest.raises(ValueError, match=f"{count} tokens do not make a square"):
        vqgan.decode(np.zeros((1, count), np.int32))


def test_other_sizes_than_the_trained_one(vqgan):
    images = np.random.default_rng(0).uniform(size=(1, 32, 32, 3)).astype(np.float32)
    tokens = vqgan.encode(images)
    assert tokens.shape == (1, 64)
    assert vqgan.decode(tokens).shape == (1, 32, 32, 3)


def test_ids_outside_the_codebook_give_a_picture_without_nan(vqgan):
    last = vqgan.config.n_embed - 1
    images = vqgan.decode(np.array([[last + 1] + 15 * [3], [last] + 15 * [3]]))
    assert np.isfinite(images).all()
    np.testing.assert_array_equal(images[0], images[1])


def test_ties_go_to_the_lowest_id(small):
    vqgan = nnx.clone(small)
    codes = np.zeros((10, 6), np.float32)
    codes[[2, 7]] = 1
    vqgan.codebook.embedding[...] = jnp.asarray(codes)
    latents = jnp.stack([jnp.zeros(6), jnp.ones(6), jnp.full(6, 0.5)]).reshape(1, 1, 3, 6)
    np.testing.assert_array_equal(vqgan.quantize(latents), [[[0, 2, 0]]])


def test_every_code_is_nearest_to_itself(vqgan):
    codes = vqgan.codebook.embedding[...]
    np.testing.assert_array_equal(vqgan.quantize(codes.reshape(1, 8, 8, -1)).ravel(), np.arange(64))


@pytest.mark.parametrize(
    "change", [{"double_z": True}, {"resamp_with_conv": False}, {"give_pre_end": True}, {"norm_groups": 4}]
)
def test_variants_of_the_config(change):
    config = dataclasses.replace(SMALL, **change)
    images = np.random.default_rng(0).uniform(size=(2, 8, 8, 3)).astype(np.float32)
    graphdef, params = nnx.split(build(config))

    @jax.jit
    def there_and_back(params, images):
        vqgan = nnx.merge(graphdef, params)
        tokens = vqgan.encode(images)
        return tokens, vqgan.decode(tokens)

    tokens, images = there_and_back(params, images)
    assert tokens.shape == (2, 16) and tokens.min() >= 0 and tokens.max() < 10
    assert images.shape == (2, 8, 8, 32 if config.give_pre_end else 3) and np.isfinite(images).all()


def test_a_patch_encoder_sees_one_patch_a_token():
    vqgan = build(dataclasses.replace(SMALL, patch_encoder=True))
    images = np.random.default_rng(0).uniform(size=(1, 8, 8, 3)).astype(np.float32)
    changed = images.copy()
    changed[:, 2:4, 4:6] = 1 - changed[:, 2:4, 4:6]  # row 1, column 2 of the 4x4 tokens
    difference = np.abs(vqgan.encode_latents(images) - vqgan.encode_latents(changed)).max(axis=(0, 3))
    assert np.argwhere(difference > 1e-6).tolist() == [[1, 2]]


def test_a_patch_decoder_puts_each_codes_patch_in_its_place():
    config = dataclasses.replace(SMALL, patch_decoder=True, resolution=32)
    vqgan = VQGAN(config, rngs=nnx.Rngs(0))
    codes = np.random.default_rng(0).standard_normal((1, 16, 16, 6)).astype(np.float32)
    changed = codes.copy()
    changed[:, 8, 5] += 1
    before, after = vqgan.decode_latents(codes), vqgan.decode_latents(changed)
    assert before.shape == (1, 32, 32, 3)
    # At first the surroundings say nothing: a code is its own patch of 2x2 pixels, and no other.
    difference = np.abs(before - after).max(axis=(0, 3))
    assert np.argwhere(difference > 1e-6).tolist() == [[16, 10], [16, 11], [17, 10], [17, 11]]
    direct = vqgan.decoder.direct(vqgan.post_quant_conv(codes))[0, 8, 5].reshape(2, 2, 3)
    np.testing.assert_allclose(before[0, 16:18, 10:12], direct, rtol=1e-5)
    vqgan.decoder.conv_out.kernel[...] = vqgan.decoder.conv_out.kernel[...] + 1
    moved = vqgan.decode_latents(changed) - vqgan.decode_latents(codes)
    assert np.abs(moved[0, 8:10, 10:12]).max() > 1e-6  # and then they do


def test_attention_is_where_the_config_wants_it(small):
    assert [len(level.attn) for level in small.encoder.down] == [0, 1]
    assert [len(level.attn) for level in small.decoder.up] == [0, 2]
    assert [level.downsample is None for level in small.encoder.down] == [False, True]
    assert [level.upsample is None for level in small.decoder.up] == [True, False]


def test_bfloat16_compute_stays_close_and_returns_float32(golden):
    vqgan = VQGAN.from_pretrained(FOLDER, dtype=jnp.bfloat16)
    assert vqgan.encode_latents(golden["pixel_values"]).dtype == jnp.bfloat16
    close(vqgan.decode(golden["random_indices"]), golden["random_decoded"], 0.05)


def test_every_parameter_learns(small):
    graphdef, params = nnx.split(small)
    images = np.random.default_rng(0).uniform(size=(2, 8, 8, 3)).astype(np.float32)

    def loss(params):
        vqgan = nnx.merge(graphdef, params)
        latents = vqgan.encode_latents(images)
        codes = vqgan.codebook(vqgan.quantize(latents))
        through = latents + jax.lax.stop_gradient(codes - latents)
        return jnp.mean((vqgan.decode_latents(through) - images) ** 2) + jnp.mean((codes - latents) ** 2)

    for path, gradient in nnx.to_flat_state(jax.jit(jax.grad(loss))(params)):
        gradient = gradient[...]
        assert np.isfinite(gradient).all(), path
        # A key's bias moves every query's scores alike, which softmax does not see.
        assert path[-2:] == ("k", "bias") or np.abs(gradient).max() > 0, path


def test_cosine(tmp_path):
    """Vectors and entries count by their directions alone, at both ends and once saved."""
    vqgan = build(dataclasses.replace(SMALL, quantizer="cosine"))
    images = np.random.default_rng(1).random((2, 8, 8, 3)).astype(np.float32)
    latents, codes = vqgan.encode_latents(images), vqgan.codebook.embedding[...]
    np.testing.assert_allclose(np.linalg.norm(latents, axis=-1), 1, rtol=1e-5)
    cosines = latents @ (codes / np.linalg.norm(codes, axis=-1, keepdims=True)).T
    tokens = vqgan.encode(images)
    np.testing.assert_array_equal(tokens, np.argmax(cosines, axis=-1).reshape(2, -1))
    assert (tokens != build(SMALL).encode(images)).any()
    drawn = vqgan.decode(tokens)
    vqgan.codebook.embedding[...] = codes * np.linspace(0.5, 3, len(codes))[:, None]
    close(vqgan.decode(tokens), np.asarray(drawn), 1e-5)
    np.testing.assert_array_equal(vqgan.encode(images), tokens)
    vqgan.save_pretrained(tmp_path)
    again = VQGAN.from_pretrained(tmp_path)
    assert again.config.quantizer == "cosine"
    np.testing.assert_array_equal(again.encode(images), tokens)
    close(again.decode(tokens), np.asarray(drawn), 1e-5)


def test_soft_tokens_decode_as_hard_ones_and_carry_gradients(vqgan):
    tokens = np.random.default_rng(0).integers(0, vqgan.codebook_size, (1, 16))
    one_hot = jax.nn.one_hot(tokens, vqgan.codebook_size)
    np.testing.assert_allclose(vqgan.decode_soft(one_hot), vqgan.decode(tokens), atol=1e-5)
    gradient = jax.grad(lambda probabilities: vqgan.decode_soft(probabilities).sum())(one_hot / 2)
    assert gradient.shape == one_hot.shape and np.abs(gradient).max() > 0
    with pytest.raises(ValueError, match="3 tokens do not make a square grid"):
        vqgan.decode_soft(one_hot[:, :3])

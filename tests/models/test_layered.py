"""VQGANs whose tokens tell what lies on a ground, whatever the ground is (models/layered.py)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dalle_mini.errors import UserError
from dalle_mini.models import layered
from dalle_mini.models.config import GROUND, VQGANConfig
from dalle_mini.models.vqgan import VQGAN

SIDE, GRID = 8, 6
CONFIG = VQGANConfig(
    ch_mult=(1, 1, 1, 1), resolution=SIDE * GRID, z_channels=5 + GROUND, embed_dim=5 + GROUND, n_embed=24, layered=True
)
COLORS = {"white": (255, 255, 255), "blue": (36, 82, 220), "black": (0, 0, 0)}
UP = np.linspace(250, 70, SIDE * GRID)[:, None, None].round()


@pytest.fixture(scope="module")
def vqgan():
    """The first codes are grounds: three plain ones, and the rows of a gradient. The others are random."""
    vqgan = VQGAN(CONFIG, rngs=nnx.Rngs(0))
    eye = jnp.eye(CONFIG.embed_dim)[None, None]
    vqgan.quant_conv.kernel[...] = vqgan.post_quant_conv.kernel[...] = eye
    codes = np.random.default_rng(0).standard_normal((CONFIG.n_embed, CONFIG.embed_dim)).astype(np.float32)
    codes[:, -GROUND:] = 0
    rows = [np.broadcast_to(np.float32(color), (SIDE, 3)) for color in COLORS.values()]
    rows += [np.broadcast_to(UP[start : start + SIDE, 0], (SIDE, 3)) for start in range(0, SIDE * GRID, SIDE)]
    codes[: len(rows), :-GROUND] = 0
    codes[: len(rows), -GROUND] = layered.SURE
    codes[: len(rows), 1 - GROUND :] = layered.BRIGHT * layered.fitted(jnp.array(rows) / 255)
    vqgan.codebook.embedding[...] = jnp.asarray(codes)
    return vqgan


def disc(ground, color=(200, 30, 40), center=(21, 26), radius=11.0):
    """A disc with a smooth edge on a ground, uint8 [1, 48, 48, 3]; it covers no border."""
    y, x = np.mgrid[: SIDE * GRID, : SIDE * GRID] + 0.5
    cover = np.clip(radius - np.hypot(y - center[0], x - center[1]) + 0.5, 0, 1)[..., None]
    return np.rint(cover * color + (1 - cover) * np.broadcast_to(ground, (*cover.shape[:2], 3))).astype(np.uint8)[None]


def found(images):
    return jnp.asarray(images, jnp.float32) / 255


@pytest.mark.parametrize("ground", [*COLORS.values(), UP], ids=[*COLORS, "gradient"])
def test_a_thing_is_the_same_on_every_ground(vqgan, ground):
    here, gray = (vqgan.encode_latents(found(disc(one))) for one in (ground, (128, 128, 128)))
    is_ground = here[..., -GROUND] > 0
    np.testing.assert_array_equal(is_ground, gray[..., -GROUND] > 0)
    assert 8 < is_ground.sum() < 28
    things = np.asarray(here[..., :-GROUND] - gray[..., :-GROUND])[~np.asarray(is_ground)]
    other = vqgan.encode_latents(found(disc(ground, color=(220, 180, 40))))
    apart = np.asarray(other[..., :-GROUND] - gray[..., :-GROUND])[~np.asarray(is_ground)]
    assert np.max(np.abs(things)) < 0.03 * np.max(np.abs(apart))  # pixels are whole numbers


@pytest.mark.parametrize("ground", [*COLORS.values(), UP], ids=[*COLORS, "gradient"])
def test_ground_comes_back_as_it_was(vqgan, ground):
    image = disc(ground)
    tokens = vqgan.encode(found(image))
    is_ground = np.asarray(tokens.reshape(GRID, GRID) < len(COLORS) + GRID)
    assert 8 < is_ground.sum() < 28
    there = is_ground.repeat(SIDE, axis=0).repeat(SIDE, axis=1)
    np.testing.assert_array_equal(np.rint(255 * vqgan.decode(tokens)[0])[there], image[0][there])


def test_a_thing_is_drawn_over_the_ground_of_its_row(vqgan):
    """Where all shows through, and where a stray piece of another ground is."""
    vqgan = nnx.merge(*nnx.split(vqgan))
    vqgan.decoder.direct.kernel[...] = jnp.zeros_like(vqgan.decoder.direct.kernel[...])
    clear = jnp.tile(jnp.array([layered.MEAN] * 3 + [layered.SPREAD]), SIDE**2)
    vqgan.decoder.direct.bias[...] = clear
    tokens = np.repeat(np.arange(3, 3 + GRID), GRID).reshape(GRID, GRID)
    tokens[1, 2:5], tokens[3, 0] = 20, 1  # things, and a stray blue
    drawn = np.asarray(vqgan.decode(tokens.reshape(1, -1)))[0] * 255
    expected = np.broadcast_to(UP, drawn.shape).copy()
    expected[3 * SIDE : 4 * SIDE, :SIDE] = COLORS["blue"]
    np.testing.assert_allclose(drawn, expected, atol=0.51)
    tokens = np.full((GRID, GRID), 1)
    tokens[2] = 20  # a row without ground has that of the image
    drawn = np.asarray(vqgan.decode(tokens.reshape(1, -1)))[0] * 255
    np.testing.assert_allclose(drawn, np.broadcast_to(np.float32(COLORS["blue"]), drawn.shape), atol=0.01)


def test_what_it_does_to_a_thing_does_not_depend_on_the_ground(vqgan):
    vqgan = nnx.merge(*nnx.split(vqgan))
    vqgan.decoder.conv_out.kernel[...] = 0.1 * jax.random.normal(jax.random.key(1), vqgan.decoder.conv_out.kernel.shape)
    tokens = np.zeros((2, GRID, GRID), int)
    tokens[1] = 2
    tokens[:, 2:4, 2:5] = [[11, 12, 13], [14, 15, 16]]
    one, other = vqgan.decoder.layer(vqgan.codebook(jnp.asarray(tokens)))
    np.testing.assert_array_equal(one, other)


def test_wide_grids_and_soft_tokens(vqgan):
    tokens = np.array([[0, 11, 12, 0, 0, 0, 13, 0]])
    wide = vqgan.decode(tokens, 4)
    assert wide.shape == (1, 2 * SIDE, 4 * SIDE, 3)
    soft = vqgan.decode_soft(jax.nn.one_hot(tokens, CONFIG.n_embed), 4)
    np.testing.assert_allclose(soft, wide, atol=1e-5)
    gradient = jax.grad(lambda one: jnp.sum(vqgan.decode_soft(one, 4)))(jax.nn.one_hot(tokens, CONFIG.n_embed) * 0.9)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


def test_a_picture_without_a_ground_is_all_things(vqgan):
    noise = np.random.default_rng(3).integers(0, 256, (1, SIDE * GRID, SIDE * GRID, 3))
    latents = vqgan.encode_latents(found(noise))
    assert np.isfinite(latents).all() and not latents[..., -GROUND:].any()
    layer = vqgan.encoder.layer(found(noise), *vqgan.encoder.ground(found(noise)))
    np.testing.assert_allclose(layer[..., :3] * 255, noise, atol=1e-3)
    assert not layer[..., 3].any()


def test_its_tokens_are_told_from_those_of_other_vqgans():
    assert CONFIG.token_rule != dataclasses.replace(CONFIG, layered=False).token_rule
    for wrong in ({"embed_dim": 5}, {"z_channels": GROUND, "embed_dim": GROUND}, {"quantizer": "cosine"}):
        with pytest.raises(UserError, match="layered needs z_channels and embed_dim alike"):
            dataclasses.replace(CONFIG, **wrong)

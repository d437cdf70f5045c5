import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from dalle_mini.generation.cpu.winograd import PhaseUpsample, WinogradConv, with_fewer_products
from dalle_mini.generation.pixels import GRAY, PixelDecoder
from dalle_mini.imaging.pixels import to_uint8
from dalle_mini.models import VQGAN
from dalle_mini.models.config import VQGANConfig

CONFIG = VQGANConfig(
    ch=8, ch_mult=(1, 2), num_res_blocks=1, resolution=12, attn_resolutions=(6,), n_embed=32, embed_dim=8, z_channels=8,
    norm_groups=4,
)  # fmt: skip


@pytest.fixture(scope="module")
def decoder():
    return PixelDecoder(nnx.jit(lambda: VQGAN(CONFIG, rngs=nnx.Rngs(0)))(), jax.devices()[:1])


@pytest.fixture
def tokens():
    return np.random.default_rng(0).integers(0, 32, (2, 36)).astype(np.int32)


@pytest.mark.parametrize("rows", range(7))
def test_a_look_shows_what_is_drawn_and_nothing_else(decoder, tokens, rows):
    look = decoder.top(tokens, rows)
    assert look.shape == (2, 12, 12, 3)
    assert (look[:, 2 * rows :] == GRAY).all()
    assert rows == 0 or (look[:, : 2 * rows] != GRAY).any(axis=(1, 2, 3)).all()
    tokens[:, 6 * rows :] = 31
    np.testing.assert_array_equal(decoder.top(tokens, rows), look)


def test_the_last_look_is_the_picture(decoder, tokens):
    np.testing.assert_array_equal(decoder.top(tokens, 6), decoder(tokens))


def test_looks_need_two_programs(decoder, tokens):
    for rows in range(7):
        decoder.top(tokens, rows)
    assert decoder._decode._cache_size() <= 2


@pytest.mark.slow
def test_wide_networks_show_the_same_pixels_by_fewer_products():
    config = dataclasses.replace(CONFIG, ch=128, ch_mult=(1, 1), resolution=16, attn_resolutions=(), norm_groups=32)
    vqgan = nnx.jit(lambda: VQGAN(config, rngs=nnx.Rngs(0)))()
    decoder = PixelDecoder(vqgan, jax.devices()[:1])
    kinds = {type(layer) for _, layer in nnx.iter_modules(with_fewer_products(vqgan))}
    assert {WinogradConv, PhaseUpsample} <= kinds
    tokens = np.random.default_rng(0).integers(0, 32, (1, 64)).astype(np.int32)
    mirrored = tokens.reshape(8, 8)[[0, 1, 2, 2]].reshape(1, -1)
    for seen, expected in [
        (decoder(tokens), vqgan.decode(tokens)),
        (decoder.top(tokens, 3)[:, :6], vqgan.decode(mirrored, 8)[:, :6]),
    ]:
        assert np.abs(seen.astype(int) - to_uint8(expected)).max() <= 1  # a truncation may fall otherwise

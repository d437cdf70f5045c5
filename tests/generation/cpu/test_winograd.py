import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dalle_mini.generation.cpu.winograd import PhaseUpsample, WinogradConv, by_winograd, with_fewer_products
from dalle_mini.models import VQGAN
from dalle_mini.models.config import VQGANConfig
from dalle_mini.models.vqgan_blocks import Maker, Upsample


@pytest.mark.parametrize("size", [(1, 8, 8), (2, 12, 4), (1, 5, 7), (1, 3, 1)])
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_convolution(size, bias):
    conv = nnx.Conv(128, 160, (3, 3), padding="SAME", use_bias=bias, rngs=nnx.Rngs(0))
    if bias:
        conv.bias[...] = jnp.linspace(-1, 1, 160)
    x = jax.random.normal(jax.random.key(1), (*size, 128))
    assert by_winograd(conv)
    # The output transform multiplies rounding by up to 8: 2e-5 was measured on outputs of unit deviation.
    with jax.default_matmul_precision("highest"):
        np.testing.assert_allclose(WinogradConv(conv)(x), conv(x), atol=4e-5)


@pytest.mark.parametrize("size", [(1, 8, 8), (2, 5, 3), (1, 1, 1)])
def test_it_is_the_upsampling(size):
    config = VQGANConfig(ch=32, norm_groups=8)
    upsample = Upsample(24, True, Maker(config, nnx.Rngs(0), jnp.float32))
    upsample.conv.bias[...] = jnp.linspace(-1, 1, 24)
    x = jax.random.normal(jax.random.key(1), (*size, 24))
    with jax.default_matmul_precision("highest"):
        np.testing.assert_allclose(PhaseUpsample(upsample)(x), upsample(x), atol=1e-5)


@pytest.mark.parametrize(
    ("channels", "options"),
    [
        (128, {"strides": 2}),
        (128, {"padding": ((0, 1), (0, 1))}),
        (128, {"kernel_size": (1, 1)}),
        (128, {"param_dtype": jnp.bfloat16}),
        (64, {}),
        (512, {}),
    ],
)
def test_other_convolutions_stay(channels, options):
    options = {"kernel_size": (3, 3), "padding": "SAME"} | options
    conv = nnx.eval_shape(lambda: nnx.Conv(channels, channels, rngs=nnx.Rngs(0), **options))
    assert not by_winograd(conv)


@pytest.mark.slow
def test_a_vqgan_decodes_to_the_same_picture():
    config = VQGANConfig(
        ch=128, ch_mult=(1, 2), num_res_blocks=1, resolution=32, attn_resolutions=(16,), n_embed=32, embed_dim=128,
        z_channels=128,
    )  # fmt: skip
    vqgan = VQGAN(config, rngs=nnx.Rngs(0))
    tokens = jax.random.randint(jax.random.key(1), (2, 256), 0, 32)
    ready = with_fewer_products(vqgan)
    kinds = [type(layer) for _, layer in nnx.iter_modules(ready.decoder)]
    assert kinds.count(WinogradConv) == 13
    assert kinds.count(PhaseUpsample) == 1
    expected = vqgan.decode(tokens)
    np.testing.assert_allclose(ready.decode(tokens), expected, atol=1e-5 * float(jnp.abs(expected).max()))
    assert not any(isinstance(layer, WinogradConv | PhaseUpsample) for _, layer in nnx.iter_modules(vqgan))

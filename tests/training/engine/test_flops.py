"""FLOPs by formula against the products in the program's own jaxpr, and against the published sizes."""

import dataclasses
import math

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import pytest
from flax import nnx

from dalle_mini.models import DalleBart
from dalle_mini.models.config import DalleBartConfig
from dalle_mini.models.dalle_bart import ForwardOptions, unstack_layers
from dalle_mini.training.engine.flops import forward_flops, training_flops
from dalle_mini.training.engine.hardware import CHIPS, chip_of, peak_flops

MINI = {
    "encoder_ffn_dim": 2730,
    "decoder_ffn_dim": 2730,
    "encoder_vocab_size": 50264,
    "image_vocab_size": 16415,
}
MEGA = {
    **{"d_model": 2048, "encoder_layers": 24, "decoder_layers": 24, "image_vocab_size": 16415},
    **{"encoder_attention_heads": 32, "decoder_attention_heads": 32},
    **{"encoder_ffn_dim": 4096, "decoder_ffn_dim": 4096, "encoder_vocab_size": 50272},
}
ODD = DalleBartConfig(  # no two sizes alike, so that none can stand for another
    **{"encoder_vocab_size": 31, "image_vocab_size": 41, "max_text_length": 6, "image_length": 10, "d_model": 24},
    **{"encoder_layers": 2, "encoder_attention_heads": 3, "encoder_ffn_dim": 20},
    **{"decoder_layers": 3, "decoder_attention_heads": 4, "decoder_ffn_dim": 28},
)


def products(jaxpr) -> int:
    """FLOPs of every dot product in a jaxpr, a scan's body as often as it runs, and one of a choice's branches."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            inner = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * inner * math.prod(equation.outvars[0].aval.shape)
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        inside = [products(jaxpr) for jaxpr in jex.jaxprs_in_params(equation.params)]
        if equation.primitive.name == "cond":  # of the platform (`models/linear.py`): all branches do the same
            assert len({*inside}) == 1
            inside = inside[:1]
        total += times * sum(inside)
    return total


def loss(graphdef, config, batch, unrolled=False, remat="none", positions=None):
    ids = jnp.zeros((batch, config.text_length), jnp.int32)
    places = None if positions is None else jnp.arange(positions)
    tokens = jnp.zeros((batch, positions or config.image_length), jnp.int32)

    def run(params):
        model = nnx.merge(graphdef, params)
        if not unrolled:
            return model.logits(
                model.hidden(ids, jnp.ones_like(ids), tokens, ForwardOptions(remat=remat), places)
            ).sum()
        mask = jnp.ones((batch, 1, 1, config.text_length), bool)
        x = model.encoder.embed(ids, jnp.arange(config.text_length))
        for layer in unstack_layers(model.encoder.layers, config.encoder_layers):
            x = layer(x, mask)
        states = model.encoder.finish(x)
        x = model.decoder.embed(tokens, jnp.arange(config.image_length))
        causal = jnp.tril(jnp.ones((config.image_length, config.image_length), bool))
        for layer in unstack_layers(model.decoder.layers, config.decoder_layers):
            x = layer(x, layer.cross_attn.keys_values(states), mask, causal)
        return model.logits(model.decoder.finish(x)).sum()

    return run


@pytest.fixture(params=[True, False], ids=["glu", "plain"])
def model(request):
    config = dataclasses.replace(ODD, use_glu=request.param)
    graphdef, params = nnx.split(nnx.eval_shape(lambda: DalleBart(config, rngs=nnx.Rngs(0))))
    return config, graphdef, params


def test_forward_is_the_unrolled_models_products(model):
    config, graphdef, params = model
    run = loss(graphdef, config, batch=2, unrolled=True)
    assert products(jax.make_jaxpr(run)(params).jaxpr) == 2 * forward_flops(config).forward


def test_training_is_the_products_of_the_gradient(model):
    config, graphdef, params = model
    run = loss(graphdef, config, batch=2, unrolled=True)
    assert products(jax.make_jaxpr(jax.grad(run))(params).jaxpr) == 2 * training_flops(config)


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_remat_computes_again_what_it_says(model, remat):
    config, graphdef, params = model
    run = loss(graphdef, config, batch=2, remat=remat)
    assert products(jax.make_jaxpr(jax.grad(run))(params).jaxpr) == 2 * forward_flops(config).executed(remat)


@pytest.mark.parametrize("remat", ["none", "full"])
def test_a_few_positions_cost_their_share(model, remat):
    config, graphdef, params = model
    run = loss(graphdef, config, batch=2, remat=remat, positions=3)
    assert products(jax.make_jaxpr(jax.grad(run))(params).jaxpr) == 2 * forward_flops(config, 3).executed(remat)


@pytest.mark.parametrize(("sizes", "published"), [(MINI, 0.39e12), (MEGA, 2.4e12)])
def test_published_models(sizes, published):
    assert training_flops(DalleBartConfig(**sizes)) == pytest.approx(published, rel=0.05)


def test_chips_are_found_by_what_jax_calls_them():
    assert chip_of("TPU v5 lite").name == "TPU v5e"
    assert chip_of("TPU v5").name == "TPU v5p"
    assert peak_flops("TPU v3") == 61.5e12  # of a core
    assert peak_flops("NVIDIA H200") == 989e12
    assert peak_flops("cpu") is None


def test_every_chip_has_figures_in_the_right_units():
    assert len({kind for chip in CHIPS for kind in chip.kinds}) == sum(len(chip.kinds) for chip in CHIPS)
    for chip in CHIPS:
        assert 40e12 < chip.flops < 2e15
        assert 0.4e12 < chip.hbm_bandwidth < 10e12
        assert 10e9 < chip.hbm_bytes < 200e9
        assert 40e9 < chip.link_bandwidth < 1e12
        assert chip.dollars_spot is None or chip.dollars_spot < chip.dollars

"""Meshes, the table of rules, and where the optimizer's statistics go. Shapes alone: no array is made."""

from functools import cache
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from dalle_mini.errors import UserError
from dalle_mini.models import DalleBart
from dalle_mini.models.config import DalleBartConfig
from dalle_mini.training.config.sections import MeshConfig, OptimizerConfig
from dalle_mini.training.engine.optimizer import make_optimizer
from dalle_mini.training.engine.sharding import check_batch, make_mesh, parameter_specs, state_shardings
from dalle_mini.training.engine.trainer import TrainState
from dalle_mini.weights.pretrained import flatten

MINI = DalleBartConfig(encoder_ffn_dim=2730, decoder_ffn_dim=2730)
MEGA = DalleBartConfig(
    encoder_vocab_size=50272,
    image_vocab_size=16415,
    d_model=2048,
    encoder_layers=24,
    encoder_attention_heads=32,
    decoder_layers=24,
    decoder_attention_heads=32,
)


def grid(data: int, model: int) -> AbstractMesh:
    return AbstractMesh((data, model), ("data", "model"), axis_types=(AxisType.Auto, AxisType.Auto))


@cache
def shapes(config):
    return nnx.to_pure_dict(DalleBart.shapes(config)[1])


def specs(config, data, model, **mesh):
    return parameter_specs(grid(data, model), MeshConfig(data, model, **mesh), flatten(shapes(config)))


def parts(spec, mesh) -> int:
    axes = [axis for entry in spec if entry for axis in (entry if isinstance(entry, tuple) else (entry,))]
    return int(np.prod([mesh.shape[axis] for axis in axes]))


@pytest.mark.parametrize("config", [MINI, MEGA], ids=["mini", "mega"])
@pytest.mark.parametrize(("data", "model"), [(8, 1), (4, 2), (2, 4), (1, 8), (32, 8), (128, 2)])
def test_every_matrix_is_split_over_all_devices(config, data, model):
    """Whatever does not divide (16,385, 16,416, 50,264, 2,730), something else of it does."""
    mesh, named = grid(data, model), flatten(shapes(config))
    found, whole = specs(config, data, model), 0
    for name, leaf in named.items():
        spec = found[name]
        for size, entry in zip(leaf.shape, spec, strict=False):
            assert size % parts([entry], mesh) == 0, name
        if parts(spec, mesh) < data * model:
            whole += leaf.size
            assert name.endswith((".bias", ".scale", "embed_positions.embedding")), name
    assert whole < 0.002 * sum(leaf.size for leaf in named.values())


def test_the_rules():
    found = specs(MEGA, 4, 2)
    assert found["decoder.layers.self_attn.q_proj.kernel"] == P(None, "data", "model")
    assert found["decoder.layers.cross_attn.out_proj.kernel"] == P(None, "model", "data")
    assert found["encoder.layers.ffn.gate.kernel"] == P(None, "data", "model")
    assert found["encoder.layers.ffn.out.kernel"] == P(None, "model", "data")
    assert found["lm_head.kernel"] == P("data", "model")  # 16,416 codes
    assert found["encoder.layers.ffn.mid_norm.bias"] == P(None, None)
    found = specs(MINI, 2, 4)
    assert found["lm_head.kernel"] == P(("data", "model"), None)  # 16,385: the width takes both
    assert found["encoder.layers.ffn.gate.kernel"] == P(None, ("data", "model"), None)  # 2,730
    found = specs(MEGA, 4, 2, fsdp=False)
    assert found["decoder.layers.self_attn.q_proj.kernel"] == P(None, None, "model")


def test_factored_statistics_go_with_what_is_left_of_their_parameter():
    params = shapes(MINI)
    tx = make_optimizer(OptimizerConfig(ema=0.99), 10)
    opt_state = jax.eval_shape(tx.init, params)
    mesh = grid(4, 2)
    state = TrainState(jax.ShapeDtypeStruct((), int), params, opt_state, params, jax.ShapeDtypeStruct((), float), ())
    placed = state_shardings(mesh, MeshConfig(4, 2), state)
    rows, columns = (getattr(placed.opt_state["decoder.layers"][0], name) for name in ("v_row", "v_col"))
    assert rows["ffn.gate.kernel"].spec == P(None, "data")  # [12, 1024] of [12, 1024, 2730]
    assert columns["ffn.gate.kernel"].spec == P(None, "model")
    assert placed.opt_state["decoder.layers"][0].v["ffn.gate.kernel"].spec == P()  # [12, 1], not used
    assert placed.ema == placed.params
    assert flatten(placed.params)["decoder.layers.ffn.gate.kernel"].spec == P(None, "data", "model")
    adam = jax.eval_shape(make_optimizer(OptimizerConfig("adamw"), 10).init, params)
    moments = state_shardings(mesh, MeshConfig(4, 2), state._replace(opt_state=adam)).opt_state[1]["single"][0]
    assert moments.mu["lm_head.kernel"].spec == moments.nu["lm_head.kernel"].spec == P(("data", "model"), None)


@pytest.mark.parametrize("name", ["mini", "mega"])
def test_adafactor_is_small(name):
    """As the published optimizer is: under 30 MiB for mega's 2.6 billion parameters, which are 9.6 GiB."""
    params = shapes({"mini": MINI, "mega": MEGA}[name])
    state = jax.eval_shape(make_optimizer(OptimizerConfig(), 10).init, params)
    assert sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)) < 30 * 2**20


@pytest.mark.parametrize(
    ("config", "count", "made"),
    [
        (MeshConfig(), 1, (1, 1)),
        (MeshConfig(data=1, model=-1), 1, (1, 1)),
        (MeshConfig(data=-1, model=-1), 1, (1, 1)),
        (MeshConfig(model=2), 1, "data -1 x model 2 does not make the 1 devices"),
        (MeshConfig(data=8), 1, "data 8 x model 1 does not make the 1 devices"),
        (MeshConfig(data=0), 1, "data: 0 devices; it must be at least 1, or -1"),
        (MeshConfig(model=-3), 1, "model: -3 devices"),
    ],
)
def test_meshes(config, count, made):
    if isinstance(made, str):
        with pytest.raises(UserError, match=f"^mesh.*{made}"):
            make_mesh(config)
    else:
        assert make_mesh(config).devices.shape == made


def test_batches_that_do_not_divide():
    mesh = SimpleNamespace(shape={"data": 8, "model": 1})
    check_batch(mesh, 64, 4)
    with pytest.raises(UserError, match=r"loop.batch_size 60 .* 8 devices along mesh.data: use 56 or 64"):
        check_batch(mesh, 60)
    with pytest.raises(UserError, match=r"loop.batch_size 16 .* mesh.data in 4 microbatches: use 32"):
        check_batch(mesh, 16, 4)

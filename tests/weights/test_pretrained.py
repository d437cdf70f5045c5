"""from_pretrained and save_pretrained on a small module; the real networks follow below."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dalle_mini.errors import UserError
from dalle_mini.weights.folder import load_config, load_tensors, save_tensors
from dalle_mini.weights.pretrained import Pretrained, flatten, mismatch, unflatten

GOLDEN = Path(__file__).parents[1] / "golden"


@dataclasses.dataclass(frozen=True)
class SmallConfig:
    width: int = 3

    @classmethod
    def from_dict(cls, values):
        if values["width"] < 1:
            raise UserError("config.json: width must be at least 1")
        return cls(values["width"])

    def to_dict(self):
        return dataclasses.asdict(self)


class Small(Pretrained, nnx.Module):
    config_class = SmallConfig
    layout = staticmethod(lambda tensors, config: dict(tensors.items()))

    def __init__(self, config, *, rngs, dtype=jnp.float32):
        self.config = config
        self.layers = nnx.List([nnx.Linear(config.width, config.width, dtype=dtype, rngs=rngs) for _ in range(12)])
        self.none = None
        self.scale = nnx.Param(jax.random.normal(rngs.params(), ()))

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x * self.scale[...]


@pytest.fixture
def small():
    return Small(SmallConfig(), rngs=nnx.Rngs(0))


def assert_identical(model, other):
    ours, theirs = flatten(nnx.state(model)), flatten(nnx.state(other))
    assert list(ours) == list(theirs)
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype
        np.testing.assert_array_equal(ours[name], theirs[name])


def test_round_trip(small, tmp_path):
    small.save_pretrained(tmp_path / "m")
    loaded = Small.from_pretrained(tmp_path / "m")
    assert_identical(loaded, small)
    assert loaded.config == small.config
    x = jnp.ones((2, 3))
    np.testing.assert_array_equal(loaded(x), small(x))
    loaded.save_pretrained(tmp_path / "again")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "m" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


def test_no_random_weights_are_drawn(small, tmp_path, monkeypatch):
    small.save_pretrained(tmp_path)
    drawn = []
    normal = jax.random.normal
    monkeypatch.setattr(jax.random, "normal", lambda key, shape: drawn.append(key) or normal(key, shape))
    Small.from_pretrained(tmp_path)
    assert all(isinstance(key, jax.core.Tracer) for key in drawn)


@pytest.mark.parametrize("stored", [jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_dtypes(small, tmp_path, stored, dtype):
    small.save_pretrained(tmp_path, dtype=stored)
    assert all(array.dtype == stored for array in load_tensors(tmp_path).values())
    loaded = Small.from_pretrained(tmp_path, dtype=dtype)
    for name, array in flatten(nnx.state(loaded)).items():
        assert array.dtype == dtype
        np.testing.assert_array_equal(array, flatten(nnx.state(small))[name].astype(stored).astype(dtype))
    assert loaded(jnp.ones((1, 3), dtype)).dtype == dtype


def test_a_value_beyond_float16_is_not_stored_as_infinity(small, tmp_path):
    small.scale[...] = jnp.asarray(1e6)
    with pytest.raises(UserError, match="as float16: scale has values beyond it"):
        small.save_pretrained(tmp_path / "m", dtype=jnp.float16)
    assert not (tmp_path / "m").exists()


def test_flatten_and_unflatten(small):
    state = nnx.state(small)
    flat = flatten(state)
    assert {"layers.0.bias", "layers.11.kernel", "scale"} < set(flat)
    graph, _ = nnx.split(small)
    doubled = unflatten({name: 2 * array for name, array in flat.items()}, state)
    np.testing.assert_array_equal(nnx.merge(graph, doubled).layers[11].kernel[...], 2 * small.layers[11].kernel[...])
    pure = nnx.to_pure_dict(state)
    assert list(flatten(pure)) == list(flat)
    assert jax.tree.structure(unflatten(flat, pure)) == jax.tree.structure(pure)


def test_mismatches_are_named(small, tmp_path):
    small.save_pretrained(tmp_path)
    tensors = dict(load_tensors(tmp_path))
    del tensors["layers.3.bias"]
    tensors["scale"] = np.ones((2, 1), np.float32)
    save_tensors(tmp_path, {"width": 3}, tensors | {"layers.12.bias": np.ones(3)})
    with pytest.raises(UserError) as caught:
        Small.from_pretrained(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}/model.safetensors does not fit the Small of its config.json: 1 missing: layers.3.bias [3]; "
        "1 unexpected: layers.12.bias [3]; 1 of the wrong shape: scale is [2, 1] instead of []"
    )
    save_tensors(tmp_path, {"width": 4}, flatten(nnx.state(small)))
    with pytest.raises(
        UserError, match=r"24 of the wrong shape: layers.0.bias is \[3\] instead of \[4\],.* and 19 more"
    ):
        Small.from_pretrained(tmp_path)


def test_mismatch_of_the_same():
    assert mismatch({"a": np.ones(2)}, {"a": np.zeros(2)}) == ""


def test_mistakes_name_the_folder(small, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        Small.from_pretrained(tmp_path / "nowhere")
    save_tensors(tmp_path, {"width": 0}, {})
    with pytest.raises(UserError, match=f"{tmp_path}: config.json: width must be"):
        Small.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    save_path = tmp_path / "config.json"
    save_path.write_text('{"width": 2}')
    with pytest.raises(UserError, match="no weights"):
        Small.from_pretrained(tmp_path)


def networks():
    from dalle_mini.models.clip import CLIP
    from dalle_mini.models.dalle_bart import DalleBart
    from dalle_mini.models.vqgan import VQGAN

    return {"dallebart": DalleBart, "vqgan": VQGAN, "clip": CLIP}


FOLDERS = [
    "dallebart/a_normformer_glu_scan",
    "dallebart/b_normformer_glu_unrolled",
    "dallebart/e_megalike_fp16_scan",
    "dallebart/f_sharded_of_e",
    "vqgan/tiny_f4_64",
    "clip",
]


@pytest.mark.parametrize("name", FOLDERS)
def test_golden_folders_load_and_survive_a_round_trip(name, tmp_path):
    network = networks()[name.split("/")[0]]
    model = network.from_pretrained(GOLDEN / name)
    assert all(array.dtype == jnp.float32 for array in flatten(nnx.state(model)).values())
    model.save_pretrained(tmp_path / "m")
    again = network.from_pretrained(tmp_path / "m")
    assert_identical(again, model)
    assert again.config == model.config
    again.save_pretrained(tmp_path / "n")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "m" / file).read_bytes() == (tmp_path / "n" / file).read_bytes()


def test_golden_layouts_give_one_model():
    network = networks()["dallebart"]
    scanned, unrolled, whole, sharded = (network.from_pretrained(GOLDEN / name) for name in FOLDERS[:4])
    assert_identical(scanned, unrolled)
    assert_identical(whole, sharded)


def test_the_wrong_folder_for_a_network(tmp_path):
    shutil.copytree(GOLDEN / FOLDERS[0], tmp_path / "m")
    shutil.copy(GOLDEN / FOLDERS[2] / "flax_model.msgpack", tmp_path / "m")
    assert load_config(tmp_path / "m")["decoder_layers"] == 3
    with pytest.raises(
        UserError, match=r"flax_model.msgpack does not fit the DalleBart .* wrong shape: .*\[2, 32, 32\] instead of"
    ):
        networks()["dallebart"].from_pretrained(tmp_path / "m")
    with pytest.raises(UserError, match=f"{os.sep}clip.*flax_model.msgpack does not fit the VQGAN .* missing: "):
        networks()["vqgan"].from_pretrained(GOLDEN / "clip")


MEGA = {
    "encoder_vocab_size": 50272,
    "image_vocab_size": 16415,
    "d_model": 2048,
    **{f"{stack}_layers": 24 for stack in ("encoder", "decoder")},
    **{f"{stack}_attention_heads": 32 for stack in ("encoder", "decoder")},
    **{f"{stack}_ffn_dim": 4096 for stack in ("encoder", "decoder")},
}


@pytest.mark.parametrize(
    ("published", "network", "fields"),
    [
        ("mini1_scan", "dallebart", {}),
        ("mega1_scan", "dallebart", MEGA),
        ("vqgan_f16_16384", "vqgan", {"n_embed": 16384}),
        ("clip_vit_b32", "clip", {}),
    ],
)
def test_the_published_models_fit(published, network, fields):
    network = networks()[network]
    config = network.config_class.from_dict(fields)
    shapes = json.loads((GOLDEN / "shapes" / f"{published}.json").read_text())
    file = {name: jax.ShapeDtypeStruct(tuple(shape), jnp.float32) for name, shape in shapes.items()}
    model = nnx.eval_shape(lambda: network(config, rngs=nnx.Rngs(0)))
    assert mismatch(flatten(nnx.state(model)), network.layout(file, config)) == ""

"""from_pretrained and save_pretrained on a small module; the real networks follow below."""

import dataclasses
import json
import os
import shutil
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, serialization

from dalle_mini.errors import UserError
from dalle_mini.weights.folder import load_config, load_tensors, save_tensors
from dalle_mini.weights.formats.tensors import Tensor
from dalle_mini.weights.pretrained import Pretrained, flatten, from_device, mismatch, to_device, unflatten

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
    map_keys = staticmethod(lambda tensors, config: dict(tensors.items()))

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


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_on_a_cpu_the_file_is_read_into_the_memory_of_the_model(monkeypatch, dtype):
    """Were it copied once more, a model would need twice its size to load."""
    if jax.default_backend() != "cpu":
        pytest.skip("other devices have memory of their own")
    read_into, addresses = Tensor.read_into, []

    def noting(tensor, out):
        addresses.append(out.ctypes.data)
        read_into(tensor, out)

    monkeypatch.setattr(Tensor, "read_into", noting)
    for shape in ((), (3,), (1000, 7)):
        values = np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)
        array = to_device(Tensor.of(values), dtype)
        assert array.dtype == dtype and array.unsafe_buffer_pointer() == addresses[-1]
        np.testing.assert_array_equal(array, values.astype(dtype))


def test_memory_given_to_jax_may_be_donated():
    """A training step that overwrites the parameters of a loaded model."""
    array = to_device(Tensor.of(np.ones(1000, np.float32)), jnp.float32)
    for _ in range(3):
        array = jax.jit(lambda x: x + 1, donate_argnums=0)(array)
    np.testing.assert_array_equal(array, np.full(1000, 4))


@pytest.mark.parametrize("dtype", ["int8", "float64", "foo"])
def test_dtypes_that_no_model_computes_in(small, tmp_path, dtype):
    small.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"dtype '{dtype}' is none of float32, bfloat16, float16"):
        type(small).from_pretrained(tmp_path, dtype=dtype)


def test_a_bundle_is_no_network(small, tmp_path):
    small.save_pretrained(tmp_path / "dalle")
    with pytest.raises(UserError, match=f"is a bundle: name the network in it, such as {tmp_path / 'dalle'}"):
        type(small).from_pretrained(tmp_path)


def test_integers_are_not_cast():
    assert to_device(Tensor.of(np.arange(3, dtype=np.int32)), jnp.bfloat16).dtype == jnp.int32
    assert to_device(Tensor.of(np.asarray(True)), jnp.bfloat16).dtype == jnp.bool_
    assert to_device(Tensor.of(np.ones(3)), jnp.bfloat16).dtype == jnp.bfloat16


def test_loading_holds_little_beside_the_model(tmp_path):
    """In no format, of no dtype, with layers in one tensor or in many."""
    numbers = np.random.default_rng(0).normal(size=(4, 512, 512)).astype(np.float16)
    tensors = {"layers": Tensor.stack([Tensor.of(layer) for layer in numbers]), "last": Tensor.of(numbers[0])}
    save_tensors(tmp_path / "safetensors", {}, tensors)
    (tmp_path / "flax").mkdir()
    (tmp_path / "flax/flax_model.msgpack").write_bytes(
        serialization.to_bytes({"layer": {str(i): layer for i, layer in enumerate(numbers)}, "last": numbers[0]})
    )
    for folder in ("safetensors", "flax"):
        tracemalloc.start()
        read = load_tensors(tmp_path / folder)
        if folder == "flax":
            read = {"layers": Tensor.stack([read[f"layer/{i}"] for i in range(4)]), "last": read["last"]}
        arrays = {name: to_device(tensor, jnp.bfloat16) for name, tensor in read.items()}
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < sum(array.nbytes for array in arrays.values()) + (1 << 20) + (1 << 17)
        np.testing.assert_array_equal(arrays["layers"], numbers.astype(jnp.bfloat16))


def test_arrays_of_a_device_are_read_in_whole_and_in_part():
    array = jnp.arange(6.0).reshape(2, 3).astype(jnp.bfloat16)
    np.testing.assert_array_equal(from_device(array).read(np.float32), array.astype(jnp.float32))
    np.testing.assert_array_equal(from_device(array).rows(1, 2), array[1:])
    assert from_device(jnp.float32(3)).read() == 3


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


def test_golden_key_mappings_give_one_model():
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
    with pytest.raises(UserError, match=f"{os.sep}clip: config.json: model_type='clip' is another kind of model than"):
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
        ("mini1_scan", "dallebart", {"encoder_ffn_dim": 2730, "decoder_ffn_dim": 2730}),
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
    assert mismatch(flatten(nnx.state(model)), network.map_keys(file, config)) == ""

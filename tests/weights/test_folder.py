"""Folders: what is read, what is written, and one clear line for whatever is wrong."""

import json
import os
import pickle
import shutil
from pathlib import Path

import flax.serialization
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import torch_files
from dalle_mini.errors import UserError
from dalle_mini.weights.folder import WEIGHTS, listed, load_config, load_tensors, save_tensors
from dalle_mini.weights.formats import taming

GOLDEN = Path(__file__).parents[1] / "golden"
SHARDED = GOLDEN / "dallebart/f_sharded_of_e"
TENSORS = {
    "b.kernel": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.bias": np.asarray([1, 2.5], ml_dtypes.bfloat16),
    "scale": np.asarray(3, np.float16),
}


def assert_same(found, wanted):
    assert set(found) == set(wanted)
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        np.testing.assert_array_equal(found[name].read(), array)


def test_round_trip(tmp_path):
    save_tensors(tmp_path / "new/model", {"b": 1, "a": [2]}, TENSORS)
    assert load_config(tmp_path / "new/model") == {"b": 1, "a": [2]}
    assert (tmp_path / "new/model/config.json").read_text() == '{\n  "a": [\n    2\n  ],\n  "b": 1\n}\n'
    assert_same(load_tensors(tmp_path / "new/model"), TENSORS)
    assert os.listdir(tmp_path / "new") == ["model"]


def test_equal_contents_give_equal_bytes(tmp_path):
    save_tensors(tmp_path / "one", {"a": 1, "b": 2}, TENSORS)
    save_tensors(tmp_path / "two", {"b": 2, "a": 1}, dict(reversed(TENSORS.items())))
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_memory_order_does_not_matter(tmp_path):
    array = np.arange(6.0).reshape(2, 3)
    save_tensors(tmp_path / "m", {}, {"t": array.T, "strided": array[:, ::2]})
    assert_same(load_tensors(tmp_path / "m"), {"t": array.T, "strided": array[:, ::2]})


def test_saving_over_a_model_keeps_the_other_files(tmp_path):
    save_tensors(tmp_path / "m", {"a": 1}, TENSORS)
    (tmp_path / "m/tokenizer.json").write_text("{}")
    save_tensors(tmp_path / "m", {"a": 2}, {"x": np.ones(2)})
    assert sorted(os.listdir(tmp_path / "m")) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert load_config(tmp_path / "m") == {"a": 2}
    assert list(load_tensors(tmp_path / "m")) == ["x"]


def test_both_files_are_readable_by_whom_the_umask_allows(tmp_path):
    save_tensors(tmp_path / "m", {}, TENSORS)
    assert (tmp_path / "m/model.safetensors").stat().st_mode == (tmp_path / "m/config.json").stat().st_mode


@pytest.mark.parametrize("exists", [False, True])
def test_a_failed_save_leaves_what_was_there(tmp_path, monkeypatch, exists):
    if exists:
        save_tensors(tmp_path / "m", {"a": 1}, TENSORS)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot save into .*m: No space left on device"):
        save_tensors(tmp_path / "m", {"a": 2}, TENSORS)
    assert os.listdir(tmp_path) == (["m"] if exists else [])
    if exists:
        assert sorted(os.listdir(tmp_path / "m")) == ["config.json", "model.safetensors"]
        assert load_config(tmp_path / "m") == {"a": 1}


def test_unwritable_targets(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is a file"):
        save_tensors(tmp_path / "file", {}, TENSORS)
    with pytest.raises(UserError, match=r"cannot save into .*below: .*file is a file"):
        save_tensors(tmp_path / "file/below", {}, TENSORS)
    if os.path.isdir("/proc/self"):
        with pytest.raises(UserError, match="cannot save into /proc/self/model"):
            save_tensors("/proc/self/model", {}, TENSORS)


def test_missing_folders_and_files(tmp_path):
    with pytest.raises(UserError, match=r"no such folder: .*nowhere"):
        load_config(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no such folder: .*nowhere"):
        load_tensors(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is a file: a model is a folder"):
        load_tensors(tmp_path / "file")
    with pytest.raises(UserError, match=r"has no config\.json"):
        load_config(tmp_path)
    with pytest.raises(UserError, match=r"no weights: looked for model\.safetensors, .*, flax_model\.msgpack, "):
        load_tensors(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[1]", '"text"', "null", "\xff", "[" * 100_000])
def test_a_config_that_is_none(tmp_path, text):
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(
        UserError, match=r"config\.json(: not valid JSON|: it is nested more than 64 deep| holds a JSON)"
    ) as caught:
        load_config(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_cut_safetensors_file_names_the_tensors(tmp_path):
    save_tensors(tmp_path, {}, {f"layer.{i}": np.ones(100, np.float32) for i in range(9)})
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-700])
    with pytest.raises(UserError, match=r"model\.safetensors is cut short: its \d+ bytes end before layer.7, layer.8;"):
        load_tensors(tmp_path)
    path.write_bytes(whole[:-3500])
    with pytest.raises(UserError, match=r"end before layer.0, layer.1, layer.2, layer.3, layer.4 and 4 more;"):
        load_tensors(tmp_path)
    for size in (0, 4, 8, 50):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"model\.safetensors is damaged or not a safetensors file"):
            load_tensors(tmp_path)


def test_files_that_are_no_safetensors(tmp_path):
    for data in (b"\xff" * 100, (2).to_bytes(8, "little") + b"[]", (8).to_bytes(8, "little") + b'{"a":[1]}'[:8]):
        (tmp_path / "model.safetensors").write_bytes(data)
        with pytest.raises(UserError, match=r"model\.safetensors is damaged or not"):
            load_tensors(tmp_path)


FOREIGN = {
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n": "a Git LFS pointer, not .*git lfs pull",
    b"\n<!DOCTYPE html><html><title>Sign in</title>": "a web page, not the weights: download them again",
    b"PK\x03\x04" + b"\0" * 60: "a zip archive, such as torch.save writes: call it pytorch_model.bin if",
    pickle.dumps({"a": [1.0] * 9}): "a pickle, not weights: call it pytorch_model.bin if",
    pickle.dumps({"a": [1.0] * 9}, protocol=2): "a pickle, not weights",
}


@pytest.mark.parametrize("data", FOREIGN, ids=("lfs", "html", "zip", "pickle", "old pickle"))
@pytest.mark.parametrize("name", ["model.safetensors", "flax_model.msgpack"])
def test_foreign_files_are_told_by_their_beginning(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=f"{name} is {FOREIGN[data]}") as caught:
        load_tensors(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_header_that_starts_like_a_pickle(tmp_path):
    """Its length, 640, is the first two bytes of a pickle of protocol 2."""
    header = json.dumps({"t": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode().ljust(0x280)
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0\x80?")
    assert_same(load_tensors(tmp_path), {"t": np.ones(1, np.float32)})


def test_torch_files(tmp_path):
    arrays = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b.bias": np.ones(2, np.float16)}
    torch_files.save(tmp_path / "pytorch_model.bin", arrays)
    tensors = load_tensors(tmp_path)
    assert tensors.file.name == "pytorch_model.bin"
    assert_same(tensors, arrays)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(os.getcwd))
    with pytest.raises(UserError, match=r"pytorch_model\.bin is a plain pickle, which is never run"):
        load_tensors(tmp_path)


def test_sharded_torch_files(tmp_path):
    arrays = {"a.weight": np.ones((2, 3)), "b.bias": np.zeros(2)}
    files = {name: f"pytorch_model-0000{i}-of-00002.bin" for i, name in enumerate(arrays, 1)}
    for name, file in files.items():
        torch_files.save(tmp_path / file, {name: arrays[name]})
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": files}))
    assert_same(load_tensors(tmp_path), arrays)


def test_files_of_taming_transformers(tmp_path):
    """Their YAML stands for config.json, unless there is one."""
    checkpoint = torch_files.save(tmp_path / "last.ckpt", {"state_dict": {"a": np.ones(2)}, "epoch": 3})
    with pytest.raises(UserError, match=r"last\.ckpt has no YAML file"):
        load_config(tmp_path)
    ddconfig = dict.fromkeys(taming.DDCONFIG, 1)
    params = {"embed_dim": 4, "n_embed": 8, "ddconfig": ddconfig}
    run = {"model": {"target": "taming.models.vqgan.VQModel", "params": params}}
    (tmp_path / "model.yaml").write_text(json.dumps(run))
    for source in (tmp_path, checkpoint):
        assert load_config(source)["n_embed"] == 8
        assert_same(load_tensors(source), {"a": np.ones(2)})
        assert load_tensors(source).file == checkpoint
    (tmp_path / "config.json").write_text('{"n_embed": 9}')
    assert load_config(tmp_path) == load_config(checkpoint) == {"n_embed": 9}


def write_weights(path, tensors):
    if path.suffix == ".safetensors":
        safetensors.numpy.save_file(tensors, path)
    elif path.suffix == ".msgpack":
        path.write_bytes(flax.serialization.to_bytes(tensors))
    else:
        torch_files.save(path, tensors)


def test_which_weights_are_preferred(tmp_path):
    write_weights(tmp_path / "last.ckpt", {"a": np.ones(1)})
    for name in reversed(WEIGHTS):
        file = name.removesuffix(".index.json")
        if file != name:
            file = file.replace(".", "-1.")
            (tmp_path / name).write_text(json.dumps({"weight_map": {"a": file}}))
        write_weights(tmp_path / file, {"a": np.ones(1)})
        assert load_tensors(tmp_path).file.name == name


def test_sharded_msgpack_holds_the_same_as_one_file():
    whole = load_tensors(GOLDEN / "dallebart/e_megalike_fp16_scan")
    shards = load_tensors(SHARDED)
    assert shards.file.name == "flax_model.msgpack.index.json"
    assert_same(shards, {name: tensor.read() for name, tensor in whole.items()})


def test_sharded_safetensors(tmp_path):
    names = list(TENSORS)
    files = {names[0]: "model-1.safetensors", names[1]: "model-2.safetensors", names[2]: "model-2.safetensors"}
    for file in set(files.values()):
        safetensors.numpy.save_file({n: TENSORS[n] for n in names if files[n] == file}, tmp_path / file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    assert_same(load_tensors(tmp_path), TENSORS)


def test_broken_shards(tmp_path):
    folder = tmp_path / "f"
    shutil.copytree(SHARDED, folder)
    index = folder / "flax_model.msgpack.index.json"
    contents = json.loads(index.read_text())
    index.write_text(
        json.dumps({"weight_map": contents["weight_map"] | {"made/up": "flax_model-00001-of-00003.msgpack"}})
    )
    with pytest.raises(UserError, match=r"00001-of-00003\.msgpack lacks tensors that .* promises: made/up"):
        load_tensors(folder)
    for weight_map in ({"a": "../flax_model.msgpack"}, {"a": "/etc/passwd"}):
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(UserError, match="shards lie in the folder of their index"):
            load_tensors(folder)
    for weight_map in (None, {}, [], {"a": 1}):
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(UserError, match="has no weight_map"):
            load_tensors(folder)
    index.write_text(json.dumps(contents))
    (folder / "flax_model-00002-of-00003.msgpack").unlink()
    with pytest.raises(
        UserError, match=r"00002-of-00003\.msgpack is missing: flax_model\.msgpack\.index\.json lists it"
    ):
        load_tensors(folder)


def test_listed():
    assert listed([]) == ""
    assert listed("abcde") == "a, b, c, d, e"
    assert listed("abcdefg") == "a, b, c, d, e and 2 more"

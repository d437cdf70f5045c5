"""Torch checkpoints: what is read, that nothing is run, and one clear line for whatever is wrong."""

import io
import pickle
import random
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from dalle_mini.errors import UserError
from dalle_mini.weights.formats import tensors as lazy
from dalle_mini.weights.formats.torch import Machine, Unmade, read_torch_file
from torch_files import Code, call, instructions, name, program, save, save_zip, tensor

DTYPES = ["float64", "float32", "float16", ml_dtypes.bfloat16]
DTYPES += ["int64", "int32", "int16", "int8", "uint8", "bool"]
STATE = {
    "linear.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "linear.bias": np.asarray([1, -2.5], np.float16),
    "logit_scale": np.asarray(2.6592, np.float32),
}


def assert_same(found, wanted):
    assert list(found) == list(wanted)
    for key, array in wanted.items():
        assert (found[key].shape, found[key].dtype) == (array.shape, array.dtype)
        np.testing.assert_array_equal(found[key].read(), array)


@pytest.fixture(params=[False, True], ids=["zip", "legacy"])
def legacy(request):
    return request.param


def test_both_formats(tmp_path, legacy):
    assert_same(read_torch_file(save(tmp_path / "m.bin", STATE, legacy=legacy)), STATE)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_dtypes(tmp_path, legacy, dtype):
    values = {"t": np.asarray([[0, 1, 2], [3, 100, 5]]).astype(dtype)}
    assert_same(read_torch_file(save(tmp_path / "m.bin", values, legacy=legacy)), values)


def test_only_the_state_dict_of_a_training_checkpoint_counts(tmp_path, legacy):
    junk = {"epoch": 3, "optimizer_states": {"exp_avg": np.ones(5, np.float32)}, "best": np.zeros(2)}
    path = save(tmp_path / "last.ckpt", {**junk, "state_dict": STATE, "lr": "1e-4"}, legacy=legacy)
    assert_same(read_torch_file(path), STATE)


def test_empty_tensors_and_what_is_no_tensor(tmp_path):
    path = save(tmp_path / "m.bin", {"none": np.zeros((3, 0), np.float32), "_extra_state": None, **STATE})
    assert_same(read_torch_file(path), {"none": np.zeros((3, 0), np.float32), **STATE})


def test_views_of_one_storage(tmp_path):
    values = np.arange(30, dtype=np.float32)
    matrix = values.reshape(6, 5)
    views = {
        "whole": (tensor("7", "FloatStorage", 30, 0, (6, 5), (5, 1)), matrix),
        "transposed": (tensor("7", "FloatStorage", 30, 0, (5, 6), (1, 5)), matrix.T),
        "part": (tensor("7", "FloatStorage", 30, 7, (3, 2), (5, 2)), matrix[1:4, 2:6:2]),
        "last": (tensor("7", "FloatStorage", 30, 29, (), ()), values[29]),
        "repeated": (tensor("7", "FloatStorage", 30, 3, (4, 2), (0, 1)), np.tile(values[3:5], (4, 1))),
    }
    content = program({key: code for key, (code, _) in views.items()})
    found = read_torch_file(save_zip(tmp_path / "m.bin", content, {"7": values.tobytes()}))
    assert_same(found, {key: array for key, (_, array) in views.items()})


def test_values_are_read_in_pieces_and_only_when_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(lazy, "PIECE_BYTES", 64)
    wanted = {"t": np.arange(1000, dtype=np.float32).reshape(100, 10)}
    path = save(tmp_path / "m.bin", wanted)
    found = read_torch_file(path)
    assert_same(found, wanted)
    assert_same({"t": found["t"].slice_rows(40, 60)}, {"t": wanted["t"][40:60]})
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"m\.bin ends inside tensor t: it has become shorter"):
        found["t"].read()


def test_parameters_are_their_tensors(tmp_path):
    inner = tensor("0", "FloatStorage", 2, 0, (2,), (1,))
    hooks = call(name("collections", "OrderedDict"))
    content = {
        "a": call(name("torch._utils", "_rebuild_parameter"), inner, True, hooks),
        "b": call(name("torch._utils", "_rebuild_parameter_with_state"), inner, True, hooks, {"x": 1}),
    }
    values = np.asarray([1, 2], np.float32)
    found = read_torch_file(save_zip(tmp_path / "m.bin", program(content), {"0": values.tobytes()}))
    assert_same(found, {"a": values, "b": values})


def test_nothing_that_a_pickle_asks_for_is_run(tmp_path, legacy):
    marker = tmp_path / "executed"
    touch = call(name("builtins", "open"), str(marker), "w")
    pickle.loads(program(touch)).close()
    assert marker.exists()  # so it would be, by the real thing
    marker.unlink()
    content = {
        "callbacks": {"hook": touch},
        "by INST": Code(b"(" + instructions(str(marker)) + instructions("w") + b"ibuiltins\nopen\n"),
        "by OBJ": Code(b"(" + name("builtins", "open") + instructions(str(marker)) + instructions("w") + b"o"),
        "by NEWOBJ": Code(name("builtins", "open") + instructions((str(marker), "w")) + b"\x81"),
        "by STACK_GLOBAL": Code(
            instructions("builtins") + instructions("open") + b"\x93" + instructions((str(marker), "w")) + b"R"
        ),
        "by BUILD": Code(name("dalle_mini.errors", "UserError") + instructions({"__class__": touch}) + b"b"),
        "state_dict": STATE,
    }
    assert_same(read_torch_file(save(tmp_path / "m.ckpt", content, legacy=legacy)), STATE)
    assert not marker.exists()


class Hyperparameters(dict):
    """Training checkpoints hold this beside the weights: objects of classes that are not installed here."""

    def __init__(self):
        super().__init__(lr=0.1)
        self.path = Path("somewhere")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_data_structures_are_read_and_objects_left_out(protocol):
    plain = {
        "text": "ü\n", "bytes": b"\0\xff", "numbers": (1, -2, 300, 70000, 2**70, -(2**70), 1.5, True, False, None),
        "nested": {"list": [[], [1], list(range(2000))], "tuples": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4))},
    }  # fmt: skip
    plain["again"] = plain["nested"]
    objects = {"a": Hyperparameters(), "b": {1, 2}, "c": frozenset([3]), "d": Path("x"), "e": Hyperparameters}
    content = {**plain, **objects, 7: "a key that is no name", "end": "."}
    stream = io.BytesIO(pickle.dumps(content, protocol) + b"what follows")
    found = Machine().run(stream)
    assert stream.read() == b"what follows"
    assert list(found) == [*plain, *objects, "end"]
    if protocol >= 3:  # before, bytes were a call
        assert {key: found[key] for key in plain} == plain
    assert found["numbers"] == plain["numbers"] and found["nested"] == plain["nested"] and found["text"] == "ü\n"
    assert all(isinstance(found[key], Unmade) for key in "abcd")


def error(path) -> str:
    with pytest.raises(UserError) as caught:
        read_torch_file(path)
    assert "\n" not in str(caught.value) and path.name in str(caught.value) and len(str(caught.value)) < 500
    return str(caught.value)


def test_a_cut_file(tmp_path, legacy):
    path = save(tmp_path / "m.bin", STATE, legacy=legacy)
    whole = path.read_bytes()
    for size in range(33, len(whole), 7):
        path.write_bytes(whole[:size])
        assert "is cut short or damaged" in error(path)
    if legacy:
        path.write_bytes(whole[:-1])
        assert "it lacks values of tensor logit_scale, whose storage 2 should have 1 values" in error(path)


@pytest.mark.parametrize(
    ("described", "message"),
    [
        (("0", "FloatStorage", 10**12, 0, (10**6, 10**6), (10**6, 1)), "lacks values of tensor big, .* 1000000000000 "),
        (("1", "FloatStorage", 4, 0, (4,), (1,)), "lacks values of tensor big, whose storage 1 should have 4"),
        (("0", "DoubleStorage", 4, 0, (4,), (1,)), "lacks values of tensor big"),
        (("0", "FloatStorage", 4, 0, (5,), (1,)), r"tensor big of shape \[5\] reaches beyond the 4 values"),
        (("0", "FloatStorage", 4, 2, (3,), (1,)), "tensor big .* reaches beyond"),
        (("0", "FloatStorage", 4, 0, (2, 2), (3, 1)), "tensor big .* reaches beyond"),
        (("0", "FloatStorage", 4, 0, (10**15,), (0,)), "tensor big .* reaches beyond"),
        (("0", "FloatStorage", 4, -1, (1,), (1,)), "tensor big has no proper shape"),
        (("0", "FloatStorage", 4, 0, (2,), (-1,)), "tensor big has no proper shape"),
        (("0", "FloatStorage", 4, 0, (2, 2), (1,)), "tensor big has no proper shape"),
        (("0", "FloatStorage", -4, 0, (0,), (1,)), "tensor big has no proper shape"),
        (("0", "FloatStorage", 4, 0, ("2",), (1,)), "tensor big has no proper shape"),
        (("0", "FloatStorage", 4, 0, (True,), (1,)), "tensor big has no proper shape"),
    ],
)
def test_sizes_that_the_file_does_not_bear_out(tmp_path, described, message):
    path = save_zip(tmp_path / "m.bin", program({"big": tensor(*described)}), {"0": bytes(16)})
    with pytest.raises(UserError, match=rf"m\.bin.*{message}"):
        read_torch_file(path)


def test_numbers_beyond_any_machine(tmp_path):
    for huge in (2**64 - 1, 10**30, 10**5000):
        described = Code(b"\x8b" + (2100).to_bytes(4, "little") + huge.to_bytes(2100, "little"))
        view = tensor("0", "FloatStorage", described, 0, (described,), (1,))
        error(save_zip(tmp_path / "m.bin", program({"big": view}), {"0": bytes(16)}))
        legacy = save(tmp_path / "m.bin", {"a": np.ones(3)}, legacy=True).read_bytes()
        (tmp_path / "m.bin").write_bytes(legacy.replace(b"L3L\n", bytes(described)))
        error(tmp_path / "m.bin")


def test_a_kind_of_tensor_that_is_not_read(tmp_path):
    sparse = call(name("torch._utils", "_rebuild_sparse_tensor"), 1, (2, 3))
    path = save_zip(tmp_path / "m.bin", program({"odd": sparse}), {})
    assert "tensor odd is of a kind that cannot be read (_rebuild_sparse_tensor)" in error(path)
    quantized = tensor("0", "QInt8Storage", 4, 0, (4,), (1,))
    path = save_zip(tmp_path / "m.bin", program({"odd": quantized}), {"0": bytes(4)})
    assert "tensor odd is of a kind that cannot be read" in error(path)


@pytest.mark.parametrize(
    ("content", "has"),
    [
        ({}, "nothing"),
        ({"epoch": 1, "model": STATE}, "epoch, model"),
        ({"state_dict": call(name("builtins", "dict"))}, "state_dict"),
        ([1], "an object of another kind"),
        (call(name("models", "Net")), "an object of another kind"),
    ],
)
def test_a_checkpoint_without_tensors(tmp_path, content, has):
    assert error(save(tmp_path / "m.bin", content)).endswith(
        f"nor does a state_dict in it, so it is no checkpoint of a model; it has: {has}"
    )


def test_other_files(tmp_path):
    path = tmp_path / "m.bin"
    for data in (b"", b"<html>" * 50, b"ustar" * 100):
        path.write_bytes(data)
        assert "is no torch checkpoint: save the weights as safetensors" in error(path)
    path.write_bytes(pickle.dumps({"a": 1}))
    assert "is a plain pickle, which is never run: save" in error(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "is a zip archive but no torch checkpoint" in error(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", program({}))
    assert "data.pkl is compressed; save it again with a newer torch: torch.save(torch.load(old), new)" in error(path)
    save_zip(path, program({}), {}, byteorder=b"big")
    assert "is not little-endian" in error(path)
    assert "cannot read" in error(tmp_path / "missing.bin")


def test_a_description_that_is_too_long(tmp_path, monkeypatch):
    path, old = save(tmp_path / "m.bin", STATE), save(tmp_path / "old.bin", STATE, legacy=True)
    monkeypatch.setenv("DALLE_MINI_LIMITS", "pickle_bytes=100")
    for file in (path, old):
        assert "more than 100 bytes" in error(file) and "DALLE_MINI_LIMITS=pickle_bytes=N" in error(file)


def test_damage_anywhere_is_a_user_error_or_does_no_harm(tmp_path, legacy):
    path = save(tmp_path / "m.bin", {"state_dict": STATE, "x": call(name("a", "b"), 1)}, legacy=legacy)
    whole, chance = path.read_bytes(), random.Random(0)
    for _ in range(600):
        data = bytearray(whole)
        for _ in range(chance.choice([1, 1, 4])):
            data[chance.randrange(len(data))] = chance.choice([0, 255, chance.randrange(256), *b".(tRQ}u"])
        path.write_bytes(data)
        try:
            for found in read_torch_file(path).values():
                assert found.read().size <= 1000
        except UserError as problem:
            assert "\n" not in str(problem)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", [2, 4])
def test_what_torch_itself_writes(tmp_path, legacy, protocol):
    torch = pytest.importorskip("torch", reason="needs the extra `oracle`")
    matrix = torch.arange(30.0).reshape(6, 5)
    state = {
        **torch.nn.BatchNorm1d(3).state_dict(),
        "transposed": matrix.t(), "part": matrix[1:4, 2:], "shared": matrix, "scalar": torch.tensor(2.5),
        "parameter": torch.nn.Parameter(matrix), "expanded": torch.arange(5).expand(1, -1), "empty": torch.zeros(0, 3),
        "channels_last": torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last),
        **{str(dtype): torch.tensor([0, 1, 3]).to(dtype) for dtype in (
            torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool
        )},
    }  # fmt: skip
    path = tmp_path / "m.ckpt"
    content = {"state_dict": state, "epoch": 1, "hyper_parameters": Hyperparameters(), "callbacks": {Path: {1}}}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy, pickle_protocol=protocol)
    found = read_torch_file(path)
    assert list(found) == list(state)
    for key, value in torch.load(path, weights_only=False)["state_dict"].items():
        assert f"torch.{found[key].dtype.name}" == str(value.dtype)
        np.testing.assert_array_equal(found[key].read().astype(np.float64), value.detach().double().numpy())


def test_small_pickles_of_endless_values(tmp_path, monkeypatch):
    tree = b")" + b"2\x86" * 40  # an empty tuple, then 40 times DUP TUPLE2: 2**40 leaves
    text = instructions("m")
    big = b"\x8b" + (65536).to_bytes(4, "little") + b"\xff" * 65535 + b"\x7f"
    kinds = {
        "hash of a storage's type": Code(instructions(("storage", Code(text + tree + b"\x93"), "0", "cpu", 1)) + b"Q"),
        "text of a name": Code(text + tree + b"\x93)\x81"),
        "text of a module": Code(tree + text + b"\x93)R"),
        "a key": Code(b"}" + tree + b"K\1s"),
        "a shape of trees": tensor("0", "FloatStorage", 1, 0, (Code(tree),), (1,)),
        "a shape of long numbers": tensor("0", "FloatStorage", 1, 0, (Code(big),) * 3000, (0,) * 3000),
        "strides of long numbers": tensor("0", "FloatStorage", 1, 0, (1,) * 60, (Code(big),) * 60),
    }
    storages = {"0": bytes(4)}
    for kind, code in kinds.items():
        path = save_zip(tmp_path / "m.bin", program({"a": code, "state": 1}), storages)
        assert "m.bin" in error(path), kind
    legacy = save(tmp_path / "m.bin", STATE, legacy=True).read_bytes()
    (tmp_path / "m.bin").write_bytes(legacy.replace(instructions(["0", "1", "2"]) + b".", tree + b"."))
    assert "it does not name its storages" in error(tmp_path / "m.bin")
    monkeypatch.setenv("DALLE_MINI_LIMITS", "pickle_steps=1000 tensors=2 tensor_name=20")
    path = save_zip(tmp_path / "m.bin", program({"a": Code(b"(" * 1000)}), storages)
    assert "its pickle has more than 1000 instructions (limit pickle_steps" in error(path)
    assert "more than 2 tensors" in error(save(tmp_path / "m.bin", STATE))
    assert "more than 20 characters" in error(save(tmp_path / "m.bin", {"n" * 21: np.ones(1)}))


def test_a_directory_that_lies_about_sizes(tmp_path):
    """The directory of the zip archive asks for gigabytes, which a sparse file has."""
    path = save(tmp_path / "m.bin", STATE)
    whole = bytearray(path.read_bytes())
    with path.open("wb") as stream:
        stream.seek(6 << 30)
        end = whole.rindex(b"PK\5\6")
        whole[end + 12 : end + 20] = (3 << 30).to_bytes(4, "little") + (1 << 30).to_bytes(4, "little")
        stream.write(whole[end:])
    with path.open("r+b") as stream:
        stream.write(b"PK\3\4")
    assert "more than 33554432 bytes at once" in error(path)


def test_values_that_lie_far_apart_are_read_one_by_one(tmp_path):
    count = 1 << 21
    values = np.arange(count, dtype=np.float32)
    view = tensor("0", "FloatStorage", count, 0, (4,), (count // 4,))
    found = read_torch_file(save_zip(tmp_path / "m.bin", program({"a": view}), {"0": values.tobytes()}))
    np.testing.assert_array_equal(found["a"].read(), values[:: count // 4])

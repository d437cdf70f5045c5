"""Our own reader and writer of safetensors, and the library's."""

import json
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from dalle_mini.errors import UserError
from dalle_mini.weights.formats.safetensors import DTYPES, METADATA, read_safetensors, write_safetensors
from dalle_mini.weights.formats.tensors import Tensor

ARRAYS = {f"of.{code}": np.ones((2, 3), dtype) for code, dtype in DTYPES.items()} | {
    "schön": np.arange(5, dtype=np.float16),
    "another": np.asarray([1.5, -2], ml_dtypes.bfloat16),
    "scalar": np.asarray(7.5),
    "empty": np.ones((0, 4), np.float32),
}


def of(arrays):
    return {name: Tensor.of(array) for name, array in arrays.items()}


def test_writes_the_bytes_of_the_library(tmp_path):
    write_safetensors(tmp_path / "t", of(ARRAYS))
    assert (tmp_path / "t").read_bytes() == safetensors.numpy.save(ARRAYS, {"format": "flax"})


def test_reads_what_the_library_writes(tmp_path):
    safetensors.numpy.save_file(ARRAYS, tmp_path / "t", {"author": "somebody"})
    read = read_safetensors(tmp_path / "t")
    assert set(read) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert read[name].dtype == array.dtype and read[name].shape == array.shape
        np.testing.assert_array_equal(read[name].read(), array)


def test_one_tensor_at_a_time_is_in_memory(tmp_path):
    tensors = {f"t{i}": Tensor.stack([Tensor.of(np.ones((256, 1024), np.float32))] * 4) for i in range(8)}
    tracemalloc.start()
    write_safetensors(tmp_path / "t", tensors, np.float16)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 8 * peak < 1.6 * (tmp_path / "t").stat().st_size  # a byte a value tells whether it is infinite


def test_only_floating_point_values_are_cast(tmp_path):
    arrays = {"a": np.asarray([1.5, np.inf, np.nan]), "n": np.arange(3), "b": np.asarray([True])}
    write_safetensors(tmp_path / "t", of(arrays), ml_dtypes.bfloat16)
    read = read_safetensors(tmp_path / "t")
    assert {name: tensor.dtype.name for name, tensor in read.items()} == {"a": "bfloat16", "n": "int64", "b": "bool"}
    np.testing.assert_array_equal(read["a"].read(np.float64), arrays["a"])


def test_a_value_that_becomes_infinite_is_refused(tmp_path):
    for values in ([1e6, 1], [-1e6, np.inf], [np.inf, 65519.999, 65520]):
        with pytest.raises(UserError, match="cannot save as float16: a has values beyond it"):
            write_safetensors(tmp_path / "t", of({"a": np.asarray(values)}), np.float16)


def write(path, header, data=b"\0" * 8):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def entry(begin=0, end=8, dtype="F32", shape=(2,)):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"a": entry(shape=(3,))}, "tensor a: 8 bytes do not make a float32 array"),
        ({"a": entry(shape=(0, 1 << 62), end=0), "b": entry()}, "tensor a: no array has the shape"),
        ({"a": entry(), "b": entry(4, 8, shape=(1,))}, "tensor b does not begin where the one before it ends"),
        ({"a": entry(4, 8, shape=(1,))}, "tensor a does not begin where"),
        ({"a": entry(0, 4, shape=(1,))}, "4 bytes follow the last tensor"),
        ({}, "8 bytes follow"),
        ({"a": entry(8, 0)}, "the header does not say .* tensor a"),
        ({"a": entry(shape=(-2,))}, "the header does not say"),
        ({"a": entry(shape=(True, 2))}, "the header does not say"),
        ({"a": entry(shape=2)}, "the header does not say"),
        ({"a": entry(begin="0")}, "the header does not say"),
        ({"a": {"dtype": "F32"}}, "the header does not say"),
        ({"a": 3}, "the header does not say"),
        ([], "its header is not a JSON object"),
        (b'{"a": 1, "a": 2}', "the name a occurs twice"),
        (b"{" * 1000, "Expecting property name"),
        (b"[" * 100_000, "it is nested more than 64 deep"),
        ({"a": entry(shape=(0,) * 65, end=0), "b": entry()}, "tensor a: an array has 65 axes"),
        (b'{"a": {"dtype": "F32", "shape": [1' + b"0" * 400 + b"], ", "the number 10+... of 401 digits is too large"),
        (b"\xff{}", "codec can't decode"),
    ],
)
def test_headers_that_make_no_sense(tmp_path, header, reason):
    write(tmp_path / "t", header)
    with pytest.raises(UserError, match=f"t is damaged or not a safetensors file: .*{reason}") as caught:
        read_safetensors(tmp_path / "t")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("code", ["F8_E4M3", "F8_E5M2", "F4", "O"])
def test_a_type_that_is_not_supported_is_no_damage(tmp_path, code):
    write(tmp_path / "t", {"a": entry(dtype=code)})
    with pytest.raises(UserError, match=f"t stores tensor a as '{code}', a type that is not supported: save") as caught:
        read_safetensors(tmp_path / "t")
    assert "damaged" not in str(caught.value)


def test_a_header_longer_than_the_file(tmp_path):
    (tmp_path / "t").write_bytes((1 << 60).to_bytes(8, "little") + b"{}")
    with pytest.raises(UserError, match="announce a header of 1152921504606846976 bytes, and it has 10 in all"):
        read_safetensors(tmp_path / "t")


def test_random_damage_never_escapes(tmp_path):
    write(tmp_path / "t", {"a": entry(0, 4, "F16"), "b": entry(4, 8, "F16"), METADATA: {"format": "flax"}})
    whole = (tmp_path / "t").read_bytes()
    random = np.random.default_rng(0)
    for _ in range(500):
        damaged = bytearray(whole)
        for place in random.integers(0, len(whole), 2):
            damaged[place] = random.integers(256)
        (tmp_path / "t").write_bytes(damaged)
        try:
            tensors = read_safetensors(tmp_path / "t")
        except UserError:
            continue
        assert all(isinstance(tensor.read(), np.ndarray) for tensor in tensors.values())


def test_headers_beyond_the_limits(tmp_path, monkeypatch):
    monkeypatch.setenv("DALLE_MINI_LIMITS", "safetensors_header_bytes=500 tensors=3 tensor_name=40")
    for header, limit in (
        (b" " * 501, "safetensors_header_bytes"),
        ({str(i): {} for i in range(4)}, "tensors"),
        ({"n" * 41: entry()}, "tensor_name"),
    ):
        write(tmp_path / "t", header)
        with pytest.raises(UserError, match=rf"t: .* \(limit {limit}: .*DALLE_MINI_LIMITS={limit}=N"):
            read_safetensors(tmp_path / "t")

"""`flax_model.msgpack` from strangers: everything Flax writes is read, and nothing else."""

import ml_dtypes
import msgpack
import numpy as np
import pytest

from dalle_mini.errors import UserError
from dalle_mini.weights.flax_msgpack import read_msgpack


def packed(array, code=1):
    array = np.asarray(array)
    return msgpack.ExtType(code, msgpack.packb((array.shape, array.dtype.name, array.tobytes())))


def write(path, tree):
    path.write_bytes(msgpack.packb(tree))
    return path


def test_reads_what_flax_writes(tmp_path):
    serialization = pytest.importorskip("flax.serialization")
    tree = {
        "a": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "scalar": np.asarray(2.5, np.float16)},
        "b": {"deep": {"er": np.asarray([1, 2.5, -3], ml_dtypes.bfloat16)}, "scalar": np.float32(7)},
        "ids": np.asarray([1, 2], np.int32),
    }
    (tmp_path / "x.msgpack").write_bytes(serialization.to_bytes(tree))
    read = read_msgpack(tmp_path / "x.msgpack")
    assert list(read) == ["a/kernel", "a/scalar", "b/deep/er", "b/scalar", "ids"]
    for name, array in read.items():
        want = tree
        for key in name.split("/"):
            want = want[key]
        assert array.dtype == want.dtype and array.shape == want.shape
        np.testing.assert_array_equal(array, want)


def test_reads_chunked_arrays(tmp_path, monkeypatch):
    serialization = pytest.importorskip("flax.serialization")
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 64)
    tree = {"first": np.ones(2), "m": {"big": np.arange(60, dtype=np.float32).reshape(3, 20)}, "last": np.zeros(3)}
    (tmp_path / "x.msgpack").write_bytes(serialization.to_bytes(tree))
    read = read_msgpack(tmp_path / "x.msgpack")
    assert list(read) == ["first", "m/big", "last"]
    np.testing.assert_array_equal(read["m/big"], tree["m"]["big"])


def test_a_cut_file_names_the_tensor(tmp_path):
    path = write(tmp_path / "flax_model.msgpack", {"a": packed(np.ones(100)), "m": {"b": packed(np.ones(100))}})
    whole = path.read_bytes()
    for size in range(0, len(whole), 50):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"flax_model\.msgpack"):
            read_msgpack(path)
    path.write_bytes(whole[:-10])
    with pytest.raises(UserError, match="inside tensor m/b, after 1 whole"):
        read_msgpack(path)


@pytest.mark.parametrize(
    ("leaf", "reason"),
    [
        (msgpack.ExtType(1, msgpack.packb(((1,), "object", b"\0" * 8))), "dtype 'object'"),
        (msgpack.ExtType(1, msgpack.packb(((1,), "V8", b"\0" * 8))), "dtype 'V8'"),
        (msgpack.ExtType(1, msgpack.packb(((4,), "float32", b"\0" * 8))), "8 bytes do not make a float32"),
        (msgpack.ExtType(1, msgpack.packb(((1 << 62, 1 << 62), "float32", b""))), "0 bytes do not make"),
        (msgpack.ExtType(1, msgpack.packb(((-1,), "float32", b""))), "not packed"),
        (msgpack.ExtType(1, msgpack.packb("float32")), "not packed"),
        (msgpack.ExtType(1, b"\xc1"), "flax_model.msgpack"),
        (msgpack.ExtType(2, msgpack.packb((1.0, 2.0))), "extension type 2"),
        ("text", "a str, not an array"),
        (3.5, "a float, not an array"),
        ([1, 2], "a list, not an array"),
        ({"__msgpack_chunked_array__": True, "shape": {"0": 2}, "other": 1}, "chunked array lacks"),
    ],
)
def test_foreign_leaves_are_refused_by_name(tmp_path, leaf, reason):
    path = write(tmp_path / "flax_model.msgpack", {"good": packed(np.ones(2)), "module": {"bad": leaf}})
    with pytest.raises(UserError, match=f"tensor module/bad: .*{reason}" if "msgpack" not in reason else reason):
        read_msgpack(path)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"version https://example.org",
        b"\x93\x01\x02\x03",
        b"\x81" * 2000,
        b"\x81\xa1a" * 2000,
        b"\xdf\xff\xff\xff\xff",
        b"\x81\xc4\x01a\x01",
        b"\x80\x00",
        b"\xc1",
    ],
)
def test_foreign_files_are_refused(tmp_path, data):
    (tmp_path / "flax_model.msgpack").write_bytes(data)
    with pytest.raises(UserError, match=r"flax_model\.msgpack") as caught:
        read_msgpack(tmp_path / "flax_model.msgpack")
    assert "\n" not in str(caught.value)


def test_random_damage_never_escapes(tmp_path):
    whole = msgpack.packb({"a": {"b": packed(np.ones(5)), "c": packed(np.ones((2, 2), np.float16))}})
    random = np.random.default_rng(0)
    path = tmp_path / "x.msgpack"
    for _ in range(500):
        damaged = bytearray(whole)
        for place in random.integers(0, len(whole), 2):
            damaged[place] = random.integers(256)
        path.write_bytes(damaged)
        try:
            tensors = read_msgpack(path)
        except UserError:
            continue
        assert all(isinstance(array, np.ndarray) for array in tensors.values())

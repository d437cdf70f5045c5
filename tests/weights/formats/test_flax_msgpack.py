"""`flax_model.msgpack` from strangers: everything Flax writes is read, and nothing else."""

import gc
import os

import ml_dtypes
import msgpack
import numpy as np
import pytest

from dalle_mini.errors import UserError
from dalle_mini.weights.formats.flax_msgpack import read_msgpack


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
        np.testing.assert_array_equal(array.read(), want)


def test_reads_chunked_arrays(tmp_path, monkeypatch):
    serialization = pytest.importorskip("flax.serialization")
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 64)
    tree = {"first": np.ones(2), "m": {"big": np.arange(60, dtype=np.float32).reshape(3, 20)}, "last": np.zeros(3)}
    (tmp_path / "x.msgpack").write_bytes(serialization.to_bytes(tree))
    read = read_msgpack(tmp_path / "x.msgpack")
    assert list(read) == ["first", "m/big", "last"]
    big = read["m/big"]
    assert big.shape == (3, 20) and big.dtype == np.float32
    np.testing.assert_array_equal(big.read(), tree["m"]["big"])
    np.testing.assert_array_equal(big.rows(1, 2), tree["m"]["big"][1:2])
    np.testing.assert_array_equal(big.read(np.float16), tree["m"]["big"].astype(np.float16))


def test_every_form_of_an_integer_is_read(tmp_path):
    """A writer may spell the 3 of a shape in any of ten ways, and a length in three."""
    raw = np.asarray([1, 2, 3], np.float32).tobytes()
    forms = [b"\3", b"\xcc\3", b"\xcd\0\3", b"\xce\0\0\0\3", b"\xcf" + b"\0" * 7 + b"\3"]
    forms += [b"\xd0\3", b"\xd1\0\3", b"\xd2\0\0\0\3", b"\xd3" + b"\0" * 7 + b"\3"]
    for number, length in zip(forms, [b"\xc4\x0c", b"\xc5\0\x0c", b"\xc6\0\0\0\x0c"] * 3, strict=True):
        for start in (b"\x93\x91", b"\xdc\0\3\xdd\0\0\0\1"):
            body = start + number + b"\xa7float32" + length + raw
            for head in (
                b"\xc7" + bytes([len(body)]),
                b"\xc8\0" + bytes([len(body)]),
                b"\xc9\0\0\0" + bytes([len(body)]),
            ):
                for key in (b"\x81\xa1a", b"\xde\0\1\xd9\1a", b"\xdf\0\0\0\1\xda\0\1a"):
                    (tmp_path / "x.msgpack").write_bytes(key + head + b"\1" + body)
                    assert read_msgpack(tmp_path / "x.msgpack")["a"].read().tolist() == [1, 2, 3]


def test_a_file_is_open_while_a_tensor_is_left(tmp_path):
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("asks /proc, which is Linux's")
    path = write(tmp_path / "x.msgpack", {"a": packed(np.ones(2)), "b": packed(np.ones(3))})

    def is_open() -> bool:
        return any(os.path.realpath(f"/proc/self/fd/{fd}") == str(path) for fd in os.listdir("/proc/self/fd"))

    tensors = read_msgpack(path)
    kept = tensors.pop("a").slice_rows(1)
    del tensors
    gc.collect()
    assert is_open() and kept.read().tolist() == [1]
    del kept
    gc.collect()
    assert not is_open()
    with pytest.raises(UserError):
        read_msgpack(write(path, {"a": 1}))
    gc.collect()
    assert not is_open()


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
        (msgpack.ExtType(1, msgpack.packb(((1 << 62, 1 << 62), "float32", b""))), "no array has the shape"),
        (msgpack.ExtType(1, msgpack.packb(((1 << 32,) * 3, "float32", b""))), "no array has the shape"),
        (msgpack.ExtType(1, msgpack.packb(((-1,), "float32", b""))), "not packed"),
        (msgpack.ExtType(1, msgpack.packb("float32")), "not packed"),
        (msgpack.ExtType(1, b"\xc1"), "flax_model.msgpack"),
        (msgpack.ExtType(2, msgpack.packb((1.0, 2.0))), "extension type 2"),
        ("text", "a str, not an array"),
        (3.5, "a float, not an array"),
        ([1, 2], "a list, not an array"),
        (msgpack.ExtType(1, msgpack.packb(((1,), "float32", b"\0" * 4)) + b"\0"), "not packed"),
        (msgpack.ExtType(1, msgpack.packb(((1,) * 65, "float32", b"\0" * 4))), "65 axes"),
        (msgpack.ExtType(1, msgpack.packb(((0, 1 << 62), "float32", b""))), "no array has the shape"),
        ({"__msgpack_chunked_array__": True, "shape": {"0": 2}, "other": 1}, "chunked array lacks"),
        ({"__msgpack_chunked_array__": True, "shape": {"0": 2}, "chunks": {"1": packed(np.ones(2))}}, "array lacks"),
        (
            {"__msgpack_chunked_array__": True, "shape": {"0": 3}, "chunks": {"0": packed(np.ones(2))}},
            "2 values in all",
        ),
        (
            {"__msgpack_chunked_array__": True, "shape": {"0": -2}, "chunks": {"0": packed(np.ones(2))}},
            "no array has the shape",
        ),
        (
            {"__msgpack_chunked_array__": True, "shape": {"0": 1}, "chunks": {"0": packed(np.ones((1, 1)))}},
            "flat arrays",
        ),
        ({"__msgpack_chunked_array__": True, "shape": {"0": 0}, "chunks": {}}, "flat arrays"),
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


def test_a_name_that_occurs_twice(tmp_path):
    """A dictionary cannot, a file can."""
    leaf = msgpack.packb(packed(np.ones(1)))
    (tmp_path / "x.msgpack").write_bytes(b"\x82\xa1a" + leaf + b"\xa1a" + leaf)
    with pytest.raises(UserError, match="tensor a: the name occurs twice"):
        read_msgpack(tmp_path / "x.msgpack")


def test_a_file_that_shrinks_after_it_was_opened(tmp_path):
    path = write(tmp_path / "x.msgpack", {"a": packed(np.ones(2)), "b": packed(np.ones(300))})
    tensors = read_msgpack(path)
    os.truncate(path, 500)
    assert tensors["a"].read().tolist() == [1, 1]
    with pytest.raises(UserError, match=r"x\.msgpack ends inside tensor b: it has become shorter"):
        tensors["b"].read()


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
        assert all(isinstance(tensor.read(), np.ndarray) for tensor in tensors.values())


def test_names_and_shapes_that_grow(tmp_path, monkeypatch):
    """Joined names of many leaves in deep maps take gigabytes, and so may the product of a long shape."""
    path = tmp_path / "flax_model.msgpack"
    tree = {str(i): {} for i in range(60_000)}
    for _ in range(60):
        tree = {"n" * 1000: tree}
    with pytest.raises(
        UserError, match=r"more than 1024 characters \(limit tensor_name: .*DALLE_MINI_LIMITS=tensor_name"
    ):
        read_msgpack(write(path, tree))
    shape = {str(i): (1 << 64) - 1 for i in range(100_000)}
    with pytest.raises(UserError, match="an array has 100000 axes"):
        read_msgpack(write(path, {"a": {"__msgpack_chunked_array__": True, "shape": shape, "chunks": {}}}))
    monkeypatch.setenv("DALLE_MINI_LIMITS", "tensors=50")
    with pytest.raises(UserError, match=r"more than 50 tensors and maps of them \(limit tensors"):
        read_msgpack(write(path, {str(i): {} for i in range(51)}))
    chunks = {str(i): packed(np.ones(1)) for i in range(51)}
    with pytest.raises(UserError, match=r"more than 50 tensors and maps of them \(limit tensors"):
        read_msgpack(write(path, {"a": {"__msgpack_chunked_array__": True, "shape": {"0": 51}, "chunks": chunks}}))


def test_a_pipe_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "flax_model.msgpack")
    with pytest.raises(OSError, match="a pipe or a device"):
        read_msgpack(tmp_path / "flax_model.msgpack")

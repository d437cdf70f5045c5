"""Tensors that are stacked, sliced and transposed before they are read."""

import itertools
import os
import tracemalloc

import ml_dtypes
import numpy as np
import pytest

from dalle_mini.errors import UserError
from dalle_mini.weights.formats import tensors
from dalle_mini.weights.formats.tensors import Tensor, TensorFile, is_float

ARRAY = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


def of_file(path, array) -> Tensor:
    path.write_bytes(b"head" + array.tobytes())
    return TensorFile(path).tensor("t", 4, array.nbytes, array.shape, array.dtype)


@pytest.fixture(params=["memory", "file"])
def make(request, tmp_path):
    """Both kinds of tensor, read in the smallest pieces there are."""
    numbers = itertools.count()
    return Tensor.of if request.param == "memory" else lambda array: of_file(tmp_path / str(next(numbers)), array)


@pytest.fixture(params=[1, 1 << 20])
def piece(request, monkeypatch):
    """The least there can be of a tensor at once, a row or a value, and more than there is."""
    monkeypatch.setattr(tensors, "PIECE_BYTES", request.param)
    monkeypatch.setattr(tensors, "CAST_BYTES", max(8, request.param))


def assert_reads(tensor: Tensor, wanted: np.ndarray):
    """However it is read."""
    assert tensor.shape == wanted.shape and tensor.dtype == wanted.dtype
    np.testing.assert_array_equal(tensor.read(), wanted)
    np.testing.assert_array_equal(tensor.read(np.float64), wanted.astype(np.float64))
    strided = np.zeros((*wanted.shape[::-1], 2), wanted.dtype)[..., 0].T
    tensor.read_into(strided)
    np.testing.assert_array_equal(strided, wanted)
    for start, stop in itertools.combinations(range((wanted.shape or (1,))[0] + 1), 2):
        np.testing.assert_array_equal(tensor.rows(start, stop), np.atleast_1d(wanted)[start:stop])


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.int32, np.bool_])
@pytest.mark.parametrize("shape", [(2, 3, 4), (24,), (), (0, 3), (3, 0)])
def test_plain(make, piece, dtype, shape):
    array = np.resize(ARRAY, shape).astype(dtype)
    assert_reads(make(array), array)


def test_transposed(make, piece):
    for axes in itertools.permutations(range(3)):
        assert_reads(make(ARRAY).transpose(*axes), ARRAY.transpose(axes))


def test_stacked(make, piece):
    arrays = [ARRAY, ARRAY + 100, -ARRAY]
    assert_reads(Tensor.stack([make(array) for array in arrays]), np.stack(arrays))
    numbers = [np.float32(3), np.float32(4)]
    assert_reads(Tensor.stack([make(np.asarray(number)) for number in numbers]), np.asarray(numbers))
    turned = Tensor.stack([make(array).transpose(2, 0, 1) for array in arrays])
    assert_reads(turned, np.stack([array.transpose(2, 0, 1) for array in arrays]))


def test_concatenated(make, piece):
    arrays = [ARRAY, ARRAY[:0], ARRAY[:1] + 100]
    assert_reads(Tensor.concatenate([make(array) for array in arrays]), np.concatenate(arrays))


def test_reshaped(make, piece):
    assert_reads(make(ARRAY).reshape(6, 4), ARRAY.reshape(6, 4))
    assert_reads(make(ARRAY.reshape(-1)).reshape(2, 3, 4), ARRAY)
    assert_reads(make(ARRAY[:1, :1, :1]).reshape(), np.asarray(ARRAY[0, 0, 0]))
    assert_reads(make(np.asarray(ARRAY[1, 1, 1])).reshape(1, 1), ARRAY[1:, 1:2, 1])
    assert_reads(make(ARRAY).reshape(4, 6).transpose(1, 0), ARRAY.reshape(4, 6).T)
    assert_reads(make(ARRAY).transpose(1, 0, 2).reshape(6, 4), ARRAY.transpose(1, 0, 2).reshape(6, 4))


def test_sliced(make, piece):
    array = np.arange(20.0).reshape(5, 4)
    for start, stop in ((0, None), (2, None), (1, 4), (-2, None), (0, -1), (3, 3), (4, 2), (0, 99)):
        assert_reads(make(array).slice_rows(start, stop), array[start:stop])
    assert_reads(make(array).transpose(1, 0).slice_rows(1, 3), array.T[1:3])
    assert_reads(Tensor.stack([make(array)] * 3).slice_rows(1), np.stack([array] * 2))


def test_casts(make, piece):
    array = np.asarray([1.5, 70000, -1e30, np.inf, np.nan, 2.0**-30], np.float32)
    for dtype in (np.float16, ml_dtypes.bfloat16, np.float64):
        with np.errstate(all="ignore"):
            wanted = array.astype(dtype).astype(float)  # numpy takes a NaN of bfloat16 for an ordinary number
        np.testing.assert_array_equal(make(array).read(dtype).astype(float), wanted)
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    np.testing.assert_array_equal(make(halves).read(np.float32), halves.astype(np.float32))


def test_only_a_piece_is_held_beside_the_result(tmp_path):
    array = np.ones((64, 256, 1024), np.float16)  # 32 MiB
    tensor = of_file(tmp_path / "t", array)
    parts = [tensor.slice_rows(i, i + 8) for i in range(0, 64, 8)]
    for whole in (tensor, Tensor.stack(parts), tensor.reshape(8, 8, 256, 1024)):
        out = np.empty(whole.shape, np.float32)
        tracemalloc.start()
        whole.read_into(out)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < array.nbytes / 6
        assert out.min() == 1


def test_files_that_disagree_with_what_is_said_of_them(tmp_path):
    (tmp_path / "t").write_bytes(b"\0" * 8)
    file = TensorFile(tmp_path / "t")
    with pytest.raises(ValueError, match=r"8 bytes do not make a float32 array of shape \[3\]"):
        file.tensor("t", 0, 8, (3,), np.dtype(np.float32))
    tensor = file.tensor("t", 0, 8, (2,), np.dtype(np.float32))
    os.truncate(tmp_path / "t", 6)
    for read in (tensor.read, lambda: tensor.read(np.float64), lambda: tensor.rows(1, 2)):
        with pytest.raises(UserError, match=r"t ends inside tensor t: it has become shorter"):
            read()


def test_is_float():
    assert all(map(is_float, (np.float16, np.float32, np.float64, ml_dtypes.bfloat16)))
    assert not any(map(is_float, (np.int8, np.uint32, np.bool_)))

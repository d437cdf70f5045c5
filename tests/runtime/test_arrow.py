"""Values of Arrow columns that Python cannot hold, one at a time."""

import datetime

import pyarrow as pa
import pytest

from dalle_mini.runtime import arrow


def latin1(*values):
    """Text as other programs write it into Parquet: bytes that are no UTF-8."""
    return pa.Array.from_buffers(pa.string(), len(values), pa.array(values).buffers())


@pytest.mark.parametrize(
    ("column", "wanted"),
    [
        (pa.array([10**7], pa.int32()).cast(pa.date32()), None),
        (pa.array([10**18], pa.timestamp("us")), None),
        (pa.array([2**62], pa.duration("s")), None),
        (pa.array([10**18], pa.int64()).view(pa.time64("us")), None),
        (pa.array([1], pa.int32()).cast(pa.date32()), datetime.date(1970, 1, 2)),
        (latin1(b"Ren\xe9"), "Ren\udce9"),
        (latin1(b"Ren\xe9").dictionary_encode(), "Ren\udce9"),
        (pa.ListArray.from_arrays([0, 2], latin1(b"Ren\xe9", b"x")), ["Ren\udce9", "x"]),
        (pa.StructArray.from_arrays([latin1(b"\xe9"), pa.array([1])], ["path", "n"]), {"path": "\udce9", "n": 1}),
    ],
)
def test_values_that_python_cannot_hold(column, wanted):
    assert arrow.value_of(column[0]) == wanted


def test_a_time_zone_that_nobody_knows():
    value = arrow.value_of(pa.array([1_000_000], pa.timestamp("us", tz="UTC+3"))[0])
    assert value == datetime.datetime(1970, 1, 1, 0, 0, 1, tzinfo=datetime.UTC)


def test_long_lists_are_cut():
    assert len(arrow.value_of(pa.array([["a"] * 5000])[0])) == arrow.MOST_OF_A_LIST


def test_two_columns_of_one_name():
    batch = pa.RecordBatch.from_arrays([pa.array([1, 2]), pa.array([3, 4])], ["a", "a"])
    assert list(arrow.rows_of(batch, lambda name: arrow.text_or_path)) == [{"a": 1}, {"a": 2}]

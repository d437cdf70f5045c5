"""Parquet in bounds: small files that would become gigabytes, odd values, and paths that are watched for change."""

import resource
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dalle_mini.data.sources import open_source, reasons
from dalle_mini.runtime import limits
from small_datasets import PICTURE, list_of, same, struct_of, write

MEASURED = """
import resource, sys
from dalle_mini.data.sources import open_source
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
problems = {}
for part in open_source(sys.argv[1]).parts():
    for example in part.examples():
        problems[example.problem] = problems.get(example.problem, 0) + 1
        assert len(example.key) < 5000
print(problems, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


def examples(path, **options):
    return [example for part in open_source(str(path), **options).parts() for example in part.examples()]


BIG = 2 << 20
BOMBS = {
    "dictionary": lambda: {"image": same(b"\xff" * BIG, 300, pa.binary()), "text": ["a"] * 300},
    "struct": lambda: {"image": struct_of(same(b"\xff" * BIG, 300, pa.binary())), "text": ["a"] * 300},
    "captions": lambda: {"image": [PICTURE], "text": list_of(same("x" * BIG, 300, pa.string()))},
    "keys": lambda: {"image": [b"x"] * 300, "text": ["a"] * 300, "key": same("k" * BIG, 300, pa.string())},
    "unasked": lambda: {"image": [b"x"] * 300, "text": ["a"] * 300, "author": same("k" * BIG, 300, pa.string())},
    "fixed": lambda: {"image": same(b"\xff" * BIG, 300, pa.binary(BIG)), "text": ["a"] * 300},
    "prefixes": lambda: {"image": [b"\xff" * BIG] * 300, "text": ["a"] * 300},
    "page": lambda: {"image": [b"\xff" * (100 << 20)], "text": ["a"]},
}
OPTIONS = {"prefixes": {"use_dictionary": False, "column_encoding": {"image": "DELTA_BYTE_ARRAY"}}}


@pytest.mark.parametrize("name", BOMBS)
def test_files_of_a_kilobyte_that_become_gigabytes(tmp_path, name):
    path = write(tmp_path / "x.parquet", BOMBS[name](), **OPTIONS.get(name, {}))
    assert path.stat().st_size < 100_000
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(path)], capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30)),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-500:]
    problems, grown = done.stdout.rsplit(maxsplit=1)
    assert int(grown) < 200, f"{grown} MB"
    wanted = {"page": "{'expands too far': 1}", "fixed": "{'expands too far': 300}", "captions": "{None: 1}"}
    assert problems == wanted.get(name, "{None: 300}")


def test_rows_out_of_all_proportion(tmp_path, monkeypatch):
    monkeypatch.setenv(limits.VARIABLE, "parquet_rows=1000")
    path = write(
        tmp_path / "x.parquet", {"image": pa.nulls(100_000, pa.binary()), "text": same("a", 100_000, pa.string())}
    )
    (one,) = examples(path)
    assert one.problem == reasons.EXPANDS and one.detail.startswith("100,000 rows of ")


def test_one_picture_in_a_million_rows_is_counted(tmp_path, monkeypatch):
    monkeypatch.setenv(limits.VARIABLE, "parquet_bytes=1000")
    path = write(tmp_path / "x.parquet", {"image": same(bytes(100_000), 50, pa.binary()), "text": ["a"] * 50})
    found = [example.problem for example in examples(path)]
    assert len(found) == 50 and 0 < found.count(None) < 20 and set(found) == {None, reasons.EXPANDS}


def odd(wanted, usual):
    return [wanted if i == 2 else usual for i in range(5)]


ODD = {
    "date": lambda: pa.array(odd(10**7, 1), pa.int32()).cast(pa.date32()),
    "time": lambda: pa.array(odd(10**18, 1), pa.timestamp("us")),
    "zone": lambda: pa.array([1] * 5, pa.timestamp("us", tz="UTC+3")),
    "duration": lambda: pa.array(odd(2**62, 1), pa.duration("s")),
    "text": lambda: pa.Array.from_buffers(pa.string(), 5, pa.array(odd(b"Ren\xe9", b"Ann")).buffers()),
}


@pytest.mark.parametrize("name", ODD)
def test_one_odd_value_of_an_unasked_column_costs_nothing(tmp_path, name):
    captions = [f"caption {i}" for i in range(5)]
    path = write(tmp_path / "x.parquet", {"image": [PICTURE] * 5, "text": captions, "odd": ODD[name]()})
    found = examples(path)
    assert [example.problem for example in found] == [None] * 5
    assert [example.captions[0] for example in found] == captions
    assert "odd" in found[0].columns or name == "duration"


def test_an_unasked_column_that_is_damaged_costs_itself(tmp_path):
    path = write(
        tmp_path / "x.parquet", {"image": [PICTURE] * 5, "text": ["a"] * 5, "author": list("abcde")},
        write_page_checksum=True, use_dictionary=False, compression="none",
    )  # fmt: skip
    about = pq.read_metadata(path).row_group(0).column(2)
    data = bytearray(path.read_bytes())
    data[about.data_page_offset + about.total_compressed_size - 1] ^= 1
    path.write_bytes(data)
    found = examples(path)
    assert [(example.problem, example.columns) for example in found] == [(None, {})] * 5


def test_captions_that_are_not_utf8(tmp_path):
    column = pa.Array.from_buffers(pa.string(), 2, pa.array([b"a caf\xe9", b"a tea"]).buffers())
    path = write(tmp_path / "x.parquet", {"image": [PICTURE] * 2, "text": column})
    assert [example.captions for example in examples(path)] == [("a café",), ("a tea",)]


def test_two_columns_of_one_name(tmp_path):
    table = pa.Table.from_arrays([pa.array([PICTURE]), *[pa.array(["a"])] * 3], ["image", "text", "width", "width"])
    pq.write_table(table, tmp_path / "x.parquet")
    assert [example.captions for example in examples(tmp_path)] == [("a",)]


NAMED = {
    "text": lambda names: names,
    "category": lambda names: names.dictionary_encode(),
    "bytes": lambda names: names.cast(pa.binary()),
    "struct": lambda names: pa.StructArray.from_arrays([pa.nulls(2, pa.binary()), names], ["bytes", "path"]),
    "struct of bytes": lambda names: pa.StructArray.from_arrays(
        [pa.nulls(2, pa.binary()), names.cast(pa.binary())], ["bytes", "path"]
    ),
    "large": lambda names: names.cast(pa.large_string()),
}


@pytest.mark.parametrize("kind", NAMED)
def test_pictures_by_their_paths_are_read_and_watched(tmp_path, kind):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(PICTURE)
    column = NAMED[kind](pa.array(["a.png", "b.png"]))
    pq.write_table(pa.table({"image": column, "text": ["one", "two"]}), tmp_path / "metadata.parquet")
    assert [example.image for example in examples(tmp_path)] == [PICTURE] * 2
    before = open_source(str(tmp_path)).origin()
    (tmp_path / "a.png").write_bytes(PICTURE + b"more")
    assert open_source(str(tmp_path)).origin() != before


def test_pictures_of_a_struct_are_not_looked_for(tmp_path):
    """Bytes that are there are the picture, whatever its path was once."""
    image = [{"bytes": PICTURE, "path": "a.png"}]
    pq.write_table(pa.table({"image": image, "text": ["one"]}), tmp_path / "x.parquet")
    before = open_source(str(tmp_path)).origin()
    (tmp_path / "a.png").write_bytes(PICTURE)
    assert open_source(f"{tmp_path}/*.parquet").origin()["listing"] == before["listing"]

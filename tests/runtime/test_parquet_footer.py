"""The sizes in Parquet footers: those that pyarrow tells, and damage that pyarrow ends the process on."""

import contextlib
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dalle_mini.errors import UserError
from dalle_mini.results.prompts import read_prompts
from dalle_mini.runtime.arrow import Footer
from dalle_mini.runtime.parquet_footer import DELTA_BYTE_ARRAY, DICTIONARY, column_chunks


def written(columns, **options):
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, **options)
    return file


TABLES = {
    "plain": ({"a": [1, None, 3] * 50, "b": ["x"] * 150}, {"row_group_size": 40}),
    "nested": ({"a": [[1, 2], [], None], "b": [{"bytes": b"x", "path": None}] * 3}, {}),
    "delta": (
        {"a": ["aa", "ab"], "t": [True, False]},
        {"use_dictionary": False, "column_encoding": {"a": "DELTA_BYTE_ARRAY"}},
    ),
    "wide": ({f"c{i}": np.arange(20.0) for i in range(40)}, {"compression": "zstd", "write_statistics": False}),
    "rich": ({"a": ["x", None]}, {"write_page_index": True, "sorting_columns": [pq.SortingColumn(0)]}),
    "empty": ({"a": pa.array([], pa.string())}, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_the_numbers_are_those_of_pyarrow(name):
    columns, options = TABLES[name]
    file = written(columns, **options)
    about, found = pq.read_metadata(file), column_chunks(file)
    assert len(found) == about.num_row_groups
    for group, chunks in enumerate(found):
        assert len(chunks) == about.num_columns
        for leaf, chunk in enumerate(chunks):
            told = about.row_group(group).column(leaf)
            assert (chunk.values, chunk.unpacked, chunk.packed) == (
                told.num_values, told.total_uncompressed_size, told.total_compressed_size,
            )  # fmt: skip
            statistics = told.statistics
            assert chunk.nulls == (statistics.null_count if statistics and statistics.has_null_count else None)
            assert bool(chunk.encodings & DICTIONARY) == any("DICTIONARY" in one for one in told.encodings)
            assert (DELTA_BYTE_ARRAY in chunk.encodings) == ("DELTA_BYTE_ARRAY" in told.encodings)


def test_a_histogram_of_the_wrong_length_does_not_end_the_process(tmp_path):
    path = tmp_path / "prompts.parquet"
    pq.write_table(pa.table({"prompt": ["a cat", None]}), path)
    two_levels, one_level = b"\x19\x26\x02\x02\0", b"\x19\x16\x82\0\0"  # field 3 of size_statistics: a list of counts
    data = path.read_bytes()
    assert data.count(two_levels) == 1
    path.write_bytes(data.replace(two_levels, one_level))  # on this pyarrow's `column()` ends the process
    with pytest.raises(UserError, match=r"prompts.parquet: cannot be read \(.*histogram"):
        read_prompts(path)


@pytest.mark.parametrize("seed", range(200))
def test_damaged_footers_are_refused_or_read(seed):
    data = bytearray(written({"a": [[1], [2, 3]], "b": ["x", None]}).getvalue())
    random = np.random.default_rng(seed)
    for _ in range(random.integers(1, 4)):
        data[random.integers(len(data) - 400, len(data) - 8)] = random.integers(256)
    with contextlib.suppress(pa.ArrowException, OSError, ValueError):
        Footer(io.BytesIO(bytes(data)))


@pytest.mark.parametrize("footer", [b"", b"\x49\xfc", b"\x49\xfc\xff\xff\xff\x0f", b"\x5c" * 30, b"\x4c" * 30, b"\x17"])
def test_nonsense_is_refused(footer):
    with pytest.raises(ValueError):
        column_chunks(io.BytesIO(b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1"))

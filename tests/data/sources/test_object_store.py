"""`gs://` with the real client and a small store on this machine that speaks Google's JSON API."""

import io
import pickle
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import bad_dataset
from dalle_mini.data.sources import open_source, reasons
from dalle_mini.errors import UserError
from object_store import serving

pytest.importorskip("gcsfs")

PICTURE = bad_dataset.packed(bad_dataset.photo(0))


@pytest.fixture
def store(monkeypatch):
    with serving(monkeypatch) as objects:
        yield objects


def outcome(spec):
    parts = pickle.loads(pickle.dumps(open_source(spec).parts()))
    return [(example.key, example.captions, example.problem) for part in parts for example in part.examples()]


def test_datasets_of_every_kind_in_a_bucket(store):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        bad_dataset.put(tar, "0.jpg", PICTURE)
        bad_dataset.put(tar, "0.txt", b"of a tar")
    pq.write_table(pa.table({"image": [PICTURE], "text": ["of Parquet"]}), table := io.BytesIO())
    store |= {
        "dataset/": b"",  # what a console puts in a folder's place
        **{f"dataset/{i:02d}.jpg": PICTURE for i in range(20)},
        **{f"dataset/{i:02d}.txt": f"number {i}".encode() for i in range(20)},
        "dataset/deep/x.jpg": b"",
        "tars/0.tar": file.getvalue(),
        "tars/1.tar": file.getvalue()[:1500],
        "parquet/x.parquet": table.getvalue(),
        "list/metadata.csv": b"file_name,text\na.jpg,one\ngs://bucket/list/a.jpg,two\n../dataset/00.jpg,three\n",
        "list/a.jpg": PICTURE,
    }
    numbers = [(f"{i:02d}", (f"number {i}",), None) for i in range(20)]
    assert outcome("gs://bucket/dataset") == [*numbers, ("deep/x", (), reasons.EMPTY_FILE)]
    tars = [("0/0", ("of a tar",), None), ("1/archive cut short", (), reasons.CUT_SHORT)]
    assert outcome("gs://bucket/tars") == outcome("gs://bucket/tars/*.tar") == tars
    gone = ("2/cannot be read", (), reasons.CANNOT_READ)
    assert outcome("gs://bucket/tars/{0..2}.tar") == [*tars, gone]
    assert (
        outcome("gs://bucket/parquet") == outcome("gs://bucket/parquet/x.parquet") == [("x/0", ("of Parquet",), None)]
    )
    assert outcome("gs://bucket/list") == [
        ("a", ("one",), None),
        ("a", ("two",), None),
        ("metadata.csv:4", ("three",), reasons.LEAVES_FOLDER),
    ]
    with pytest.raises(UserError, match="gs://bucket/none: there is no such file or folder"):
        open_source("gs://bucket/none")

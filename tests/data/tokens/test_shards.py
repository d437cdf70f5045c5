"""Token folders of strangers: what does not fit is one line that names the file and the field."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dalle_mini.data.tokens.shards import MANIFEST, Manifest
from dalle_mini.errors import UserError
from dalle_mini.reports.survey import survey
from dalle_mini.results.prompts import read_prompts
from token_folders import write_tokens


@pytest.fixture
def folder(tmp_path):
    return write_tokens(tmp_path / "tokens", 10)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rows", "10"),
        ("rows", 10.5),
        ("rows", -1),
        ("rows", 11),
        ("seen", None),
        ("kept", 2**60),
        ("codebook_use", [None]),
        ("codebook_use", [1, 2]),
        ("dropped", []),
        ("dropped", {"caption too short": "1"}),
        ("filters", [{"name": "x", "kept": "1", "dropped": 0}]),
        ("vqgan.source", [1]),
        ("vqgan.image_length", "<b>"),
        ("vqgan.image_length", 2**40),
        ("vqgan.codebook_size", 0),
        ("vqgan.resolution", None),
        ("clip", {"source": "x"}),
        ("clip", "x"),
        ("source", []),
        ("options", 3),
        ("splits", [1]),
        ("splits.train.rows", 9),
        ("splits.train.shards", [{"file": [], "rows": 10, "sha256": ""}]),
        ("splits.train.shards", [{"file": "../train-00000.parquet", "rows": 10, "sha256": ""}]),
        ("splits.train.shards", [{"file": "/etc/passwd", "rows": 10, "sha256": ""}]),
        ("splits.train.shards", [{"file": "a\u0000b.parquet", "rows": 10, "sha256": ""}]),
        ("dropped_rows", {"file": "..", "rows": 0, "sha256": ""}),
        ("dropped_rows", [1]),
        ("format", [1]),
    ],
)
def test_a_field_of_another_type_is_named(folder, field, value):
    found = json.loads((folder / MANIFEST).read_text())
    *outer, last = field.split(".")
    inner = found
    for name in outer:
        inner = inner[name]
    inner[last] = value
    (folder / MANIFEST).write_text(json.dumps(found))
    with pytest.raises(UserError, match=r"manifest.json: damaged, or of another version \(.+\): encode again") as error:
        Manifest.read(folder)
    assert "\n" not in str(error.value)


def test_nested_deep_giant_and_unknown(folder):
    text = (folder / MANIFEST).read_text()
    newer = json.loads(text) | {"made_by": "a newer version"}
    (folder / MANIFEST).write_text(json.dumps(newer))
    assert Manifest.read(folder).rows == 10
    for value in ("[" * 50_000, "[" * 50_000 + "]" * 50_000, "9" * 5000):
        (folder / MANIFEST).write_text('{"format": 1, "source": ' + value + "}")
        with pytest.raises(UserError, match=r"manifest.json: damaged"):
            Manifest.read(folder)


def changed(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, values)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda table: table.drop_columns(["crop"]), "column crop is missing"),
        (lambda table: table.append_column("crop", table["key"]), "column crop is int16 and string"),
        (lambda table: changed(table, "caption", pa.array(range(10))), "column caption is int64"),
        (lambda table: changed(table, "key", pa.array([None] * 10, pa.string())), "rows without key"),
        (lambda table: changed(table, "tokens", pa.array([[0]] * 10, pa.list_(pa.uint16(), 1))), "column tokens is"),
        (lambda table: table.slice(1), "9 rows, not 10"),
        (
            lambda table: changed(table, "caption", pa.array([b"\xff"] * 10).cast(pa.string(), safe=False)),
            "UTF8|UTF-8",
        ),
    ],
)
def test_a_shard_that_is_not_what_the_manifest_says(folder, change, named):
    path = folder / "train-00000.parquet"
    pq.write_table(change(pq.read_table(path)), path)
    with pytest.raises(UserError, match=f"train-00000.parquet: damaged.*({named})"):
        survey(folder)


def test_a_column_whose_name_is_not_utf8(tmp_path):
    folder = write_tokens(tmp_path / "tokens", 10)
    shard = folder / Manifest.read(folder).splits["train"].shards[0].file
    pq.write_table(pq.read_table(shard).append_column("prompt", pa.array(["a"] * 10)), shard)
    shard.write_bytes(shard.read_bytes().replace(b"prompt", b"pr\xffmpt"))
    with pytest.raises(UserError, match=f"{shard.name}: damaged"):
        survey(folder, rows=3, seed=0, progress=lambda done, total: None)
    with pytest.raises(UserError, match=f"{shard.name}: no Parquet file that can be read"):
        list(read_prompts(shard))

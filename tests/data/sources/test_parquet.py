"""Parquet of pictures: bytes, structs, paths; row groups as parts; keys, columns, damage."""

import datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dalle_mini.data.sources import open_source, parquet, reasons
from dalle_mini.errors import UserError
from small_datasets import PICTURE, examples


def test_bytes_columns_and_keys(tmp_path):
    table = pa.table(
        {
            "jpg": [PICTURE, None, b""],
            "caption": ["one", "two", None],
            "similarity": [0.3, None, float("nan")],
            "when": [datetime.date(2020, 1, 2)] * 3,
            "embedding": [[0.1, 0.2]] * 3,
            "thumbnail": [b"x"] * 3,
            "status": ["success", "failed", "success"],
        }
    )
    (tmp_path / "sub").mkdir()
    pq.write_table(table, tmp_path / "sub" / "00000.parquet")
    first, second, third = examples(open_source(str(tmp_path)))
    assert (first.key, first.image, first.captions) == ("sub/00000/0", PICTURE, ("one",))
    assert first.columns == {"similarity": pytest.approx(0.3), "when": "2020-01-02", "status": "success"}
    assert (second.problem, second.columns["similarity"]) == (reasons.NO_IMAGE, None)
    assert (third.problem, third.captions) == (reasons.EMPTY_FILE, ())
    assert examples(open_source(str(tmp_path), image_column="thumbnail"))[0].image == b"x"


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
def test_kinds_of_bytes(tmp_path, kind):
    pq.write_table(pa.table({"any": pa.array([PICTURE], kind), "text": ["one"]}), tmp_path / "x.parquet")
    assert examples(open_source(str(tmp_path / "x.parquet")))[0].image == PICTURE


def test_captions_of_every_form(tmp_path):
    rows = [
        {"img": PICTURE, "key": "k1", "title_clean": "A dog", "description_clean": "It barks", "captions": ["a", "b"]},
        {"img": PICTURE, "key": "k2", "title_clean": "A cat!", "description_clean": None, "captions": []},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    path = str(tmp_path / "x.parquet")

    def captions(**options):
        return [example.captions for example in examples(open_source(path, **options))]

    assert captions() == [("a", "b"), ()]
    assert captions(caption_column="title_clean") == [("A dog",), ("A cat!",)]
    assert captions(caption_column="title_clean,captions") == [("A dog", "a", "b"), ("A cat!",)]
    assert captions(caption_column="title_clean+description_clean") == [("A dog. It barks",), ("A cat!",)]
    assert [example.key for example in examples(open_source(path))] == ["k1", "k2"]
    pq.write_table(pa.Table.from_pylist(rows).drop_columns("captions"), path)
    assert captions() == [("A dog. It barks",), ("A cat!",)]


def test_parts_are_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "PART", 4)
    table = pa.table({"image": [PICTURE] * 11, "text": [str(i) for i in range(11)]})
    pq.write_table(table, tmp_path / "train-00000.parquet", row_group_size=3)
    pq.write_table(table.slice(0, 2), tmp_path / "test-00000.parquet")
    source = open_source(str(tmp_path), split="train")
    assert [part.size for part in source.parts()] == [6, 5]
    assert [part.name for part in source.parts()] == ["train-00000.parquet/0", "train-00000.parquet/6"]
    found = examples(source)
    assert [example.key for example in found] == [f"train-00000/{i}" for i in range(11)]
    assert [example.captions for example in found] == [(str(i),) for i in range(11)]
    assert source.origin() == open_source(str(tmp_path), split="train").origin()
    monkeypatch.setattr(parquet, "FEW_FILES", 1)
    source = open_source(f"{tmp_path}/*.parquet")
    assert [(part.name, part.size) for part in source.parts()] == [
        ("test-00000.parquet", None),
        ("train-00000.parquet", None),
    ]
    assert len(examples(source)) == 13


def test_paths_lead_where_they_may(tmp_path):
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "a.jpg").write_bytes(PICTURE)
    (tmp_path / "outside.jpg").write_bytes(PICTURE)
    paths = [
        "a.jpg",
        "../outside.jpg",
        str(tmp_path / "dataset" / "a.jpg"),
        (tmp_path / "dataset" / "a.jpg").as_uri(),
        "",
    ]
    pq.write_table(pa.table({"image_path": paths, "caption": ["x"] * 5}), tmp_path / "dataset" / "list.parquet")
    outside = reasons.LEAVES_FOLDER
    for spec in (str(tmp_path / "dataset"), (tmp_path / "dataset").as_uri()):
        found = examples(open_source(spec))
        assert [example.problem for example in found] == [None, outside, None, None, reasons.NO_IMAGE]
    found = examples(open_source(str(tmp_path / "dataset" / "list.parquet"), image_root=str(tmp_path)))
    assert [example.problem for example in found][1:4] == [outside, None, None]
    assert found[0].problem == reasons.CANNOT_READ  # relative to image_root now, where there is no such file


def test_addresses_on_the_web_are_for_img2dataset(tmp_path):
    pq.write_table(pa.table({"path": ["https://x/y.jpg"], "TEXT": ["one"]}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"x\.parquet: the column 'path' holds addresses.*img2dataset"):
        open_source(str(tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "--caption-column: image, label"),
        ({"image_column": "picture"}, "--image-column is 'picture'; the columns are image, label"),
        ({"caption_column": "a,label"}, "--caption-column is 'a'; the columns are"),
        ({"caption_column": "label+b"}, "--caption-column is 'b'; the columns are"),
    ],
)
def test_columns_that_are_not_clear(tmp_path, options, message):
    pq.write_table(pa.table({"image": [PICTURE], "label": [1]}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=message):
        open_source(str(tmp_path), **options)


@pytest.mark.parametrize(
    ("column", "kind"), [("number", "int64"), ("when", "date32"), ("numbers", "list<"), ("struct", "struct<")]
)
def test_columns_that_hold_something_else(tmp_path, column, kind):
    row = {"image": PICTURE, "text": "one", "number": 1, "when": datetime.date(2020, 1, 2), "numbers": [1.0]}
    pq.write_table(pa.Table.from_pylist([row | {"struct": {"x": 1}}]), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=rf"--caption-column is '{column}', which holds {kind}.*: captions are text"):
        open_source(str(tmp_path), caption_column=column)
    if column in ("number", "when"):
        with pytest.raises(UserError, match=rf"--image-column is '{column}', which holds {kind}.*: images are bytes"):
            open_source(str(tmp_path), image_column=column)


def test_a_usual_name_of_something_else_is_passed_over(tmp_path):
    table = pa.table({"image": [1], "img": [PICTURE], "caption": [7], "text": pa.array(["one"]).dictionary_encode()})
    pq.write_table(table, tmp_path / "x.parquet")
    (example,) = examples(open_source(str(tmp_path)))
    assert (example.image, example.captions) == (PICTURE, ("one",))


def test_a_file_of_other_columns_is_named(tmp_path, monkeypatch):
    pq.write_table(pa.table({"image": [PICTURE], "text": ["one"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), tmp_path / "b.parquet")  # without rows: no matter
    assert len(examples(open_source(str(tmp_path)))) == 1
    for others, missing in (
        ({"picture": [PICTURE], "text": ["x"]}, "image"),
        ({"image": [PICTURE], "alt": ["x"]}, "text"),
    ):
        pq.write_table(pa.table(others), tmp_path / "c.parquet")
        with pytest.raises(
            UserError, match=rf"c\.parquet: has no column {missing}, which the first file has: its columns"
        ):
            open_source(str(tmp_path)).parts()
    pq.write_table(pa.table({"picture": [PICTURE], "text": ["x"]}), tmp_path / "c.parquet")
    monkeypatch.setattr(parquet, "FEW_FILES", 2)  # of many files none is looked into ahead
    found = examples(open_source(str(tmp_path)))
    assert (found[1].problem, found[1].detail) == (reasons.NO_IMAGE, "no column 'image'")


def test_nothing_but_damage_is_the_users_to_know(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"PAR1nothingPAR1")
    with pytest.raises(UserError, match=r"x\.parquet: is no Parquet file that can be read"):
        open_source(str(tmp_path))


@pytest.mark.parametrize("seed", range(12))
def test_random_damage_never_raises(tmp_path, seed):
    import random

    rows = 40
    path = tmp_path / "x.parquet"
    table = pa.table({"image": [PICTURE] * rows, "text": [f"caption {i}" for i in range(rows)]})
    pq.write_table(table, path, row_group_size=10, write_page_checksum=True, use_dictionary=False)
    source = open_source(str(path))
    assert len(source.parts()) == 1  # before the damage: its footer has told how many rows there are
    chance, data = random.Random(seed), bytearray(path.read_bytes())
    for _ in range(chance.randrange(1, 6)):
        data[chance.randrange(len(data) * 9 // 10)] ^= 1 << chance.randrange(8)
    path.write_bytes(data)
    found = examples(source)
    assert len(found) == rows  # each row is there or counted
    assert {example.problem for example in found} <= {None, reasons.DAMAGED}
    for i, example in enumerate(found):
        if example.problem is None:
            assert (example.image, example.captions) == (PICTURE, (f"caption {i}",))


def test_any_file_system():
    import io

    import fsspec

    pq.write_table(pa.table({"image": [PICTURE], "text": ["one"]}), file := io.BytesIO())
    fsspec.filesystem("memory").pipe("/parquet/x.parquet", file.getvalue())
    source = open_source("memory://parquet/*.parquet")
    assert [e.captions for part in source.parts() for e in part.examples()] == [("one",)]

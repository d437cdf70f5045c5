"""Whether a dataset is still the one it was: by names, sizes, stamps and footers, wherever it lies by now."""

import logging
import os
import shutil

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import bad_dataset
from dalle_mini.data.sources import files, open_source, parquet
from dalle_mini.data.sources.fingerprint import STAMPS

PICTURE, OTHER = (bad_dataset.packed(bad_dataset.photo(seed)) for seed in (0, 1))


def told(spec, **options):
    return {name: value for name, value in open_source(str(spec), **options).origin().items() if name != "source"}


def make(kind, root):
    root.mkdir()
    table = {"image": [PICTURE, OTHER], "text": ["one", "two"]}
    if kind == "tars":
        import tarfile

        with tarfile.open(root / "0.tar", "w") as tar:
            bad_dataset.put(tar, "a.jpg", PICTURE)
    elif kind == "parquet":
        pq.write_table(pa.table(table), root / "0.parquet")
    elif kind == "saved":
        datasets = pytest.importorskip("datasets")
        datasets.Dataset.from_dict(table).save_to_disk(root)
    else:
        (root / "a.jpg").write_bytes(PICTURE)
        (root / "a.txt").write_bytes(b"one")
    if kind == "metadata":
        (root / "metadata.csv").write_text("file_name,text\na.jpg,one\n")
    elif kind == "paths":
        pq.write_table(pa.table({"file_name": ["a.jpg"], "text": ["one"]}), root / "metadata.parquet")
    return root


LONGER = {"folder": "a.jpg", "tars": "0.tar", "metadata": "a.jpg", "paths": "a.jpg"}


@pytest.mark.parametrize("kind", ["folder", "tars", "metadata", "parquet", "paths", "saved"])
def test_a_copy_is_the_same_dataset_and_other_content_is_another(tmp_path, monkeypatch, kind):
    dataset = make(kind, tmp_path / "dataset")
    before = told(dataset)
    monkeypatch.chdir(tmp_path)
    assert told("dataset") == told("dataset/") == before
    copy = shutil.copytree(dataset, tmp_path / "copy")  # with its times
    assert told(copy) == before
    for path in copy.rglob("*"):
        os.utime(path, (1, 1))
    assert {name for name, value in told(copy).items() if before[name] != value} == {STAMPS}
    if kind in LONGER:
        (copy / LONGER[kind]).write_bytes((copy / LONGER[kind]).read_bytes() + bytes(512))
    elif kind == "parquet":
        pq.write_table(pa.table({"image": [PICTURE, PICTURE], "text": ["one", "owt"]}), copy / "0.parquet")
    else:
        shutil.rmtree(copy)
        pytest.importorskip("datasets").Dataset.from_dict({"image": [OTHER], "text": ["x"]}).save_to_disk(copy)
    changed = {name for name, value in told(copy).items() if before[name] != value}
    assert changed >= {STAMPS, "listing", *(["footers"] if kind == "parquet" else ())}, changed


def test_an_edit_that_keeps_the_size_is_known_by_its_time(tmp_path):
    dataset = make("folder", tmp_path / "dataset")
    before = told(dataset)
    (dataset / "a.txt").write_bytes(b"two")
    os.utime(dataset / "a.txt", ns=(1, 2))
    assert told(dataset) == before | {STAMPS: told(dataset)[STAMPS]} != before


def test_the_footer_of_parquet_tells_too(tmp_path):
    """The files have equal sizes, and equal times as far as anyone can tell."""
    origins = []
    for text in ("one", "two"):
        pq.write_table(pa.table({"image": [PICTURE], "text": [text]}), tmp_path / "x.parquet", compression="none")
        os.utime(tmp_path / "x.parquet", (1, 1))
        origins.append(told(tmp_path / "x.parquet"))
    assert {name for name in origins[0] if origins[0][name] != origins[1][name]} == {"footers"}


def test_files_are_not_opened_for_it(tmp_path, monkeypatch):
    dataset = make("folder", tmp_path / "dataset")
    monkeypatch.setattr(files, "read", None)
    assert told(dataset)["files"] == 2 and told(dataset)["bytes"] == len(PICTURE) + 3
    many = make("parquet", tmp_path / "many")
    monkeypatch.setattr(parquet, "FEW_FILES", 0)
    monkeypatch.setattr(parquet, "_divided", None)
    with monkeypatch.context() as patched:
        patched.setattr(parquet, "_first_schema", lambda fs, paths: pq.read_schema(paths[0]))
        assert told(many)["files"] == 1


def test_what_is_not_of_the_dataset_does_not_matter(tmp_path):
    dataset = make("folder", tmp_path / "dataset")
    before = told(dataset)
    (dataset / "encoded").mkdir()
    (dataset / "encoded" / "manifest.json").write_text("{}")
    (dataset / "notes.md").write_text("x")
    assert told(dataset) == before


def test_in_a_store_sizes_and_checksums_are_those_of_its_lists(monkeypatch):
    fs = fsspec.filesystem("memory")
    for name in ("0.tar", "1.tar"):
        fs.pipe(f"/fingerprint/{name}", bytes(1024))
    before = told("memory://fingerprint")
    assert STAMPS not in before and before["bytes"] == 2048
    asked = type(fs).info
    monkeypatch.setattr(type(fs), "info", lambda self, path, **more: asked(self, path) if "." not in path else 1 / 0)
    assert told("memory://fingerprint") == before
    fs.pipe("/fingerprint/1.tar", bytes(2048))
    assert told("memory://fingerprint")["listing"] != before["listing"]
    summed = files.File.of_store({"name": "b/0.tar", "size": 3, "ETag": '"x"', "type": "file"})
    assert summed == ("0.tar", 3, '"x"')


@pytest.mark.parametrize("kind", ["metadata", "paths"])
def test_pictures_that_no_table_lists_are_told_of(tmp_path, caplog, kind):
    dataset = make(kind, tmp_path / "dataset")
    with caplog.at_level(logging.WARNING, "dalle_mini"):
        told(dataset)
    assert not caplog.messages
    for name in ("b.jpg", "c.png"):
        (dataset / name).write_bytes(PICTURE)
    with caplog.at_level(logging.WARNING, "dalle_mini"):
        told(dataset)
    assert caplog.messages == [f"{dataset}: 2 of its 3 images are in no table there, and are not used"]

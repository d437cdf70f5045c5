"""Hugging Face data sets: saved to disk, folders that load_dataset reads, and a Hub, streamed or downloaded."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dalle_mini.data.sources import huggingface, open_source, reasons
from dalle_mini.errors import UserError
from small_datasets import PICTURES, examples, made

datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.usefixtures("apart")


def test_save_to_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface, "PART", 4)
    made().save_to_disk(tmp_path / "saved")
    source = open_source(str(tmp_path / "saved"))
    assert [part.size for part in source.parts()] == [4, 4, 2]
    found = examples(source)
    assert [example.image for example in found] == PICTURES  # the files' own bytes, not decoded and packed again
    assert [example.captions for example in found] == [(f"caption {i}",) for i in range(10)]
    assert [example.key for example in found] == [f"all/{i}" for i in range(10)]
    assert found[3].columns == {"score": 0.3}
    assert source.origin()["rows"] == 10


def test_splits_of_save_to_disk(tmp_path):
    datasets.DatasetDict({"train": made(3), "test": made(2)}).save_to_disk(tmp_path / "saved")
    assert len(examples(open_source(str(tmp_path / "saved")))) == 3
    assert [e.key for e in examples(open_source(str(tmp_path / "saved"), split="test"))] == ["test/0", "test/1"]
    with pytest.raises(UserError, match="--split is 'all'; there are train, test"):
        open_source(str(tmp_path / "saved"), split="all")
    datasets.DatasetDict({"a": made(3), "b": made(2)}).save_to_disk(tmp_path / "other")
    with pytest.raises(UserError, match=r"which split.*a, b"):
        open_source(str(tmp_path / "other"))


@pytest.mark.parametrize("streaming", [True, False])
def test_a_folder_of_parquet_through_load_dataset(tmp_path, streaming):
    (tmp_path / "data").mkdir()
    made(6, key=[f"k{i}" for i in range(6)]).to_parquet(tmp_path / "data" / "train-00000-of-00002.parquet")
    made(4, key=["x", "x", "y", ""]).to_parquet(tmp_path / "data" / "train-00001-of-00002.parquet")
    source = open_source(f"hf://{tmp_path}", streaming=streaming)
    found = examples(source)
    assert len(source.parts()) == (2 if streaming else 1)
    assert [example.key for example in found][:7] == ["k0", "k1", "k2", "k3", "k4", "k5", "x"]
    assert [example.key for example in found][7:9] == ["x", "y"]  # over the dataset encoding sees which are not new
    assert [example.image for example in found] == PICTURES[:6] + PICTURES[:4]
    direct = [(e.key, e.captions, e.columns) for e in examples(open_source(str(tmp_path)))]
    assert [(e.key, e.captions, e.columns) for e in found][:9] == direct[:9]  # but for the place of a row without key


def test_a_damaged_file_is_counted_and_the_others_kept(tmp_path):
    (tmp_path / "data").mkdir()
    made(6).to_parquet(tmp_path / "data" / "train-00000-of-00002.parquet")
    made(4).to_parquet(tmp_path / "data" / "train-00001-of-00002.parquet")
    source = open_source(f"hf://{tmp_path}", streaming=True)
    parts = source.parts()
    (tmp_path / "data" / "train-00000-of-00002.parquet").write_bytes(b"PAR1 no more PAR1")
    found = [example for part in parts for example in part.examples()]
    assert [example.problem for example in found] == [reasons.CANNOT_READ, None, None, None, None]


def test_text_columns_that_hold_paths(tmp_path):
    (tmp_path / "a.jpg").write_bytes(PICTURES[0])
    rows = {"file_name": ["a.jpg", "/etc/passwd", "../x.jpg", "https://x/y.jpg"], "text": ["one"] * 4}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "saved")
    outside = reasons.LEAVES_FOLDER
    found = examples(open_source(str(tmp_path / "saved"), image_root=str(tmp_path)))
    assert [example.problem for example in found] == [None, outside, outside, outside]
    assert found[0].image == PICTURES[0]


@pytest.mark.parametrize("path", ["hub/datasets--their--own/a.jpg", "token.jpg"])
def test_other_data_sets_in_the_cache_are_not_read(tmp_path, monkeypatch, path):
    cache = tmp_path / "huggingface"
    (cache / path).parent.mkdir(parents=True)
    (cache / path).write_bytes(PICTURES[0])
    monkeypatch.setattr(datasets.config, "HF_CACHE_HOME", str(cache))
    rows = {"file_name": [path, str(cache / path)], "text": ["one"] * 2}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "saved")
    found = examples(open_source(str(tmp_path / "saved")))
    assert [example.image for example in found] == [None, None]


def test_labels_are_captions_by_their_names(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"image": [{"bytes": PICTURES[0], "path": None}] * 3, "label": [1, 0, None]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    found = examples(open_source(str(tmp_path / "saved"), caption_column="label"))
    assert [example.captions for example in found] == [("dog",), ("cat",), ()]
    with pytest.raises(UserError, match="which column holds the captions"):  # no one has asked for them
        open_source(str(tmp_path / "saved"))
    with pytest.raises(UserError, match="--image-column is 'label', which holds int64: images are bytes or paths"):
        open_source(str(tmp_path / "saved"), image_column="label", caption_column="label")


ON_THE_HUB = """
import json, sys
from dalle_mini.data.sources import open_source
from dalle_mini.errors import UserError
said = []
for spec, options in json.loads(sys.argv[1]):
    try:
        source = open_source(spec, **options)
        rows = [(e.key, list(e.captions), len(e.image or b"")) for part in source.parts() for e in part.examples()]
        said.append({"origin": source.origin(), "rows": rows})
    except UserError as error:
        said.append(str(error))
print(json.dumps(said))
"""


def test_the_hub_streamed_and_downloaded(tmp_path):
    from datasets_hub import DatasetsHub

    hub = DatasetsHub()
    files = {}
    for number, rows in enumerate((6, 4)):
        made(rows).to_parquet(tmp_path / "x.parquet")
        files[f"data/train-{number:05d}-of-00002.parquet"] = (tmp_path / "x.parquet").read_bytes()
    old = hub.commit("them/pictures", {"data/train-00000-of-00001.parquet": files.popitem()[1]}, "old")
    files["data/train-00001-of-00002.parquet"] = hub.commits[old]["data/train-00000-of-00001.parquet"]
    new = hub.commit("them/pictures", files)
    hub_settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    path = os.pathsep.join([str(Path(__file__).parents[3] / "src"), os.environ.get("PYTHONPATH", "")])
    asked = [
        ("them/pictures", {}),
        ("hf://them/pictures", {"streaming": False}),
        ("hf://them/pictures@old", {}),
        ("them/nothing", {}),
        ("them/pictures", {"split": "test"}),
        ("hf://datasets/them/pictures/data/*.parquet", {}),
    ]
    env = {key: value for key, value in os.environ.items() if key != "HF_TOKEN"} | hub_settings | {"PYTHONPATH": path}
    try:
        done = subprocess.run(
            [sys.executable, "-c", ON_THE_HUB, json.dumps(asked)], env=env, capture_output=True, text=True, timeout=300
        )
    finally:
        hub.close()
    assert done.returncode == 0, done.stderr
    streamed, downloaded, earlier, missing, split, files = json.loads(done.stdout)
    captions = [[f"caption {i}"] for i in [*range(6), *range(4)]]
    assert [caption for _, caption, _ in streamed["rows"]] == captions
    assert [caption for _, caption, _ in downloaded["rows"]] == captions
    assert [size for _, _, size in streamed["rows"]] == [len(PICTURES[i]) for i in [*range(6), *range(4)]]
    assert [key for key, _, _ in streamed["rows"]][5:7] == ["train/00000/5", "train/00001/0"]
    assert [key for key, _, _ in downloaded["rows"]][5:7] == ["train/5", "train/6"]
    assert streamed["origin"]["revision"] == downloaded["origin"]["revision"] == new
    assert earlier["origin"]["revision"] == old
    assert len(earlier["rows"]) == 4
    assert "them/nothing: there is no such folder, and it cannot be opened as a Hugging Face data set" in missing
    assert "--split is 'test'; there are train" in split
    assert [caption for _, caption, _ in files["rows"]] == captions
    assert files["origin"]["kind"] == "parquet"

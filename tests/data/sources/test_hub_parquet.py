"""Parquet of Hugging Face data sets in bounds: as `datasets` reads it, but never a row group unpacked."""

import json
import os
import subprocess
import sys

import pyarrow as pa
import pytest

from dalle_mini.data.sources import hub_parquet, open_source, reasons
from dalle_mini.errors import UserError
from dalle_mini.runtime import limits
from small_datasets import PICTURE, examples, list_of, same, struct_of, write

datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.usefixtures("apart")
BIG = 2 << 20
BOMBS = {
    "struct": lambda: {"image": struct_of(same(b"\xff" * BIG, 300, pa.binary())), "text": ["a"] * 300},
    "few": lambda: {"image": struct_of(same(b"\xff" * (40 << 20), 20, pa.binary())), "text": ["a"] * 20},
    "captions": lambda: {"image": [PICTURE], "text": list_of(same("x" * BIG, 300, pa.string()))},
    "unasked": lambda: {"image": [b"x"] * 300, "text": ["a"] * 300, "author": same("k" * BIG, 300, pa.string())},
}
MEASURED = """
import json, sys
import datasets, pyarrow as pa
from dalle_mini.data.sources import open_source
said = {}
for folder in sys.argv[1:]:
    source = open_source("hf://" + folder, streaming="few" in folder, image_column="image", caption_column="text")
    said[folder.split("/")[-1]] = [example.problem for part in source.parts() for example in part.examples()]
print(json.dumps([pa.default_memory_pool().max_memory() >> 20, said]))
"""


def put(folder, columns, shard=0, of=1, **options):
    (folder / "data").mkdir(parents=True, exist_ok=True)
    return write(folder / "data" / f"train-{shard:05d}-of-{of:05d}.parquet", columns, **options)


@pytest.mark.slow
def test_files_of_a_kilobyte_that_become_gigabytes(tmp_path):
    names = ["struct", "unasked", "few"]
    for name in names:
        assert put(tmp_path / name, BOMBS[name]()).stat().st_size < 100_000
    env = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    folders = [str(tmp_path / name) for name in names]
    done = subprocess.run([sys.executable, "-c", MEASURED, *folders], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-500:]
    taken, problems = json.loads(done.stdout.splitlines()[-1])
    assert taken < 300, f"{taken} MB"
    assert problems == {"struct": [None] * 300, "unasked": [None] * 300, "few": [None] * 20}


def test_a_list_that_repeats_a_value(tmp_path):
    put(tmp_path, BOMBS["captions"]())
    options = {"image_column": "image", "caption_column": "text"}
    assert [e.problem for e in examples(open_source(f"hf://{tmp_path}", **options))] == [reasons.EXPANDS]
    with pytest.raises(UserError, match=r"a Parquet file of it expands too far.*limit parquet_bytes"):
        open_source(f"hf://{tmp_path}", streaming=False, **options)


def test_a_shard_that_expands_costs_itself(tmp_path, monkeypatch):
    monkeypatch.setenv(limits.VARIABLE, "parquet_bytes=1000")
    put(tmp_path, {"image": same(bytes(100_000), 50, pa.binary()), "text": ["a"] * 50}, 0, 2)
    put(tmp_path, {"image": [PICTURE] * 3, "text": ["a"] * 3}, 1, 2)
    found = [e.problem for e in examples(open_source(f"hf://{tmp_path}", image_column="image"))]
    assert found == [None] * (len(found) - 4) + [reasons.EXPANDS] + [None] * 3


CARD = """---
dataset_info:
  features:
  - {name: image, dtype: image}
  - {name: text, sequence: string}
  - {name: label, dtype: {class_label: {names: {'0': cat, '1': dog}}}}
  - {name: number, dtype: string}
  - {name: zeros, sequence: float32}
  - {name: absent, dtype: string}
---
"""


@pytest.mark.parametrize("card", [CARD, "", "---\nconfigs:\n- {config_name: default, data_files: data/*, "
                                  "columns: [text, image, number], filters: [[number, '>', 3]]}\n---\n"])  # fmt: skip
@pytest.mark.parametrize("streaming", [True, False])
def test_it_is_read_as_the_library_reads_it(tmp_path, card, streaming, monkeypatch):
    pictures = [{"bytes": PICTURE + bytes([i % 3]), "path": "a.png"} if i % 4 else None for i in range(23)]
    columns = {
        "image": pa.array(pictures, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        "text": [["a", None, f"b{i % 2}"] if i % 5 else None for i in range(23)],
        "label": pa.array([["cat", "dog", None][i % 3] for i in range(23)], pa.large_string()),
        "number": list(range(23)),
        "zeros": [[0.0] * 4] * 23,
    }
    put(tmp_path, columns, row_group_size=5)
    (tmp_path / "README.md").write_text(card)

    def rows(dataset):
        return list(dataset.cast_column("image", datasets.Image(decode=False)))

    wanted = datasets.load_dataset(str(tmp_path), split="train", streaming=streaming)
    monkeypatch.setattr(hub_parquet, "BATCH_BYTES", 2 * len(PICTURE))
    builder = datasets.load_dataset_builder(str(tmp_path), cache_dir=str(tmp_path / "anew"))
    hub_parquet.bound(builder)
    if streaming:
        found = builder.as_streaming_dataset(split="train")
    else:
        builder.download_and_prepare()
        found = builder.as_dataset(split="train")
    assert found.features == wanted.features
    assert rows(found) == rows(wanted)


def test_numbers_that_expand_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setenv(limits.VARIABLE, "parquet_chunk=100000")
    zeros = pa.FixedSizeListArray.from_arrays(pa.array([0.0] * 100_000), 10_000)
    columns = {"image": [PICTURE] * 10, "text": ["a"] * 10, "zeros": zeros}
    put(tmp_path, columns, use_dictionary=False)
    found = examples(open_source(f"hf://{tmp_path}", image_column="image"))
    assert [(e.problem, e.image) for e in found] == [(None, PICTURE)] * 10

"""A Hugging Face data set may name its own files, and no other."""

import io
import json
import tarfile
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import bad_dataset
from dalle_mini.data.sources import files, hub_paths, open_source, reasons
from dalle_mini.errors import UserError
from small_datasets import PICTURES, examples, made

datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.usefixtures("apart")
OWN = "hf://datasets/them/set@main"


@pytest.mark.parametrize("url", [f"{OWN}/a.png", f"zip://in/a.png::{OWN}/a.zip", f"gzip://a::{OWN}/a.gz",
                                 f"tar://a.png::{OWN}/a.tar", "hf://datasets/them/set/a.png"])  # fmt: skip
def test_addresses_of_its_own_files(url):
    assert hub_paths.split_url(url, "Them/Set")[2] == url.rpartition("::")[2]


@pytest.mark.parametrize(
    "url",
    [
        f"reference://f::{OWN}/x.json",
        f"filecache://f::{OWN}/x",
        f"zip://a::zip://b::{OWN}/x.zip",
        f"zip://a::reference://f::{OWN}/x.json",
        "zip://a::file:///etc/x.zip",
        "file:///etc/passwd",
        "hf://datasets/me/private@main/a.png",
        "hf://them/set/a.png",
        "hf://buckets/them/set/a.png",
        f"{OWN}/../../me/private/resolve/main/a.png",
        "hf://datasets/them/set@main/../../private/a.png",
        "hf://datasets/them/set@x/../y/../../a.png",
        "http://169.254.169.254/latest",
        "dir::hf://datasets/them/set/a.png",
    ],
)
def test_addresses_that_leave_it(url):
    with pytest.raises(files.Unreadable, match=reasons.LEAVES_FOLDER):
        hub_paths.read_url(url, "them/set")


def test_members_of_its_archives(monkeypatch):
    """With a memory's files instead of the Hub's."""
    import fsspec

    memory = fsspec.filesystem("memory")
    with zipfile.ZipFile(zipped := io.BytesIO(), "w") as archive:
        archive.writestr("a.png", b"zipped")
    with tarfile.open(fileobj=(tarred := io.BytesIO()), mode="w") as archive:
        bad_dataset.put(archive, "a.png", b"tarred")
    memory.pipe({"/set/a.zip": zipped.getvalue(), "/set/a.tar": tarred.getvalue()})
    monkeypatch.setattr(hub_paths, "split_url", lambda url, name: tuple(url.split(" ")))
    assert hub_paths.read_url("zip a.png memory://set/a.zip", "") == b"zipped"
    assert hub_paths.read_url("tar a.png memory://set/a.tar", "") == b"tarred"
    with pytest.raises(files.Unreadable, match=reasons.CANNOT_READ):
        hub_paths.read_url("zip b.png memory://set/a.zip", "")


CARDS = [
    "configs:\n- config_name: default\n  data_files: {}\n",
    "configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: {}\n",
    "configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: [data/*, {}]\n",
    "configs:\n- config_name: default\n  data_dir: {}\n",
]


@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize("where", ["/etc/*.txt", "../other/*", "data/../../x", "file:///etc/passwd", "~/x", "https://x/y",
                                   "reference://f::hf://datasets/evil/set/x.json", "zip://*::../x.zip"])  # fmt: skip
@pytest.mark.parametrize("name", ["README.md", ".huggingface.yaml"])
def test_a_readme_that_names_other_files(tmp_path, card, where, name):
    (tmp_path / "data").mkdir()
    made(2).to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    text = card.format(json.dumps(where))
    (tmp_path / name).write_text(f"---\n{text}---\n# A data set\n" if name == "README.md" else text)
    with pytest.raises(UserError, match=rf"{name}: data_(files|dir) leads out of the data set: "):
        open_source(f"hf://{tmp_path}")


def test_a_readme_that_names_its_own_files(tmp_path):
    (tmp_path / "data").mkdir()
    made(2).to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    (tmp_path / "README.md").write_text("---\n" + CARDS[1].format("data/train-*.parquet") + "---\n# A data set\n")
    assert len(examples(open_source(f"hf://{tmp_path}"))) == 2


def test_a_saved_data_set_that_names_other_files(tmp_path):
    made(2).save_to_disk(tmp_path / "private")
    made(2).save_to_disk(tmp_path / "saved")
    state = json.loads((tmp_path / "saved" / "state.json").read_text())
    (private,) = (tmp_path / "private").glob("*.arrow")
    for name in (str(private), f"../private/{private.name}"):
        state["_data_files"] = [{"filename": name}]
        (tmp_path / "saved" / "state.json").write_text(json.dumps(state))
        with pytest.raises(UserError, match=r"what save_to_disk wrote names .*, which is not in it"):
            open_source(str(tmp_path / "saved"))
    state["_data_files"] = []
    (tmp_path / "saved" / "state.json").write_text(json.dumps(state))
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["../private"]}')
    with pytest.raises(UserError, match=r"names '\.\./private', which is not in it"):
        open_source(str(tmp_path / "saved"))


@pytest.mark.parametrize("streaming", [True, False])
def test_no_column_is_decoded(tmp_path, streaming):
    """`datasets` would open whatever path a column of pictures, sounds or scans names, also unasked."""
    (tmp_path / "data").mkdir()
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    named = pa.array([{"bytes": None, "path": str(tmp_path / "private.png")}], kind)
    features = {"image": {"_type": "Image"}, "key": {"_type": "Image"}, "text": {"_type": "Value", "dtype": "string"}}
    image = pa.array([{"bytes": PICTURES[0], "path": None}], kind)
    table = pa.table({"image": image, "key": named, "text": ["one"]})
    told = json.dumps({"info": {"features": features}})
    pq.write_table(
        table.replace_schema_metadata({"huggingface": told}), tmp_path / "data" / "train-00000-of-00001.parquet"
    )
    (example,) = examples(open_source(f"hf://{tmp_path}", streaming=streaming))
    assert (example.problem, example.image, example.captions) == (None, PICTURES[0], ("one",))


@pytest.mark.parametrize("streaming", [True, False])
def test_one_odd_date_costs_nothing(tmp_path, streaming):
    (tmp_path / "data").mkdir()
    dates = pa.array([1, 10**7, 1], pa.int32()).cast(pa.date32())
    texts = pa.Array.from_buffers(pa.string(), 3, pa.array([b"a tea", b"a caf\xe9", b"a cup"]).buffers())
    table = pa.table({"image": pa.array(PICTURES[:3]), "text": texts, "taken": dates})
    pq.write_table(table, tmp_path / "data" / "train-00000-of-00001.parquet")
    found = examples(open_source(f"hf://{tmp_path}", image_column="image", streaming=streaming))
    assert [example.problem for example in found] == [None] * 3
    assert [example.captions for example in found] == [("a tea",), ("a café",), ("a cup",)]
    assert [example.columns["taken"] for example in found] == ["1970-01-02", None, "1970-01-02"]

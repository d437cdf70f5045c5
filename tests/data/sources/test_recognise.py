"""The kind of dataset that a path, pattern or name is, and what is said where it is none."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import bad_dataset
from dalle_mini.data.sources import files, open_source
from dalle_mini.errors import UserError

PICTURE = bad_dataset.packed(bad_dataset.photo(0))


def kind(spec, **options):
    return open_source(str(spec), **options).origin()["kind"]


def test_what_is_there_tells_the_kind(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.jpg").write_bytes(PICTURE)
    assert kind(tmp_path) == "folder"
    # img2dataset's files: pictures in folders, and a table of what became of them beside
    pq.write_table(pa.table({"url": ["https://x"], "caption": ["x"], "key": ["0"]}), tmp_path / "a.parquet")
    assert kind(tmp_path) == "folder"
    pq.write_table(pa.table({"image_path": ["a/x.jpg"], "caption": ["x"]}), tmp_path / "a.parquet")
    assert kind(tmp_path) == "parquet"
    (tmp_path / "a" / "metadata.csv").write_text("file_name,text\nx.jpg,one\n")
    assert kind(tmp_path) == "metadata"
    assert kind(tmp_path / "a" / "metadata.csv") == "metadata"
    (tmp_path / "tars").mkdir()
    (tmp_path / "0.tar").write_bytes(bytes(1024))
    (tmp_path / "tars" / "0.tar").write_bytes(bytes(1024))
    (tmp_path / "tars" / "0.parquet").write_bytes((tmp_path / "a.parquet").read_bytes())  # statistics of img2dataset
    assert kind(tmp_path / "tars") == kind(tmp_path / "0.tar") == kind(f"{tmp_path}/*.tar") == "webdataset"
    assert kind(tmp_path / "a.parquet") == kind(f"{tmp_path}/{{a,b}}.parquet") == "parquet"


@pytest.mark.parametrize(
    ("stray", "pattern"), [("backup.tgz", "*.tgz"), ("old/x.tar", "old/*.tar"), ("y.tar.gz", "*.tar.gz")]
)
def test_a_stray_archive_hides_no_pictures(tmp_path, stray, pattern):
    (tmp_path / "a.jpg").write_bytes(PICTURE)
    (tmp_path / stray).parent.mkdir(exist_ok=True)
    (tmp_path / stray).write_bytes(bytes(1024))
    with pytest.raises(UserError) as caught:
        open_source(str(tmp_path))
    wanted = f"holds images and tars ({stray}): name '{tmp_path}/{pattern}' for the tars, or move them away"
    assert str(caught.value) == f"{tmp_path}: {wanted}"
    assert kind(f"{tmp_path}/{pattern}") == "webdataset"


def test_a_metadata_parquet_lists_pictures(tmp_path):
    (tmp_path / "x.jpg").write_bytes(PICTURE)
    pq.write_table(pa.table({"file_name": ["x.jpg"], "text": ["one"]}), tmp_path / "metadata.parquet")
    (example,) = (e for part in open_source(str(tmp_path)).parts() for e in part.examples())
    assert (example.image, example.captions) == (PICTURE, ("one",))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere", "there is no such file or folder"),
        ("./no/where", "there is no such file or folder"),
        ("*.tar", "matches no file"),
        ("empty", "holds no images, tars or Parquet"),
        ("urls.csv", "img2dataset"),
        ("urls.txt", "img2dataset"),
        ("notes.md", "images are read from"),
        ("strange://x/y", "cannot be reached"),
        ("memory://nothing/here", "there is no such file or folder"),
    ],
)
def test_what_is_no_dataset(tmp_path, monkeypatch, spec, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for name in ("urls.csv", "urls.txt", "notes.md"):
        (tmp_path / name).write_text("x")
    with pytest.raises(UserError, match=message) as caught:
        open_source(spec)
    assert "\n" not in str(caught.value)
    assert spec in str(caught.value)


def test_a_store_whose_library_is_missing(monkeypatch):
    import fsspec.registry

    def missing(protocol):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "get_filesystem_class", missing)
    with pytest.raises(UserError, match=r"s3://bucket/x: Install s3fs"):
        open_source("s3://bucket/x")


def test_braces():
    assert files.expand("a{08..11}.tar") == ["a08.tar", "a09.tar", "a10.tar", "a11.tar"]
    assert files.expand("{x,y}/{0..1}") == ["x/0", "x/1", "y/0", "y/1"]
    assert files.expand("plain") == ["plain"]
    with pytest.raises(UserError, match="more than"):
        files.expand("{0..999999999}")


def test_no_option_reaches_out_of_the_dataset(tmp_path):
    fs, root = files.locate(str(tmp_path))
    for path in ("../x", "/etc/passwd", "a/../../x", "s3://b/x", "http://h/x", "file:///etc/passwd", ".", "", "a\0b"):
        with pytest.raises(files.Unreadable):
            files.inside(fs, root, root, path)
    assert files.inside(fs, root, root, "a/../b.jpg") == f"{root}/b.jpg"
    assert files.inside(fs, root, f"{root}/a", "../b.jpg") == f"{root}/b.jpg"

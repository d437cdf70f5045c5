"""Encoded folders in a bucket: copied once, whole or not at all."""

import os
import shutil

import fsspec
import pytest

from dalle_mini.data.tokens.dataset import TokenDataset
from dalle_mini.data.tokens.fetch_bucket import fetch_tokens
from dalle_mini.errors import UserError
from dalle_mini.runtime.folders import RemoteFolder
from token_folders import VQGAN, write_notebook, write_tokens

ADDRESS = "memory://bucket/tokens"


@pytest.fixture
def bucket():
    """Puts a local folder into the bucket."""
    files = fsspec.filesystem("memory")
    files.store.clear()

    def put(folder):
        for path in folder.rglob("*"):
            if path.is_file():
                files.pipe_file(f"/bucket/tokens/{path.relative_to(folder)}", path.read_bytes())

    yield put
    files.store.clear()


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_it_is_copied_once(bucket, tmp_path, arrow_cache, monkeypatch):
    bucket(folder := write_tokens(tmp_path / "local", {"train": 150, "validation": 20}))
    place = fetch_tokens(ADDRESS, tmp_path / "cache")
    assert names(place) == ["manifest.json", "train-00000.parquet", "train-00001.parquet", "validation-00000.parquet"]
    assert TokenDataset(place).digest == TokenDataset(folder).digest
    monkeypatch.setattr(RemoteFolder, "fetch", lambda *_: pytest.fail("fetched again"))
    assert fetch_tokens(ADDRESS + "/", tmp_path / "cache") == place


def test_other_data_at_the_same_address_is_another_copy(bucket, tmp_path):
    bucket(write_tokens(tmp_path / "one", 10))
    first = fetch_tokens(ADDRESS, tmp_path / "cache")
    bucket(write_tokens(tmp_path / "two", 20))
    second = fetch_tokens(ADDRESS, tmp_path / "cache")
    assert first != second and first.is_dir() and second.is_dir()


def test_what_was_cut_short_is_gone_on_with(bucket, tmp_path, monkeypatch):
    bucket(write_tokens(tmp_path / "local", 250))
    fetched, fetch = [], RemoteFolder.fetch

    def two_only(self, name, path):
        if len(fetched) == 2:
            raise UserError("the network is gone")
        fetched.append(name)
        fetch(self, name, path)

    monkeypatch.setattr(RemoteFolder, "fetch", two_only)
    with pytest.raises(UserError, match="the network is gone"):
        fetch_tokens(ADDRESS, tmp_path / "cache")
    assert not [entry for entry in (tmp_path / "cache").glob("tokens-*") if not entry.suffix]  # none that looks whole
    monkeypatch.setattr(RemoteFolder, "fetch", lambda self, name, path: (fetched.append(name), fetch(self, name, path)))
    assert len(names(fetch_tokens(ADDRESS, tmp_path / "cache"))) == 4
    assert fetched == ["train-00000.parquet", "train-00001.parquet", "train-00002.parquet"]


def test_a_full_disk_is_one_line_and_with_room_it_goes_on(bucket, tmp_path, full_disk):
    bucket(write_tokens(tmp_path / "local", 250))
    with full_disk(100), pytest.raises(UserError, match=r"cannot be copied to .+ \(File too large\)$"):
        fetch_tokens(ADDRESS, tmp_path / "cache")
    assert not names(tmp_path / "cache") or all(name.endswith(".lock") for name in names(tmp_path / "cache"))
    assert len(names(fetch_tokens(ADDRESS, tmp_path / "cache"))) == 4


def test_links_in_the_cache_are_not_followed(bucket, tmp_path):
    bucket(write_tokens(tmp_path / "local", 10))
    place = fetch_tokens(ADDRESS, tmp_path / "cache")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "precious").write_text("x")
    shutil.rmtree(place)
    lock, partial = (place.with_name(f"{place.name}.{end}") for end in ("lock", "partial"))
    partial.symlink_to(tmp_path / "theirs")
    assert fetch_tokens(ADDRESS, tmp_path / "cache") == place and os.listdir(tmp_path / "theirs") == ["precious"]
    lock.unlink()
    lock.symlink_to(tmp_path / "theirs" / "precious")
    with pytest.raises(UserError, match="cannot be copied there"):
        fetch_tokens(ADDRESS, tmp_path / "cache")
    assert (tmp_path / "theirs" / "precious").read_text() == "x"


def test_a_damaged_shard_is_not_taken(bucket, tmp_path):
    folder = write_tokens(tmp_path / "local", 10)
    shard = folder / "train-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-9] + b"123456789")
    bucket(folder)
    with pytest.raises(UserError, match=r"memory://bucket/tokens/train-00000.parquet: damaged"):
        fetch_tokens(ADDRESS, tmp_path / "cache")
    assert all(not entry.is_dir() or entry.suffix == ".partial" for entry in (tmp_path / "cache").iterdir())


@pytest.mark.parametrize("text", [b"", b"[]", b'{"format": 1}'])
def test_a_damaged_manifest(bucket, tmp_path, text):
    folder = write_tokens(tmp_path / "local", 10)
    (folder / "manifest.json").write_bytes(text)
    bucket(folder)
    with pytest.raises(UserError, match=r"manifest.json: damaged"):
        fetch_tokens(ADDRESS, tmp_path / "cache")


def test_a_manifest_that_leaves_its_folder(bucket, tmp_path):
    folder = write_tokens(tmp_path / "local", 10)
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace("train-00000.parquet", "../../train.parquet"))
    bucket(folder)
    with pytest.raises(UserError, match=r"'../../train.parquet' is no shard's name"):
        fetch_tokens(ADDRESS, tmp_path / "cache")


def test_the_originals_shards(bucket, tmp_path, arrow_cache):
    folder = write_notebook(tmp_path / "local" / "train", 30).parent
    write_notebook(folder / "validation", 8, files=1)
    bucket(folder)
    place = fetch_tokens(ADDRESS, tmp_path / "cache")
    assert names(place) == ["train/001.parquet", "train/002.parquet", "validation/001.parquet"]
    assert len(TokenDataset(place, vqgan=VQGAN)) == 30
    assert len(TokenDataset(place, "validation", vqgan=VQGAN)) == 8


def test_a_dataset_of_pictures_is_not_copied(bucket, tmp_path):
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "a.jpg").write_bytes(b"x")
    bucket(tmp_path / "local")
    for address in (ADDRESS, "memory://bucket/nothing", "memory://bucket/x.parquet"):
        assert fetch_tokens(address, tmp_path / "cache") is None
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_cannot_be_written(bucket, tmp_path):
    bucket(write_tokens(tmp_path / "local", 10))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be copied there .*XDG_CACHE_HOME"):
        fetch_tokens(ADDRESS, tmp_path / "file" / "cache")

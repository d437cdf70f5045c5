"""Files appear whole or not at all, locks, and folders in a bucket."""

import contextlib

import fsspec
import pytest

from dalle_mini.data.encode.encoders import Weights
from dalle_mini.data.encode.job import encode
from dalle_mini.errors import UserError
from dalle_mini.runtime.folders import LocalFolder, open_output
from dalle_mini.runtime.locks import Busy
from noise_dataset import NoiseDataset, content, make_vqgan, options


@pytest.fixture(params=["local", "memory"])
def folder(request, tmp_path):
    if request.param == "local":
        return open_output(tmp_path / "out")
    fsspec.filesystem("memory").store.clear()
    return open_output("memory://bucket/out/")


def test_what_is_written_is_there(folder):
    assert folder.read(".work/parts/1") is None and folder.names(".work/parts") == set()
    folder.write(".work/parts/1", b"one")
    folder.write("a.parquet", b"two")
    folder.write("a.parquet", b"three")
    assert folder.read("a.parquet") == b"three" and folder.read(".work/parts/1") == b"one"
    assert folder.names(".work/parts") == {"1"}
    assert {"a.parquet", ".work"} == folder.names()
    folder.remove_work()
    assert folder.names() == {"a.parquet"}
    folder.remove_work()


def test_a_lock_is_held_by_one_or_shared(tmp_path):
    folder, other = LocalFolder(tmp_path), LocalFolder(tmp_path)
    with folder.lock("run"):
        for shared in (False, True):
            with pytest.raises(Busy), other.lock("run", shared=shared):
                pass
        with other.lock("another"):
            pass
    with folder.lock("run", shared=True), other.lock("run", shared=True), pytest.raises(Busy), folder.lock("run"):
        pass
    with other.lock("run"):
        pass


@pytest.mark.parametrize("where", [".work/run.lock", ".work", "manifest.json"])
def test_links_that_somebody_prepared_are_not_followed(tmp_path, where):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "run.json").write_text("precious")
    place = tmp_path / "out" / where
    place.parent.mkdir(parents=True)
    place.symlink_to(tmp_path / "theirs" / ("" if where == ".work" else "run.json"))
    folder = LocalFolder(tmp_path / "out")
    with contextlib.suppress(UserError), folder.lock("run"):
        folder.write(".work/run.json", b"ours")
        folder.write("manifest.json", b"ours")
        assert where == "manifest.json"  # which is replaced
    assert (tmp_path / "theirs" / "run.json").read_text() == "precious"
    assert [path.name for path in (tmp_path / "theirs").iterdir()] == ["run.json"]


def test_a_protocol_that_there_is_not(tmp_path):
    with pytest.raises(UserError, match="nowhere://bucket: "):
        open_output("nowhere://bucket")
    with pytest.raises(UserError, match="blank"):
        open_output(" ")


def test_an_encoded_bucket_is_as_a_folder(tmp_path):
    weights = Weights(make_vqgan(tmp_path / "vqgan"))
    files = fsspec.filesystem("memory")
    files.store.clear()
    encode(NoiseDataset(), weights, str(tmp_path / "out"), options(), workers=0)
    encode(NoiseDataset(), weights, "memory://bucket/out", options(), workers=0)
    files.get("/bucket/out", str(tmp_path / "copy"), recursive=True)
    assert content(tmp_path / "copy") == content(tmp_path / "out")
    assert encode(NoiseDataset(), weights, "memory://bucket/out", options(), workers=0).was_finished

import os
import subprocess
import sys

import pytest

from dalle_mini.errors import UserError
from dalle_mini.runtime import files


def test_a_file_is_written_whole_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "a" / "b.json"
    files.write_whole(path, "first")
    files.write_whole(path, b"second")
    assert path.read_bytes() == b"second" and os.listdir(path.parent) == ["b.json"]


def test_halves_of_surrogate_pairs_are_escaped_as_json_wants_it(tmp_path):
    files.write_whole(tmp_path / "a", '"caf\udce9"')
    assert (tmp_path / "a").read_bytes() == b'"caf\\udce9"'


def test_an_exception_leaves_the_old_file(tmp_path):
    files.write_whole(tmp_path / "a", "old")
    with pytest.raises(ZeroDivisionError), files.writing_whole(tmp_path / "a") as file:
        file.write(b"half")
        _ = 1 / 0
    assert (tmp_path / "a").read_text() == "old" and os.listdir(tmp_path) == ["a"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"file/a cannot be written \(.+\)"):
        files.write_whole(tmp_path / "file" / "a", "x")


def test_links_are_neither_followed_nor_emptied(tmp_path):
    (tmp_path / "precious").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "precious")
    with pytest.raises(FileExistsError):
        files.create(tmp_path / "link")
    with pytest.raises(OSError):
        files.open_lock_file(tmp_path / "link")
    files.write_whole(tmp_path / "link", "new")  # the link is replaced, not what it points to
    assert (tmp_path / "precious").read_text() == "x" and not (tmp_path / "link").is_symlink()


def test_of_runs_that_want_a_name_one_gets_it(tmp_path):
    target = tmp_path / "name"
    with pytest.raises(FileExistsError), files.written_beside(target, replace=False) as first:
        (first / "a").write_text("first")
        with files.written_beside(target, replace=False) as second:
            (second / "a").write_text("second")
    assert (target / "a").read_text() == "second" and os.listdir(tmp_path) == ["name"]
    with files.written_beside(target) as third:
        (third / "b").write_text("third")
    assert os.listdir(target) == ["b"] and os.listdir(tmp_path) == ["name"]


def test_leftovers_of_killed_runs_go_and_those_of_living_ones_stay(tmp_path):
    code = f"""if True:
        import os, signal, pathlib
        from dalle_mini.runtime import files
        with files.written_beside(pathlib.Path({str(tmp_path)!r}) / "killed") as folder:
            os.kill(os.getpid(), signal.SIGKILL)
        """
    subprocess.run([sys.executable, "-c", code])
    (tmp_path / f".lost.{'0' * 16}.replaced").mkdir()
    (tmp_path / ".mine.partial").mkdir()  # somebody else's name
    with files.written_beside(tmp_path / "alive"):
        assert len(os.listdir(tmp_path)) == 4
        files.remove_leftovers(tmp_path)
        assert len(os.listdir(tmp_path)) == 3
    assert sorted(os.listdir(tmp_path)) == [".mine.partial", "alive", "lost"]


def test_pipes_devices_and_what_is_too_large_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(20 << 30)
    for name, why in (("pipe", "pipe or a device"), ("zero", "pipe or a device"), ("sparse", "larger than 1 KiB")):
        with pytest.raises(OSError, match=why):
            files.read_bytes(tmp_path / name, 1 << 10)
    with pytest.raises(IsADirectoryError):
        files.read_bytes(tmp_path, 1 << 10)

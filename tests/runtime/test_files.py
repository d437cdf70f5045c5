import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dalle_mini.errors import UserError
from dalle_mini.runtime import files
from dalle_mini.runtime.locks import Busy


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


@pytest.mark.parametrize("name", ["lock", "os.open"])
def test_ctrl_c_while_a_folder_is_made_leaves_nothing(tmp_path, monkeypatch, name):
    def interrupted(*_):
        patch.undo()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(f"dalle_mini.runtime.files.{name}", interrupted)
        with files.work_folder(tmp_path / "out"):
            raise AssertionError("the folder is made all the same")
    assert list(tmp_path.iterdir()) == []


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


def test_the_last_of_two_that_replace_a_folder_stays(tmp_path):
    target = tmp_path / "name"
    with files.written_beside(target) as first:
        (first / "a").write_text("first")
        with files.written_beside(target) as second:
            (second / "b").write_text("second")
    assert os.listdir(target) == ["a"] and os.listdir(tmp_path) == ["name"]


@pytest.mark.parametrize("point_at", ["precious", "missing"])
def test_a_link_in_the_place_of_a_folder_is_replaced_and_not_followed(tmp_path, point_at):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "a").write_text("x")
    (tmp_path / "name").symlink_to(tmp_path / point_at)
    with pytest.raises(FileExistsError), files.written_beside(tmp_path / "name", replace=False):
        pass
    with files.written_beside(tmp_path / "name") as folder:
        (folder / "b").write_text("y")
    assert os.listdir(tmp_path / "name") == ["b"] and not (tmp_path / "name").is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["name", "precious"] and os.listdir(tmp_path / "precious") == ["a"]


KILLED = """if True:
    import os, signal, pathlib
    from dalle_mini.runtime import files
    with files.{name}(pathlib.Path({place!r}) / "{name}") as made:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_leftovers_of_killed_runs_go_and_those_of_living_ones_stay(tmp_path):
    for name in ("written_beside", "writing_whole"):
        subprocess.run([sys.executable, "-c", KILLED.format(name=name, place=str(tmp_path))])
    (tmp_path / f".lost.{'0' * 16}.replaced").mkdir()
    (tmp_path / f".progress-{'0' * 32}.png").write_text("")
    (tmp_path / f".link.{'0' * 16}.partial").symlink_to(tmp_path)  # nothing that we write
    (tmp_path / ".mine.partial").mkdir()  # somebody else's name
    with files.written_beside(tmp_path / "alive"), files.writing_whole(tmp_path / "file") as file:
        assert len(os.listdir(tmp_path)) == 8
        files.remove_leftovers(tmp_path)
        assert len(os.listdir(tmp_path)) == 5
        file.write(b"whole")
    assert sorted(os.listdir(tmp_path)) == [f".link.{'0' * 16}.partial", ".mine.partial", "alive", "file", "lost"]
    assert (tmp_path / "file").read_bytes() == b"whole"


def test_where_there_are_no_locks_what_was_touched_lately_stays(tmp_path, monkeypatch):
    def lock(*_, **__):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(files, "lock", lock)
    for name, age in (("new", 60), ("old", 25 * 3600)):
        path = tmp_path / f".{name}.{'0' * 16}.partial"
        path.write_text("")
        os.utime(path, (time.time() - age,) * 2)
    with files.written_beside(tmp_path / "alive"):
        files.remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [f".new.{'0' * 16}.partial", "alive"]


def test_a_lock_file_that_its_holder_removed_is_no_lock(tmp_path):
    path = tmp_path / "run.lock"
    earlier, opened = files.open_lock_file, []

    def open_lock_file(path):
        file = earlier(path)
        if not opened:
            os.unlink(path)  # the holder has finished, and tidies up, before we have the lock
        opened.append(file)
        return file

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "open_lock_file", open_lock_file)
        with files.locked(path) as missing:
            assert missing is None and len(opened) == 2 and path.exists()
            with pytest.raises(Busy), files.locked(path):
                pass


def test_appending_follows_no_link(tmp_path):
    (tmp_path / "precious").write_text("x")
    (tmp_path / "log").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError):
        files.append(tmp_path / "log", "y")
    files.append(tmp_path / "other", "a")
    files.append(tmp_path / "other", "b")
    assert (tmp_path / "precious").read_text() == "x" and (tmp_path / "other").read_text() == "ab"


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


# Writing in place, beside under a name that can be guessed, or through a link: `runtime.files` does it for all.
BY_HAND = re.compile(r"""\.write_(text|bytes)\(|open\([^)]*["'][wax]\+?b?["']|getpid\(\)\}|suffix\("\.tmp"\)|mkstemp""")
ALLOWED = {
    "src/dalle_mini/runtime/console.py": "the null device",
    "src/dalle_mini/runtime/files.py": "here it is done",
    "src/dalle_mini/training/run/checkpoint.py": "an object in a bucket",
    "src/dalle_mini/weights/formats/safetensors.py": "in a folder under a name that nobody can foresee",
}


def test_nothing_else_writes():
    root = Path(__file__).parents[2]
    paths = [path for folder in ("src", "tools") for path in (root / folder).rglob("*.py")]
    found = {str(path.relative_to(root)) for path in paths if BY_HAND.search(path.read_text("utf-8"))}
    assert found <= ALLOWED.keys(), sorted(found - ALLOWED.keys())

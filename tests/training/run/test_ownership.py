"""A folder of checkpoints is one run's."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dalle_mini.errors import UserError
from dalle_mini.training.run import folder as resume
from dalle_mini.training.run.checkpoint_reading import digest
from dalle_mini.training.run.folder import alone_in, started_with
from dalle_mini.training.run.loop import run
from dalle_mini.training.run.ownership import CLAIM, Claim
from lines import LOOP, Line


def sharing(folder, **changes):
    return dataclasses.replace(LOOP, checkpoints=str(folder), **changes)


def steps(folder):
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdigit())


def id_in(folder):
    return json.loads((folder / CLAIM).read_text())["run"]


def without_ids(out, checkpoints):
    """A run as earlier versions left it, but for the checkpoints' records, which are checked to the bit."""
    config = started_with(out)
    del config["run"]
    (out / "config.json").write_text(json.dumps(config))
    (checkpoints / CLAIM).unlink()


class Stopping(Line):
    """A line that lets another run begin, and end, before the batch of a step."""

    def __init__(self, at, then, **line):
        super().__init__(**line)
        self.at, self.then = at, then

    def batch(self, step):
        if step == self.at:
            self.then()
        return super().batch(step)


def test_a_run_and_its_folder_have_an_id_that_stays(tmp_path):
    run(Line(), dataclasses.replace(LOOP, steps=4), tmp_path)
    found = started_with(tmp_path)["run"]
    assert len(found) == 16 and found == id_in(tmp_path / "checkpoints")
    before = json.loads((tmp_path / "checkpoints" / CLAIM).read_text())
    run(Line(), LOOP, tmp_path, allow_changes=True)
    after = json.loads((tmp_path / "checkpoints" / CLAIM).read_text())
    assert found == started_with(tmp_path)["run"] == after["run"]
    assert before["process"] != after["process"]
    assert "run" not in json.dumps(started_with(tmp_path)["changes"])


def test_a_second_run_is_refused_and_spoils_nothing(tmp_path):
    """Both had folders of their own before, and are then told to share one."""
    shared = tmp_path / "shared"
    run(Line(), sharing(shared), tmp_path / "first")
    run(Line(rate=0.5), LOOP, tmp_path / "second")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"shared: these checkpoints belong to another run, that in .*first: give each"):
        run(Line(rate=0.5), sharing(shared), tmp_path / "second")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    run(Line(), sharing(shared), tmp_path / "first")
    run(Line(rate=0.5), LOOP, tmp_path / "second")


def test_checkpoints_that_were_copied_in_are_not_restored(tmp_path):
    run(Line(), LOOP, tmp_path / "first")
    run(Line(rate=0.5), dataclasses.replace(LOOP, steps=8), tmp_path / "second")
    shutil.copytree(tmp_path / "first" / "checkpoints" / "10", tmp_path / "second" / "checkpoints" / "10")
    with pytest.raises(UserError, match=r"second/checkpoints/10: saved by another run \(.*\) than that in .*: move it"):
        run(Line(rate=0.5), dataclasses.replace(LOOP, steps=8), tmp_path / "second")


@pytest.mark.parametrize("moved", ["folder", "all"])
def test_a_run_that_moved_goes_on(moved, tmp_path, capsys):
    (tmp_path / "a").mkdir()
    loop = dataclasses.replace(LOOP, steps=4) if moved == "all" else sharing(tmp_path / "shared", steps=4)
    run(Line(), loop, tmp_path / "a" / "run")
    (tmp_path / "a").rename(tmp_path / "b")
    capsys.readouterr()
    run(Line(), dataclasses.replace(loop, steps=10), tmp_path / "b" / "run", allow_changes=True)
    assert "continuing from step 4" in capsys.readouterr().err
    run(Line(), dataclasses.replace(loop, steps=10), tmp_path / "b" / "run")


def test_a_run_of_an_earlier_version_goes_on_and_gets_an_id(tmp_path, capsys):
    shared, loop = tmp_path / "shared", sharing(tmp_path / "shared", steps=4)
    run(Line(), loop, tmp_path / "run")
    without_ids(tmp_path / "run", shared)
    for entry in shared.iterdir():  # of the record too: it is what an earlier version wrote
        record = json.loads((entry / "record" / "metadata").read_text())
        del record["body"]["config"]["run"]
        record["sha256"] = digest(record["body"])
        (entry / "record" / "metadata").write_text(json.dumps(record))
    capsys.readouterr()
    run(Line(), dataclasses.replace(loop, steps=10), tmp_path / "run", allow_changes=True)
    assert "continuing from step 4" in capsys.readouterr().err
    assert started_with(tmp_path / "run")["run"] == id_in(shared)


def test_of_two_runs_of_an_earlier_version_one_gets_the_folder(tmp_path):
    shared = tmp_path / "shared"
    run(Line(), sharing(shared), tmp_path / "first")
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    without_ids(tmp_path / "first", shared)
    config = started_with(tmp_path / "second")
    del config["run"]
    (tmp_path / "second" / "config.json").write_text(json.dumps(config))
    taken = Claim(tmp_path / "second", shared)
    taken.take()
    with pytest.raises(UserError, match=r"these checkpoints belong to another run, that in .*second"):
        run(Line(), sharing(shared), tmp_path / "first")


def test_a_machine_that_vanished_before_its_first_checkpoint_is_replaced(tmp_path):
    """The bucket has its claim and nothing else; another machine begins anew. If the first is alive, it finds out."""
    shared = tmp_path / "shared"
    shared.mkdir()
    first = Claim(tmp_path / "first", shared)
    first.take()
    run(Line(rate=0.5), sharing(shared), tmp_path / "second")
    with pytest.raises(UserError, match=r"these checkpoints belong to another run, that in .*second"):
        first.check()
    assert id_in(shared) == started_with(tmp_path / "second")["run"] != first.run


def test_a_run_that_was_taken_for_dead_ends_at_its_next_save(tmp_path, monkeypatch):
    """Without locks, as in a bucket: the same run goes on elsewhere, and the first one must not save there any more."""
    monkeypatch.setattr(resume, "lock", lambda file: None)
    monkeypatch.setattr(Claim, "_has_another_folder", lambda *_: False)  # the other machine does not see `first`
    shared, late = tmp_path / "shared", []

    def elsewhere():
        late.append(steps(shared))
        Claim(tmp_path / "second", shared).take()

    loop = sharing(shared, checkpoint_minutes=0.0)
    with pytest.raises(UserError, match=r"shared: the run continues in another process, from .*second: this one ends"):
        run(Stopping(5, elsewhere), loop, tmp_path / "first")
    assert late[0] and max(steps(shared)) <= 6  # what was under way when the other began
    assert not (tmp_path / "first" / "final").exists()
    run(Line(), loop, tmp_path / "second")


def test_of_two_that_begin_at_the_same_moment_one_has_the_folder(tmp_path):
    both = [Claim(tmp_path / name, tmp_path) for name in ("first", "second")]
    both[0].take()
    with pytest.raises(UserError, match=r"these checkpoints belong to another run, that in .*first"):
        both[1].take()


def test_a_live_runs_folder_is_locked(tmp_path, monkeypatch):
    monkeypatch.setattr(resume, "PATIENCE", 0.1)
    shared = tmp_path / "shared"
    shared.mkdir()
    code = (
        "import sys; from pathlib import Path; from dalle_mini.training.run.folder import alone_in\n"
        "with alone_in(Path(sys.argv[1]), sys.argv[2]): print('held', flush=True); sys.stdin.read()"
    )
    holding = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "first"), str(shared)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert holding.stdout.readline() == "held\n"
        (tmp_path / "link").symlink_to(shared)
        for name in ("shared", "link"):
            with pytest.raises(UserError, match=f"{name}: another process trains in this folder"):
                run(Line(), sharing(tmp_path / name), tmp_path / "second")
    finally:
        holding.communicate("")
    run(Line(), sharing(shared), tmp_path / "second")


@pytest.mark.parametrize("claim", [b"", b"{", b"[1]", b'{"run": 3}', b"\xff\xfe"])
def test_a_claim_that_a_power_cut_left(claim, tmp_path):
    run(Line(), LOOP, tmp_path)
    (tmp_path / "checkpoints" / CLAIM).write_bytes(claim)
    run(Line(), LOOP, tmp_path)
    assert id_in(tmp_path / "checkpoints") == started_with(tmp_path)["run"]


def test_a_damaged_config_does_not_lose_the_folder(tmp_path):
    run(Line(), LOOP, tmp_path)
    before = started_with(tmp_path)["run"]
    (tmp_path / "config.json").write_text("{")
    run(Line(), LOOP, tmp_path)
    assert before == started_with(tmp_path)["run"] == id_in(tmp_path / "checkpoints")


def test_a_link_in_the_claims_place_is_not_written_through(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / CLAIM).symlink_to(victim)
    run(Line(), LOOP, tmp_path)
    assert victim.read_text() == "mine"
    np.load(tmp_path / "final" / "w.npy")
    assert Path(tmp_path / "checkpoints" / CLAIM).is_file()


@pytest.mark.parametrize("checkpoints", ["run/checkpoints", "elsewhere"])
def test_a_run_that_could_not_begin_leaves_no_empty_folders(checkpoints, tmp_path):
    with pytest.raises(UserError), alone_in(tmp_path / "run", tmp_path / checkpoints):
        raise UserError("data.train: there is no such folder")
    assert not list(tmp_path.iterdir())


def test_what_a_killed_run_was_writing_is_removed(tmp_path):
    for folder in (tmp_path, tmp_path / "samples", tmp_path / "checkpoints"):
        (folder / f".a.{'0' * 16}.partial").mkdir(parents=True)
    with alone_in(tmp_path, tmp_path / "checkpoints"):
        left = [path for path in tmp_path.rglob("*") if path.name.startswith(".")]
    assert not left

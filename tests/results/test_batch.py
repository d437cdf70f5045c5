"""Prompts of a file into a folder, through interruptions."""

import csv
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pyarrow.parquet
import pytest

from dalle_mini import UserError
from dalle_mini.cli import main
from dalle_mini.results.batch import Batch
from dalle_mini.results.prompts import Entry
from dalle_mini.runtime.locks import lock
from dalle_mini.settings import GenerationSettings

SETTINGS = GenerationSettings(candidates=2, keep=1, guidance=1.0)
ENTRIES = [
    Entry("one", "a boat", {}),
    Entry("two", "a snail", {"guidance": 3.0, "negative_prompt": "a boat", "seed": 5}),
    Entry("three", "<b></b>", {}),  # nothing is left of it
    Entry("four", "", {}, error="line 4: the prompt is blank or no text"),
    Entry("five", "a red apple", {"top_k": 3}),
    Entry("six", "a boat", {"temperature": -1.0}),
]


def contents(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def table(folder) -> list[dict]:
    return pyarrow.parquet.read_table(folder / "results.parquet").to_pylist()


@pytest.fixture(scope="module")
def drawn(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("batch") / "out"
    return folder, Batch(ENTRIES, folder, SETTINGS).run(pipe)


def test_each_prompt_has_a_folder_and_the_table_all(drawn, pipe):
    folder, done = drawn
    assert (done.drawn, done.found, done.failed) == (3, 0, 3)
    assert sorted(os.listdir(folder)) == ["batch.json", "pictures", "results.parquet"]
    assert sorted(os.listdir(folder / "pictures")) == ["five", "one", "two"]
    rows = table(folder)
    assert [row["id"] for row in rows] == [entry.id for entry in ENTRIES]
    assert [bool(row["error"]) for row in rows] == [False, False, True, True, False, True]
    assert "temperature" in rows[5]["error"] and rows[3]["error"].startswith("line 4")
    for row in rows[:2]:
        assert (folder / row["file"]).is_file()
    assert (rows[1]["guidance"], rows[1]["negative_prompt"], rows[1]["seed"]) == (3.0, "a boat", 5)
    alone = pipe.generate(["a snail"], 2, 1, 5, 3.0, negative_prompt="a boat")[0]
    assert rows[1]["score"] == pytest.approx(alone.scores[0]) and rows[1]["candidate"] == alone.indices[0]


def test_without_pyarrow_the_table_is_csv(drawn, pipe, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    shutil.copytree(drawn[0], folder)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "pyarrow", None)
        done = Batch(ENTRIES, folder, SETTINGS).run(pipe)
    assert done.table == folder / "results.csv" and (done.drawn, done.found) == (0, 3)
    assert sorted(os.listdir(folder)) == ["batch.json", "pictures", "results.csv"]
    with done.table.open(newline="") as lines:
        found = list(csv.DictReader(lines))
    wanted = [{name: "" if value is None else value for name, value in row.items()} for row in table(drawn[0])]
    assert [row["id"] for row in found] == [row["id"] for row in wanted]
    for name in ("prompt", "file", "negative_prompt", "error"):
        assert [row[name] for row in found] == [row[name] for row in wanted]
    assert float(found[1]["score"]) == pytest.approx(wanted[1]["score"])
    assert Batch(ENTRIES, folder, SETTINGS).run(pipe).table == folder / "results.parquet"
    assert not done.table.exists()


def test_a_second_run_draws_nothing_again(drawn, pipe):
    folder, _ = drawn
    before, rows = contents(folder), table(folder)
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")}
    done = Batch(ENTRIES, folder, SETTINGS).run(pipe)
    assert (done.drawn, done.found, done.failed) == (0, 3, 3)
    assert contents(folder) == before and table(folder) == rows
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")} == times


def test_a_prompt_that_changed_is_drawn_again_and_leftovers_go(pipe, tmp_path):
    Batch(ENTRIES[:2], tmp_path, SETTINGS).run(pipe)
    before = contents(tmp_path)
    (tmp_path / "pictures" / ".one.123.partial").mkdir()
    changed = [ENTRIES[0], Entry("two", "a tree", {})]
    with pytest.raises(UserError, match=r"two was drawn with another prompt and seed and .*, or .* with --overwrite"):
        Batch(changed, tmp_path, SETTINGS).run(pipe)
    assert contents(tmp_path) == before
    done = Batch(changed, tmp_path, SETTINGS, overwrite=True).run(pipe)
    assert (done.drawn, done.found) == (1, 1)
    after = contents(tmp_path)
    assert after["pictures/one/01.png"] == before["pictures/one/01.png"]
    assert after["pictures/two/01.png"] != before["pictures/two/01.png"]
    assert sorted(os.listdir(tmp_path / "pictures")) == ["one", "two"]


def test_a_batch_of_an_earlier_version_goes_on_by_its_own_rule(pipe, tmp_path):
    rule = dataclasses.replace(SETTINGS, sampler="rank", decode="sequential")
    Batch(ENTRIES[:2], tmp_path / "whole", rule).run(pipe)
    Batch(ENTRIES[:1], tmp_path / "begun", rule).run(pipe)
    run = tmp_path / "begun" / "batch.json"
    begun = json.loads(run.read_text())
    assert begun.pop("sampler") == "rank"  # which earlier versions did not write
    run.write_text(json.dumps(begun))
    done = Batch(ENTRIES[:2], tmp_path / "begun", SETTINGS).run(pipe)
    assert (done.drawn, done.found) == (1, 1)
    assert contents(tmp_path / "begun") == contents(tmp_path / "whole")
    Batch(ENTRIES[:2], tmp_path / "new", SETTINGS).run(pipe)
    assert contents(tmp_path / "new") != contents(tmp_path / "whole")
    run.write_text(json.dumps(begun | {"sampler": "best"}))
    with pytest.raises(UserError, match=r"batch.json: sampler is 'best': .*: name another --output"):
        Batch(ENTRIES[:2], tmp_path / "begun", SETTINGS).run(pipe)


@pytest.mark.parametrize("damage", [os.unlink, lambda path: path.write_bytes(b"")])
def test_pictures_that_were_lost_are_drawn_again(pipe, tmp_path, damage):
    Batch(ENTRIES[:2], tmp_path, SETTINGS).run(pipe)
    before = contents(tmp_path)
    damage(tmp_path / "pictures" / "two" / "01.png")
    done = Batch(ENTRIES[:2], tmp_path, SETTINGS).run(pipe)
    assert (done.drawn, done.found) == (1, 1)
    assert contents(tmp_path) == before


def test_a_prompt_that_fails_while_it_is_drawn_fails_alone(pipe, tmp_path, monkeypatch):
    draw = pipe.engine.run

    def run(requests, *arguments, **options):
        for number, result in enumerate(draw(requests, *arguments, **options)):
            if requests[number].prompt == "a snail":
                raise UserError("CLIP's scores are no numbers")
            yield result

    monkeypatch.setattr(pipe.engine, "run", run)
    entries = [Entry(name, prompt, {}) for name, prompt in (("a", "a boat"), ("b", "a snail"), ("c", "a tree"))]
    done = Batch(entries, tmp_path, SETTINGS).run(pipe)
    assert (done.drawn, done.failed) == (2, 1)
    assert [row["error"] for row in table(tmp_path)] == [None, "CLIP's scores are no numbers", None]
    monkeypatch.undo()
    done = Batch(entries, tmp_path, SETTINGS).run(pipe)
    assert (done.drawn, done.found, done.failed) == (1, 2, 0)


def test_half_a_character_fails_its_prompt_alone(pipe, tmp_path):
    entries = [Entry("one", "a \ud800", {}), Entry("two", "a boat", {"negative_prompt": "\ud800"}), ENTRIES[0]]
    done = Batch(entries, tmp_path, SETTINGS).run(pipe)
    assert (done.drawn, done.failed) == (1, 2)
    rows = table(tmp_path)
    assert rows[0]["prompt"] == "a ?" and "not valid UTF-8" in rows[0]["error"]
    assert rows[1]["error"] == "negative_prompt is not valid UTF-8 text"


def test_processes_agree_on_what_to_draw_before_any_draws(pipe, tmp_path, monkeypatch):
    events = []
    monkeypatch.setattr("dalle_mini.results.batch._wait_for_all", events.append)
    batch = Batch(ENTRIES[:1], tmp_path, SETTINGS)
    monkeypatch.setattr(batch, "_is_done", lambda entry: events.append("look"))
    monkeypatch.setattr(batch, "_results", lambda *_: events.append("draw") or iter(()))
    monkeypatch.setattr(batch, "_write_table", lambda: None)
    batch.run(pipe)
    assert tuple(events[1:4]) == ("look", "all know what is to be drawn", "draw")


def test_a_folder_of_another_run_is_refused(drawn, pipe, tmp_path):
    folder, _ = drawn
    with pytest.raises(UserError, match="another candidates"):
        Batch(ENTRIES, folder, GenerationSettings(candidates=3, keep=1, guidance=1.0)).run(pipe)
    with pytest.raises(UserError, match="another seed and temperature"):
        Batch(ENTRIES, folder, dataclasses.replace(SETTINGS, seed=9, temperature=0.5)).run(pipe)
    (tmp_path / "pictures").mkdir()
    with pytest.raises(UserError, match="images of no batch"):
        Batch(ENTRIES, tmp_path, SETTINGS).run(pipe)


def test_pictures_are_not_written_behind_a_link(drawn, pipe, tmp_path):
    (tmp_path / "precious" / "one").mkdir(parents=True)
    (tmp_path / "precious" / "one" / "thesis.txt").write_text("x")
    out = tmp_path / "out"
    out.mkdir()
    (out / "batch.json").write_bytes((drawn[0] / "batch.json").read_bytes())
    (out / "pictures").symlink_to(tmp_path / "precious")
    with pytest.raises(UserError, match="pictures is a link"):
        Batch(ENTRIES, out, SETTINGS).run(pipe)
    assert os.listdir(tmp_path / "precious" / "one") == ["thesis.txt"]


def test_two_runs_do_not_draw_into_one_folder(pipe, tmp_path):
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        lock(folder)
        with pytest.raises(UserError, match="another run is drawing into this folder"):
            Batch(ENTRIES, tmp_path, SETTINGS).run(pipe)
    finally:
        os.close(folder)
    assert os.listdir(tmp_path) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        Batch(ENTRIES, tmp_path / "file", SETTINGS).run(pipe)


def test_a_full_disk_is_one_line_and_what_is_drawn_stays(pipe, tmp_path, monkeypatch):
    from PIL import Image

    save, calls = Image.Image.save, []

    def full(image, *args, **options):
        calls.append(args)
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        return save(image, *args, **options)

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(UserError, match="No space left"):
        Batch(ENTRIES, tmp_path, SETTINGS).run(pipe)
    assert len(os.listdir(tmp_path / "pictures")) == 1
    monkeypatch.undo()
    assert Batch(ENTRIES, tmp_path, SETTINGS).run(pipe).found == 1


def test_the_command(golden_bundle, tmp_path, capsys):
    (tmp_path / "p.csv").write_text("id,prompt\na,a boat\nb,a snail\n,\nc,<b></b>\n")
    options = ["--model", str(golden_bundle), "--candidates", "2", "--keep", "1", "--output", str(tmp_path / "out")]
    assert main(["generate", "--prompts", str(tmp_path / "p.csv"), *options]) == 1
    out, err = capsys.readouterr()
    assert "2 prompts drawn, 0 were there, 1 failed" in out
    assert "prompt c has no words" in err


@pytest.mark.slow
def test_killed_three_times_it_ends_as_if_undisturbed(golden_bundle, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": f"a boat number {n}", "seed": n % 3}) for n in range(200)))
    command = [sys.executable, "-m", "dalle_mini.cli", "generate", "--prompts", str(prompts), "--candidates", "5"]
    command += ["--model", str(golden_bundle), "--keep", "2", "--output"]
    subprocess.run([*command, str(tmp_path / "whole")], check=True)
    disturbed = tmp_path / "disturbed"
    for wanted in (20, 80, 140):
        process = subprocess.Popen([*command, str(disturbed)])
        while process.poll() is None and len(list(disturbed.glob("pictures/[0-9]*"))) < wanted:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert 0 < len(list(disturbed.glob("pictures/[0-9]*"))) < 200
        assert not (disturbed / "results.parquet").exists()
    subprocess.run([*command, str(disturbed)], check=True)
    assert contents(disturbed) == contents(tmp_path / "whole")
    assert len(contents(disturbed)) == 400
    assert table(disturbed) == table(tmp_path / "whole")
    assert not list(disturbed.rglob(".*"))

"""The JSON-lines log of a run."""

import json

from dalle_mini.training.tracking import Tracker


def steps(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_records(tmp_path, capsys):
    path = tmp_path / "new" / "log.jsonl"
    tracker = Tracker(path, 10, 0, "toy")
    tracker.log(5, {"loss": 0.25}, 12.345)
    tracker.log(5, {"eval_loss": 0.5})
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert first.pop("time") <= second.pop("time")
    assert first == {"step": 5, "loss": 0.25, "pictures_per_second": 12.35}
    assert second == {"step": 5, "eval_loss": 0.5}
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "toy 5/10  loss 0.25  12.3 pictures/s" in shown.err
    assert "\x1b" not in shown.err  # not a terminal: no control codes


def test_a_resumed_run_drops_what_it_will_make_again(tmp_path):
    path = tmp_path / "log.jsonl"
    tracker = Tracker(path, 10)
    for step in (2, 4, 6, 8):
        tracker.log(step, {"loss": 1.0})
    with path.open("a") as file:
        file.write('{"step": 9, "lo')  # a kill in the middle of a line
    resumed = Tracker(path, 10, 6)
    assert steps(path) == [2, 4, 6]
    resumed.log(8, {"loss": 1.0})
    assert steps(path) == [2, 4, 6, 8]
    assert [entry.name for entry in tmp_path.iterdir()] == ["log.jsonl"]


def test_lines_that_are_no_records_are_dropped(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('nonsense\n[1]\n{"loss": 1}\n{"step": 1}\n')
    Tracker(path, 10, 5)
    assert steps(path) == [1]


def test_say(tmp_path, capsys):
    Tracker(tmp_path / "log.jsonl", 10, label="toy").say("done")
    assert capsys.readouterr().err == "toy: done\n"

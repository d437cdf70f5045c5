"""A run's log and its line on the terminal."""

import contextlib
import json
import os
import resource
import sys
import time
from types import SimpleNamespace

import jax
import pytest

from dalle_mini.errors import UserError
from dalle_mini.runtime.console import duration
from dalle_mini.training import records
from dalle_mini.training.engine.flops import Work, training_flops
from dalle_mini.training.engine.hardware import peak_flops_of_all
from dalle_mini.training.records import read_log
from dalle_mini.training.run import checkpoint
from dalle_mini.training.tracking import tracker as tracking
from dalle_mini.training.tracking.tracker import LiveLine, Tracker
from tiny_runs import SEQ2SEQ


def steps(out):
    return [record["step"] for record in read_log(out / "log.jsonl")]


def test_records(tmp_path, capsys):
    out = tmp_path / "new"
    tracker = Tracker(out, {}, 10, 0, "toy")
    tracker.log(5, {"loss": 0.25}, 12.345)
    tracker.log(5, {"eval_loss": 0.5})
    first, second = (json.loads(line) for line in (out / "log.jsonl").read_text().splitlines())
    assert first.pop("time") <= second.pop("time")
    assert 0.05 < first.pop("host_memory_gib") < 100
    assert first == {"step": 5, "loss": 0.25, "pictures_per_second": 12.35}
    assert second == {"step": 5, "eval_loss": 0.5}
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == ["toy 5/10  loss 0.25  12.3 images/s", "toy 5/10  eval_loss 0.5"]


def test_speed_and_what_is_used_of_the_device(tmp_path):
    work = Work(tokens_per_picture=320, flops_per_picture=2e9, peak_flops=1e12)
    Tracker(tmp_path, {}, 10, work=work).log(1, {}, 50.0)
    Tracker(tmp_path, {}, 10, 1, work=Work(320, 2e9)).log(2, {}, 50.0)  # a CPU: no table knows its peak
    known, unknown = read_log(tmp_path / "log.jsonl")
    assert known["tokens_per_second"] == unknown["tokens_per_second"] == 16000
    assert known["mfu"] == pytest.approx(0.1)
    assert unknown["mfu"] is None


def test_the_peak_is_of_all_devices(monkeypatch):
    cores = [SimpleNamespace(device_kind="TPU v3")] * 8
    monkeypatch.setattr(jax, "devices", lambda: cores)
    assert peak_flops_of_all() == pytest.approx(4 * 123e12)
    monkeypatch.setattr(jax, "devices", lambda: [*cores, SimpleNamespace(device_kind="cpu")])
    assert peak_flops_of_all() is None


def test_work_of_a_model():
    work = Work.of(SEQ2SEQ.model)
    assert work.tokens_per_picture == 8 + 16
    assert work.flops_per_picture == training_flops(SEQ2SEQ.model)
    assert work.peak_flops is None
    few = Work.of(SEQ2SEQ.model, positions=4)
    assert (few.tokens_per_picture, few.flops_per_picture) == (8 + 4, training_flops(SEQ2SEQ.model, 4))


def test_device_memory(tmp_path, monkeypatch):
    class Device:
        def __init__(self, stats):
            self.memory_stats = lambda: stats

    devices = [
        Device({"bytes_in_use": 2**30, "peak_bytes_in_use": 3 * 2**30}),
        Device({"bytes_in_use": 2**31}),
        Device(None),
    ]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    found = tracking.memory()
    assert (found["device_memory_gib"], found["device_memory_peak_gib"]) == (2.0, 3.0)


def test_a_resumed_run_drops_what_it_will_make_again(tmp_path):
    tracker = Tracker(tmp_path, {}, 10)
    for step in (2, 4, 6, 8):
        tracker.log(step, {"loss": 1.0})
        (tmp_path / "samples" / f"{step:08d}").mkdir(parents=True)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 9, "lo')  # a kill in the middle of a line
    resumed = Tracker(tmp_path, {}, 10, 6)
    assert steps(tmp_path) == [2, 4, 6]
    resumed.log(8, {"loss": 1.0})
    assert steps(tmp_path) == [2, 4, 6, 8]
    assert sorted(folder.name for folder in (tmp_path / "samples").iterdir()) == ["00000002", "00000004", "00000006"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["log.jsonl", "samples"]


def test_lines_that_are_no_records_are_dropped(tmp_path):
    (tmp_path / "log.jsonl").write_bytes(b'nonsense\n[1]\n{"loss": 1}\n\xff\n{"step": "1"}\n{"step": 1}\n')
    Tracker(tmp_path, {}, 10, 5)
    assert steps(tmp_path) == [1]


def test_what_is_no_number_is_null(tmp_path):
    Tracker(tmp_path, {}, 10).log(1, {"loss": float("nan"), "grad_norm": float("inf"), "param_norm": 2})
    (line,) = (tmp_path / "log.jsonl").read_text().splitlines()
    record = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert (record["loss"], record["grad_norm"], record["param_norm"]) == (None, None, 2.0)


def test_only_process_0_speaks(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    tracker = Tracker(tmp_path / "run", {}, 10)
    tracker.log(1, {"loss": 1.0}, 3.0)
    tracker.say("hello")
    tracker.report()
    tracker.close()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file: cannot write there \(File exists\)"):
        Tracker(tmp_path / "file", {}, 10)


def test_a_full_disk_is_said_once_and_training_goes_on(tmp_path, monkeypatch, capsys):
    tracker = Tracker(tmp_path, {}, 10, label="toy")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tracking, "append_record", full)
    tracker.log(1, {"loss": 1.0})
    tracker.log(2, {"loss": 0.5})
    err = capsys.readouterr().err
    assert err.count("toy: not logged: [Errno 28] No space left on device") == 1
    assert "2/10  loss 0.5" in err


def test_a_line_that_the_disk_had_no_room_for_is_taken_back_whole(tmp_path, capsys):
    tracker = Tracker(tmp_path, {}, 10, label="toy")
    tracker.log(1, {"loss": 1.0})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "log.jsonl").stat().st_size + 10, before[1]))
    try:
        tracker.log(2, {"loss": 0.5})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "toy: not logged: " in capsys.readouterr().err
    tracker.log(3, {"loss": 0.25})  # there is room again
    assert steps(tmp_path) == [1, 3]


def test_a_run_that_failed_does_not_say_that_its_page_failed_too(tmp_path, capsys):
    tracker = Tracker(tmp_path, {}, 10, label="toy")
    (tmp_path / "report.html").mkdir()
    tracker.close(failed=True)
    assert capsys.readouterr().err == ""
    tracker.close()
    assert "toy: not logged: " in capsys.readouterr().err


@contextlib.contextmanager
def stderr_that_is(kind, monkeypatch):
    """Not there, closed, on a full disk, or of another encoding. Not a fixture: pytest sets its own."""
    stream = open("/dev/full" if kind == "on a full disk" else os.devnull, "w", encoding="ascii")  # noqa: SIM115
    if kind == "closed":
        stream.close()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", None if kind == "not there" else stream)
        yield
    with contextlib.suppress(OSError):
        stream.close()


@pytest.mark.parametrize("is_terminal", [False, True])
@pytest.mark.parametrize("kind", ["not there", "closed", "on a full disk", "of ascii"])
def test_what_cannot_be_told_does_not_end_a_run(is_terminal, kind, tmp_path, monkeypatch):
    out = tmp_path / "schnörkel"
    with stderr_that_is(kind, monkeypatch):
        tracker = Tracker(out, {}, 10, label="schnörkel")
        tracker._line._live = is_terminal
        tracker.log(1, {"loss": 1.0})
        tracker.doing("evaluating …")
        tracker.say("a line")
        tracker.log(2, {"loss": 0.5})
        tracker.close()
        checkpoint.warn("a line")
    assert steps(out) == [1, 2]


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize("name", ["log.jsonl", "log.tmp"])
def test_a_link_in_the_place_of_the_log_is_not_followed(tmp_path, capsys, name):
    (tmp_path / "precious").write_text('{"step": 9}\n')
    out = tmp_path / "run"
    out.mkdir()
    (out / name).symlink_to(tmp_path / "precious")
    records.drop_what_comes_after(out, 5)
    if name == "log.tmp":
        records.append_record(out, {"step": 6})
        assert (out / records.LOG).read_text() == '{"step": 6}\n'
    assert (tmp_path / "precious").read_text() == '{"step": 9}\n'


def test_pictures_behind_a_link_are_not_this_runs(tmp_path):
    (tmp_path / "photos" / "2019").mkdir(parents=True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "samples").symlink_to(tmp_path / "photos")
    records.drop_what_comes_after(tmp_path / "run", 5)
    assert (tmp_path / "photos" / "2019").is_dir()


def test_time_left_is_of_the_last_records_without_compiling():
    clock = Clock()
    line = LiveLine(1000, clock=clock)
    clock.now = 300.0  # compiling
    line.show(10, {}, 1.0)
    assert line.seconds_left() is None
    clock.now += 20
    line.show(20, {}, 1.0)
    assert line.seconds_left() == pytest.approx(980 * 2)
    for step in range(30, 330, 10):  # four times as quick from here on: the slow ones are forgotten
        clock.now += 5
        line.show(step, {}, 1.0)
    line.show(320, {"eval_loss": 1.0}, None)  # an evaluation is no mark
    assert line.seconds_left() == pytest.approx(680 * 0.5)


def test_the_line_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "50")
    line = LiveLine(100, "toy", clock=lambda: 0.0)
    line.show(1, {"loss": 2.0, "grad_norm": 1.0, "param_norm": 3.0, "accuracy": 0.5}, 8.0)
    first = capsys.readouterr().err
    assert first.startswith("\r\x1b[K") and not first.endswith("\n")
    assert first.startswith("\r\x1b[Ktoy 1/100  loss 2  8.0 images/s  ")
    assert len(first.removeprefix("\r\x1b[K")) < 50  # one that wraps cannot be overwritten
    line.say("continuing")
    assert capsys.readouterr().err == "\r\x1b[Ktoy: continuing\n"
    line.show(2, {"loss": 2.0}, 8.0)
    line.close()
    assert capsys.readouterr().err.endswith("8.0 images/s  0 s left\n")


def test_the_loss_comes_first_whatever_jax_makes_of_the_order(capsys, monkeypatch):
    """A dictionary that comes out of `jax.jit` is sorted by its keys, and a terminal has room for few."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "50")
    metrics = jax.jit(lambda: {"loss": 2.0, "accuracy": 0.5, "bad": 0.0})()
    assert next(iter(metrics)) == "accuracy"
    line = LiveLine(100, "toy")
    line.show(1, metrics, 8.0)
    assert capsys.readouterr().err.startswith("\r\x1b[Ktoy 1/100  loss 2  8.0 images/s  ")
    line.show(1, {"eval_accuracy": 0.5, "eval_loss": 3.0}, None)
    assert capsys.readouterr().err.startswith("\r\x1b[Ktoy 1/100  eval_loss 3  eval_accuracy 0.5")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min"), (3570, "1 h 00 min"), (7500, "2 h 05 min"), (273_600, "3 d 04 h")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_say(tmp_path, capsys):
    Tracker(tmp_path, {}, 10, label="toy").say("done")
    assert capsys.readouterr().err == "toy: done\n"


def test_what_is_no_record_is_passed_over_and_what_is_no_number_left_out(tmp_path):
    lines = ['{"step": 1, "loss": 0.5, "note": "<u>", "deep": [[1]], "huge": 1e300, "is": true}', "[" * 100_000]
    lines += ['{"step": "2"}', '{"step": -1}', '{"step": 1e3}', "7", "", '{"step": 3, "loss": null}', '{"step": 4, "lo']
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    assert read_log(tmp_path / "log.jsonl") == [{"step": 1, "loss": 0.5}, {"step": 3, "loss": None}]
    Tracker(tmp_path, {}, 10, 2).close()  # whose page is written too
    assert (tmp_path / "log.jsonl").read_text() == lines[0] + "\n"
    assert "<u>" not in (tmp_path / "report.html").read_text()


def test_a_long_log_is_read_quickly(tmp_path):
    line = b'{"step": 1000, "time": 1700000000.1, "loss": 4.25, "learning_rate": 0.005, "grad_norm": 0.5}\n'
    (tmp_path / "log.jsonl").write_bytes(line * 200_000)
    before = time.process_time()
    assert len(read_log(tmp_path / "log.jsonl")) == 200_000
    assert time.process_time() - before < 10  # one is ample

"""Runs that were killed or asked to stop, against one that ran through."""

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from etils import epath

import children
import stopped_runs
import tiny_runs
from dalle_mini.errors import UserError
from dalle_mini.training.run.checkpoint import read_record
from dalle_mini.training.run.folder import check_not_lost, open_run, started_with
from dalle_mini.training.run.loop import run
from dalle_mini.training.run.preemption import INTERRUPTED, PREEMPTED
from dalle_mini.training.tasks import recorded_run
from stopped_runs import STEPS, loop, trainer
from tiny_runs import NAMES, WITHOUT_TIES, Bare, make, short_loop

MEASURED = {  # fields of the log that depend on the machine and the hour
    *("time", "pictures_per_second", "tokens_per_second", "mfu"),
    *("device_memory_gib", "device_memory_peak_gib", "host_memory_gib"),
}


def start(*arguments, devices: int = 1, script=stopped_runs.__file__) -> subprocess.Popen:
    """The script in a process of its own, on so many CPU devices."""
    command = [sys.executable, script, *map(str, arguments)]
    environment = children.environment(devices)
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen) -> tuple[int, str]:
    _, error = process.communicate(timeout=500)
    return process.returncode, error


def records(folder):
    """The log, without the fields that depend on the machine and the hour."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in MEASURED} for line in lines]


def arrays(folder, step: int = STEPS):
    """The checksum, shape and type of every array of a run's state: parameters, optimizer and the rest."""
    return read_record(epath.Path(folder) / "checkpoints" / str(step))["leaves"]


def assert_same(folder, whole):
    assert arrays(folder) == arrays(whole)
    assert records(folder) == records(whole)
    for file in ("model.safetensors", "config.json"):
        assert (folder / "final" / file).read_bytes() == (whole / "final" / file).read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of an undisturbed run, and its trainer."""
    folder = tmp_path_factory.mktemp("whole")
    made = trainer(folder)
    run(made, loop(), folder)
    assert [record["step"] for record in records(folder) if "eval_loss" in record] == [4, 8, 9]
    return folder, made


def disturb(folder, kinds, seed):
    """Run into `folder` again and again, each time with a signal at a random point; (exit code, stderr) after each."""
    rng, at = random.Random(seed), 0
    for number, kind in enumerate(kinds):
        at = rng.randrange(at + 1, STEPS - len(kinds) + number + 1)
        delay = rng.uniform(0, 0.1)
        print(f"seed {seed}: SIG{kind} {delay:.3f} s after batch {at}")
        yield ended(start(folder, "--signal", kind, "--step", at, "--delay", delay))


def check_disturbed(folder, kinds, whole, seed, capsys):
    codes = {"KILL": -signal.SIGKILL, "TERM": PREEMPTED}
    for kind, (code, said) in zip(kinds, disturb(folder, kinds, seed), strict=True):
        assert code == codes[kind], said
        assert "Traceback" not in said
        if kind == "TERM":
            step = int(re.search(r"stopped by SIGTERM; step (\d+) is saved: run the same command again", said)[1])
            assert str(step) in os.listdir(folder / "checkpoints")
    assert not (folder / "final").exists()
    run(whole[1], loop(), folder)
    assert "continuing from step" in capsys.readouterr().err
    assert_same(folder, whole[0])


@pytest.mark.slow
def test_killed_and_asked_to_stop_it_ends_the_same_to_the_bit(whole, tmp_path, capsys):
    check_disturbed(tmp_path, ["KILL", "TERM", "KILL"], whole, 1, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["KILL", "TERM"])
@pytest.mark.parametrize("seed", [2, 3])
def test_five_times(kind, seed, whole, tmp_path, capsys):
    check_disturbed(tmp_path, [kind] * 5, whole, seed, capsys)


@pytest.mark.slow
def test_a_kill_in_the_middle_of_a_line_and_of_a_checkpoint(whole, tmp_path, capsys):
    class Stop(Exception):
        pass

    def stop():
        raise Stop

    with pytest.raises(Stop):
        run(trainer(tmp_path, 7, stop), loop(), tmp_path)
    saved = sorted(int(entry.name) for entry in (tmp_path / "checkpoints").glob("[0-9]*"))
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 7, "los')
    newest = tmp_path / "checkpoints" / str(saved[-1])
    newest.rename(newest.with_name(newest.name + ".orbax-checkpoint-tmp"))
    capsys.readouterr()
    run(whole[1], loop(), tmp_path)
    said = capsys.readouterr().err
    assert f"{newest}.orbax-checkpoint-tmp: half-written, removed" in said
    assert f"continuing from step {saved[-2]}" in said
    assert_same(tmp_path, whole[0])


def test_a_finished_run_is_left_as_it_is(whole, capsys):
    folder, made = whole
    before = (folder / "log.jsonl").read_bytes(), arrays(folder)
    state = run(made, loop(), folder)
    assert f"continuing from step {STEPS}" in capsys.readouterr().err
    assert int(state.step) == STEPS
    assert before == ((folder / "log.jsonl").read_bytes(), arrays(folder))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name != "seq2seq"])
def test_the_other_trainers(name, tmp_path):
    made = make(name, tmp_path, short_loop())
    one = run(Bare(made), short_loop(), tmp_path / "one")

    def stop():
        raise InterruptedError

    with pytest.raises(InterruptedError):
        run(Bare(made, 5, stop), short_loop(), tmp_path / "two")
    two = run(Bare(made), short_loop(), tmp_path / "two")
    jax.tree.map(np.testing.assert_array_equal, one, two)


@pytest.mark.slow
def test_two_devices_learn_the_same(whole, tmp_path):
    assert jax.local_device_count() == 1, "these tests compare with one device"
    for name in NAMES:
        made = make(name, tmp_path / name, short_loop(), WITHOUT_TIES.get(name))
        run(Bare(made), short_loop(), tmp_path / name)
    done = start(tmp_path / "two", *NAMES, devices=2, script=tiny_runs.__file__)
    code, said = ended(done)
    assert code == 0, said
    for name in NAMES:
        logs = (records(folder / name) for folder in (tmp_path, tmp_path / "two"))
        one, two = ([line["loss"] for line in log if "loss" in line] for log in logs)  # evaluations have none
        assert len(one) == short_loop().steps
        np.testing.assert_allclose(two, one, rtol=0, atol=1e-5, err_msg=name)


def both(folder, *arguments):
    """Two processes of four devices each; the second one gets the signal. (exit code, stderr) of each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    common = (folder, "--address", address, "--process")
    first, second = start(*common, 0, devices=4), start(*common, 1, *arguments, devices=4)
    return ended(first), ended(second)


@pytest.mark.slow
def test_of_two_processes_one_is_asked_to_stop(tmp_path):
    through = tmp_path / "through"
    for code, said in both(through):
        assert code == 0, said
        assert "2 processes, 8 devices" in said
    stopped = tmp_path / "stopped"
    saved = stop_one(stopped, "TERM", PREEMPTED)

    # As one process with eight devices: the same losses, but for how the devices' sums are ordered.
    alone = shutil.copytree(stopped, tmp_path / "alone")
    (alone / "checkpoints" / "run.json").unlink()  # it names the folder that was copied, which is still there
    code, said = ended(start(alone, devices=8))
    assert code == 0, said
    assert f"continuing from step {saved}" in said
    for ours, theirs in zip(records(alone), records(through), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)

    # As two again: to the bit.
    for code, said in both(stopped):
        assert code == 0, said
    assert_same(stopped, through)


@pytest.mark.slow
def test_of_two_processes_one_is_interrupted(tmp_path):
    stop_one(tmp_path, "INT", INTERRUPTED)


def stop_one(folder, kind, expected):
    """Both processes end with that code, and have saved the same step, which is returned."""
    for code, said in both(folder, "--signal", kind, "--step", 5, "--delay", 0.02):
        assert code == expected, said
        assert "Traceback" not in said
    saved = max(int(entry.name) for entry in (folder / "checkpoints").glob("[0-9]*"))
    assert 4 <= saved < STEPS
    record = read_record(epath.Path(folder) / "checkpoints" / str(saved))
    assert (record["processes"], record["step"]) == (2, saved)
    return saved


def test_secrets_of_addresses_are_not_recorded_and_a_record_with_them_goes_on(tmp_path):
    config = {
        "trainer": "seq2seq",
        "data": {"source": "http://u:hunter2@h/x", "digest": "a"},
        "sources": {"train": ["http://h/x?k=hunter2"]},
    }
    open_run(tmp_path, config)()
    assert "hunter2" not in (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(json.dumps(config))  # of an earlier version
    open_run(tmp_path, config)()
    assert "hunter2" not in (tmp_path / "config.json").read_text()
    open_run(tmp_path, config | {"data": {"source": "http://h/y", "digest": "a"}})()  # the same data elsewhere
    with pytest.raises(UserError, match=r"was started with other values of data\.digest"):
        open_run(tmp_path, config | {"data": {"source": "http://h/y", "digest": "b"}})
    with pytest.raises(UserError, match="name their addresses again"):
        recorded_run(tmp_path)


@pytest.mark.parametrize(
    "text", ["[" * 50_000, "[]", '{"training": []}', '{"training": {"init_from": 5}}', '{"changes": {}}', "\xff"]
)
def test_a_record_that_makes_no_sense_is_one_line(tmp_path, text):
    (tmp_path / "config.json").write_text(text, "latin-1")
    with pytest.raises(UserError, match=r"config.json: damaged \(.+\), and no checkpoint"):
        started_with(tmp_path)
    (tmp_path / "saved.json").write_text(text, "latin-1")
    check_not_lost(tmp_path, tmp_path / "checkpoints", allow_changes=False)  # it tells nothing

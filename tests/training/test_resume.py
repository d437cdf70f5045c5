"""A run that was killed, and a run on two devices, against one that ran through on one."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_runs
from tiny_runs import NAMES, Bare, make, short_loop

from dalle_mini.training.loop import run
from dalle_mini.training.tracking import MEASURED

SCRIPT = Path(tiny_runs.__file__)
STOP_AT = 5


class Stop(Exception):
    pass


def stop():
    raise Stop


def child(*arguments, devices: int = 1):
    """Run `tiny_runs.py` in a process of its own, on so many CPU devices."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def records(folder):
    """What the log says, but for the clock's part."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in MEASURED} for line in lines]


class Whole:
    """A trainer and its run from beginning to end, made when first asked for."""

    def __init__(self, name, folder):
        self.trainer, self.folder = make(name, folder, short_loop()), folder
        self.state = run(Bare(self.trainer), short_loop(), folder)

    def assert_same(self, state, folder):
        jax.tree.map(np.testing.assert_array_equal, self.state, state)
        assert records(folder) == records(self.folder)
        for file in ("model.safetensors", "config.json"):
            assert (folder / "final" / file).read_bytes() == (self.folder / "final" / file).read_bytes()


@pytest.fixture(scope="module")
def wholes(tmp_path_factory):
    made = {}

    def whole(name):
        if name not in made:
            made[name] = Whole(name, tmp_path_factory.mktemp(name))
        return made[name]

    return whole


@pytest.mark.parametrize(
    "name", [name if name == "seq2seq" else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_a_stopped_run_continues_bit_for_bit(name, wholes, tmp_path, capsys):
    whole = wholes(name)
    steps = [record["step"] for record in records(whole.folder) if "loss" in record]
    assert steps == list(range(1, 9))
    with pytest.raises(Stop):
        run(Bare(whole.trainer, STOP_AT, stop), short_loop(), tmp_path)
    assert not (tmp_path / "final").exists()
    capsys.readouterr()
    state = run(Bare(whole.trainer), short_loop(), tmp_path)
    assert f"{name}: continuing from step {STOP_AT}" in capsys.readouterr().err
    whole.assert_same(state, tmp_path)


def test_a_killed_process_continues_bit_for_bit(wholes, tmp_path, capsys):
    whole = wholes("seq2seq")
    killed = child(tmp_path, "seq2seq", "--die-at", STOP_AT)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    folder = tmp_path / "seq2seq"
    with (folder / "log.jsonl").open("a") as file:
        file.write('{"step": 5, "los')  # where such a kill may leave the log
    state = run(Bare(whole.trainer), short_loop(), folder)
    continued = capsys.readouterr().err
    assert any(f"continuing from step {step}" in continued for step in (STOP_AT - 2, STOP_AT - 1, STOP_AT))
    whole.assert_same(state, folder)


def test_a_finished_run_is_left_as_it_is(wholes, capsys):
    whole = wholes("seq2seq")
    log = (whole.folder / "log.jsonl").read_bytes()
    state = run(Bare(whole.trainer), short_loop(), whole.folder)
    assert "continuing from step 8" in capsys.readouterr().err
    jax.tree.map(np.testing.assert_array_equal, whole.state, state)
    assert (whole.folder / "log.jsonl").read_bytes() == log


@pytest.mark.slow
def test_two_devices_learn_the_same(wholes, tmp_path):
    assert jax.local_device_count() == 1, "these tests compare with one device"
    done = child(tmp_path, *NAMES, devices=2)
    assert done.returncode == 0, done.stderr
    for name in NAMES:
        one, two = (
            [r["loss"] for r in records(folder) if "loss" in r] for folder in (wholes(name).folder, tmp_path / name)
        )
        np.testing.assert_allclose(two, one, rtol=0, atol=1e-5, err_msg=name)

"""A process of several that goes away, as the others hear of it."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dalle_mini.errors import UserError
from dalle_mini.training.run import peers
from dalle_mini.training.run.peers import Peers, ended_with_the_others
from dalle_mini.training.run.preemption import PREEMPTED

SOURCE = str(Path(peers.__file__).parents[3])


class Store:
    """The key-value store that the processes share."""

    def __init__(self):
        self.values, self.is_up = {}, True

    def key_value_set(self, key, value, allow_overwrite):
        if not self.is_up:
            raise RuntimeError("UNAVAILABLE")
        self.values[key] = value

    def key_value_dir_get(self, folder):
        return [(key, value) for key, value in self.values.items() if key.startswith(folder)]


@pytest.fixture
def three(monkeypatch):
    """(the store, three processes with a heartbeat of 20 s, the clock as a list of one)"""
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(peers.platform, "node", lambda: "here")
    monkeypatch.setattr(Peers, "_service_answers", lambda self: self._client.is_up)
    store = Store()
    return store, [Peers(store, number, 3, 20.0) for number in range(3)], clock


def test_who_is_silent_is_named(three):
    _, processes, clock = three
    for second in range(0, 60, 4):
        clock[0] = second
        for number, process in enumerate(processes):
            if number != 2 or second < 8:
                process.beat()
        expected = [] if second <= 16 else ["process 2 on here"]
        assert processes[0].gone() == expected
        assert processes[1].gone() == expected


def test_without_the_service_it_is_the_first_process(three):
    store, processes, _ = three
    for process in (*processes, *processes):
        process.beat()
    store.is_up = False
    assert processes[1].gone() == ["process 0 on here"]
    assert processes[0].gone() == []


def test_a_failed_call_waits_for_the_verdict_and_a_mistake_does_not(three, monkeypatch):
    slept = []
    monkeypatch.setattr(peers.time, "sleep", slept.append)
    monkeypatch.setattr(peers, "_peers", three[1][0])

    def tried(error, cause=None):
        with pytest.raises(type(error)), ended_with_the_others():
            raise error from cause

    tried(UserError("no such file"))
    tried(UserError("cannot write"), OSError(28, "No space left on device"))
    assert slept == []
    tried(ValueError("Gloo AllGather failed: Connection closed by peer"))
    tried(UserError("a checkpoint could not be saved"), RuntimeError("UNAVAILABLE"))
    assert slept == [20.0 + peers.FURTHER] * 2


ABORTED = """if True:
    import os, sys
    from dalle_mini.training.run import peers
    class Client:
        def key_value_set(self, *_, **__): pass
        def key_value_dir_get(self, _): return []
    kept = peers.Peers(Client(), 0, 2, float(sys.argv[1]))
    kept.start()
    os.abort()
"""


@pytest.mark.parametrize(("heartbeat", "code"), [(0.0, PREEMPTED), (1000.0, -signal.SIGABRT)])
def test_an_abort_while_all_are_heard_stays_one(heartbeat, code):
    command = [sys.executable, "-c", ABORTED, str(heartbeat)]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": SOURCE}, capture_output=True, text=True, check=False
    )
    assert done.returncode == code
    told = "process 1 went away: run the same command in all processes again\n"
    assert done.stderr == (told if code == PREEMPTED else "")


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_one_of_two_is_killed_and_the_other_says_so(victim, never_ending, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    out, environment = tmp_path / "run", {**os.environ, "PYTHONPATH": SOURCE, "JAX_PLATFORMS": "cpu"}
    environment |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "DALLE_MINI_HEARTBEAT_SECONDS": "8"}
    command = [sys.executable, "-m", "dalle_mini.cli", "train", str(never_ending), "--output", str(out)]
    both = [
        subprocess.Popen(
            [*command, "--distributed", "loop.checkpoint_minutes=0.001"],
            env={**environment, "JAX_PROCESS_ID": str(number)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    while not list(out.glob("checkpoints/*/record")):
        assert [process.poll() for process in both] == [None, None]
        time.sleep(0.2)
    both[victim].kill()
    _, said = both[1 - victim].communicate(timeout=300)
    assert both[1 - victim].returncode == PREEMPTED, said
    told = said.splitlines()[-1]
    assert told.startswith(f"process {victim} on ") and told.endswith("run the same command in all processes again")
    assert "Traceback" not in said
    both[victim].communicate()

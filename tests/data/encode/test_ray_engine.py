"""The same parts under Ray Data, on a local cluster of two workers, one of which is killed on the way."""

import os
import signal
import sys
import threading
import time

import psutil
import pytest

from dalle_mini.data.encode.encoders import Weights
from dalle_mini.data.encode.job import encode
from noise_dataset import NoiseDataset, content, make_vqgan, options

ray = pytest.importorskip("ray")


@pytest.fixture
def cluster():
    path = os.pathsep.join(entry for entry in sys.path if entry)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": path}})
    yield
    ray.shutdown()


def workers(since: float) -> list[psutil.Process]:
    """Processes of the actors that encode, of this cluster."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.create_time() >= since and "PartEncoder" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.slow
def test_one_of_two_workers_is_killed_and_the_shards_are_the_same(cluster, tmp_path):
    vqgan = make_vqgan(tmp_path / "vqgan")
    encode(NoiseDataset(), Weights(vqgan), str(tmp_path / "local"), options(), workers=0)
    killed, out, go = [], tmp_path / "ray", tmp_path / "go"
    since = time.time() - 60  # clocks of processes are coarse, and the cluster is a little older

    def kill() -> None:
        end = time.monotonic() + 500
        while time.monotonic() < end and not killed:
            if len(found := workers(since)) == 2 and list((out / ".work" / "parts").glob("*")):
                found[0].send_signal(signal.SIGKILL)
                killed.append(found[0].pid)
            time.sleep(0.02)
        go.touch()

    thread = threading.Thread(target=kill)
    thread.start()
    # Parts from the third on are held until the worker is dead: it dies with work in its hands.
    dataset = NoiseDataset(free=2, gate=str(go))
    outcome = encode(dataset, Weights(vqgan), str(out), options(), engine="ray", workers=2)
    thread.join()
    assert killed, "no worker was found to kill"
    assert outcome.manifest is not None
    assert content(out) == content(tmp_path / "local")

"""The server with drawers in replicas of Ray Serve, on a local cluster of two workers."""

import functools
import os
import signal
import sys
import time

import psutil
import pytest

from dalle_mini.errors import UserError
from dalle_mini.serving.drawing import Drawn, Part
from dalle_mini.serving.pipeline import PipelineDrawer
from dalle_mini.settings import GenerationSettings
from fake_drawer import ABOUT, FakeDrawer, tokens_of
from fake_server import running
from serving_client import events, finished, watched

pytestmark = pytest.mark.slow


def replicas(*words):
    from dalle_mini.serving.replicas import replicas  # which takes seconds to import

    return replicas(*words)


@pytest.fixture(scope="module")
def cluster():
    import ray

    path = os.pathsep.join(entry for entry in sys.path if entry)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": path}})
    yield
    ray.shutdown()


@pytest.fixture
def client(cluster, tmp_path):
    """A client of a server with two replicas, which take two seconds for a call."""
    with (
        replicas(2, functools.partial(FakeDrawer, 2.0), tmp_path) as drawers,
        running(drawers, tmp_path / "served") as client,
    ):
        yield client


def drawing() -> list[psutil.Process]:
    """The replicas' processes."""
    found = psutil.Process().children(recursive=True)
    return [one for one in found if "ServeReplica" in " ".join(one.cmdline())]


def right(job, prompt, seed=0):
    for image in job["images"]:
        assert image["tokens"] == tokens_of(prompt, seed, image["candidate"]).tolist()
    return len(job["images"])


def test_partial_images_come_and_a_cancelled_job_ends(client):
    job = client.post("/jobs", json={"prompt": "a red apple", "seed": 3, "candidates": 2, "n": 2}).json()
    with client.stream("GET", f"/jobs/{job['id']}/events", params={"partials": 2}) as response:
        told = list(events(response))
    kinds = [kind for kind, _, _ in told]
    assert "progress" in kinds and "partial" in kinds and kinds[-1] == "done"
    assert right(told[-1][1], "a red apple", 3) == 2
    cancelled = client.post("/jobs", json={"prompt": "a blue cup", "stay": True}).json()
    with client.stream("GET", f"/jobs/{cancelled['id']}/events") as response:
        for kind, _, _ in events(response):
            if kind == "progress":
                client.delete(f"/jobs/{cancelled['id']}")
    assert client.get(f"/jobs/{cancelled['id']}").json()["state"] == "cancelled"
    assert right(finished(client, prompt="a green hat"), "a green hat") == 4
    refused = client.post("/jobs", json={"prompt": "unreadable"})
    assert refused.status_code == 400 and "no words that the model can read" in refused.json()["error"]["message"]
    failed = client.post("/jobs", json={"prompt": "it explodes"}).json()
    told = watched(client, failed["id"])[-1][1]
    assert told["state"] == "failed" and "secret" not in told["error"]


def test_a_killed_replica_is_replaced_and_its_jobs_are_drawn_again(client):
    prompts = [f"cup number {number}" for number in range(4)]
    ids = []
    for number, prompt in enumerate(prompts):  # of two kinds, so that both replicas draw
        fields = {"prompt": prompt, "candidates": 1 + number % 2, "n": 1 + number % 2, "stay": True}
        ids.append(client.post("/jobs", json=fields).json()["id"])
    with client.stream("GET", f"/jobs/{ids[0]}/events") as response:
        killed = None
        for kind, _, _ in events(response):
            if kind == "progress" and killed is None:
                killed = drawing()
                assert killed  # one or both: the server answers as soon as one is there
                for process in killed:
                    process.send_signal(signal.SIGKILL)
    for number, (prompt, id) in enumerate(zip(prompts, ids, strict=True)):
        job = watched(client, id)[-1][1]
        assert job["state"] == "done", job["error"]
        assert right(job, prompt) == 1 + number % 2
    assert {*drawing()} - {*killed}


class Deadly(FakeDrawer):
    """Dies of a prompt, as of memory that runs out."""

    def draw(self, parts):
        if any("deadly" in part.prompt for part in parts):
            os.kill(os.getpid(), signal.SIGKILL)
        yield from super().draw(parts)


def test_a_job_of_which_replicas_die_is_given_up(cluster, tmp_path):
    with replicas(1, Deadly, tmp_path) as (drawer,):
        assert drawer.open() == ABOUT
        with pytest.raises(UserError, match="3 replicas died of it"):
            list(drawer.draw([Part("one", "a deadly cup", GenerationSettings(candidates=1), None, 0, 1)]))
        (*_, drawn) = drawer.draw([Part("two", "a cup", GenerationSettings(candidates=1, seed=5), None, 0, 1)])
        assert drawn.job == "two" and (drawn.pictures[0].tokens == tokens_of("a cup", 5, 0)).all()


class Halting(FakeDrawer):
    """Tells images one by one, and dies between two of them, once."""

    def __init__(self, trace):
        super().__init__()
        self.trace = trace

    def draw(self, parts):
        for event in super().draw(parts):
            if not isinstance(event, Drawn):
                yield event
                continue
            for number, picture in enumerate(event.pictures):
                if number == 2 and not self.trace.exists():
                    self.trace.touch()
                    time.sleep(1)  # so that what was told has arrived
                    os.kill(os.getpid(), signal.SIGKILL)
                yield Drawn(event.job, [picture])


def test_what_was_finished_before_a_replica_died_is_told_once(cluster, tmp_path):
    with replicas(1, functools.partial(Halting, tmp_path / "died"), tmp_path) as (drawer,):
        drawer.open()
        parts = [Part("one", "a cup", GenerationSettings(candidates=6), None, first, 3) for first in (0, 3)]
        told = [one.candidate for event in drawer.draw(parts) if isinstance(event, Drawn) for one in event.pictures]
    assert (tmp_path / "died").exists() and sorted(told) == [0, 1, 2, 3, 4, 5]


def golden(bundle):
    from dalle_mini.pipeline import DalleMini

    return PipelineDrawer(lambda: DalleMini.from_pretrained(bundle), "golden")


def test_two_replicas_of_a_real_model_draw_what_generate_draws(cluster, tmp_path, golden_bundle, pipe):
    calls = {}
    with replicas(2, functools.partial(golden, golden_bundle), tmp_path) as drawers:
        for number, drawer in enumerate(drawers):

            def counted(parts, number=number, draw=drawer.draw):
                calls[number] = calls.get(number, 0) + 1
                yield from draw(parts)

            drawer.draw = counted
        with running(drawers, tmp_path / "served") as client:
            while len(client.jobs._open) < 2:
                assert not client.jobs._broken
                time.sleep(0.1)
            asked = [("a red apple", 3, 1), ("a fox", 5, 2), ("a snail", 7, 4), ("a cat", 9, 8)]  # of four kinds
            jobs = []
            for prompt, seed, count in asked * 3:
                fields = {"prompt": prompt, "seed": seed, "candidates": count, "n": count, "stay": True}
                jobs.append((prompt, seed, count, client.post("/jobs", json=fields).json()["id"]))
            for prompt, seed, count, id in jobs:
                job = watched(client, id)[-1][1]
                assert job["state"] == "done", job["error"]
                (wanted,) = pipe.generate([prompt], seed=seed, candidates=count, keep=count)
                assert [image["candidate"] for image in job["images"]] == wanted.indices
                assert [image["tokens"] for image in job["images"]] == wanted.tokens.tolist()
                assert [image["score"] for image in job["images"]] == [round(one, 4) for one in wanted.scores]
    assert calls.keys() == {0, 1}


def test_there_must_be_room(cluster, tmp_path):
    with pytest.raises(UserError, match="--replicas is 3, but Ray has 2 CPUs"), replicas(3, FakeDrawer, tmp_path):
        pass

"""Kills, hang-ups, slow readers, full disks and clients that vanish."""

import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from dalle_mini.errors import UserError
from dalle_mini.serving.drawing import Away
from fake_drawer import FakeDrawer, tokens_of
from serving_client import events, finished, watched

SERVER = """
import json, sys
from pathlib import Path
sys.path[:0] = [sys.argv[3]]
import uvicorn
from dalle_mini.serving.app import application
from dalle_mini.serving.server import Server
from dalle_mini.serving.settings import ServerSettings
from fake_drawer import FakeDrawer

class Noting(FakeDrawer):
    def draw(self, parts):
        with open(sys.argv[2], "a") as file:
            file.writelines(json.dumps([part.prompt, part.first, part.count]) + "\\n" for part in parts)
        yield from super().draw(parts)

app = application([Noting(0.2)], ServerSettings(folder=Path(sys.argv[1])))
config = uvicorn.Config(app, port=int(sys.argv[4]), log_config=None)
Server(config, app.state.jobs).run()
"""


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Process:
    """A server in a process of its own, which can be killed."""

    def __init__(self, tmp_path):
        self.folder, self.notes, self.port = tmp_path / "served", tmp_path / "drawn", free_port()
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=30, trust_env=False)

    def start(self):
        here = str(Path(__file__).parents[1] / "helpers")
        command = [sys.executable, "-c", SERVER, str(self.folder), str(self.notes), here, str(self.port)]
        self.process = subprocess.Popen(command)
        while True:
            assert self.process.poll() is None
            try:
                if self.client.get("/readyz").status_code == 200:
                    return self
            except httpx.TransportError:
                pass
            time.sleep(0.05)

    def end(self, number):
        self.process.send_signal(number)
        return self.process.wait()

    def drawn(self):
        return [tuple(json.loads(line)) for line in self.notes.read_text().splitlines()]


@pytest.fixture
def process(tmp_path):
    process = Process(tmp_path)
    yield process.start()
    process.end(signal.SIGKILL)


class Replaced(FakeDrawer):
    """Does not answer short questions."""

    def check(self, prompt, settings):
        raise Away

    def unknown_words(self, prompt):
        raise Away


class Unloadable(FakeDrawer):
    def open(self):
        raise UserError("no such model")


def test_another_drawer_answers_in_place_of_one_that_is_away_or_has_no_model(serve, tmp_path):
    client = serve([Unloadable(), Replaced(), FakeDrawer()])
    while len(client.jobs._open) < 2:
        time.sleep(0.01)
    assert finished(client, prompt="a fox")["state"] == "done"
    assert client.get("/words", params={"prompt": "a chaise"}).json()["unknown"]
    alone = serve([Replaced()], folder=tmp_path / "alone")
    answer = alone.post("/jobs", json={"prompt": "a fox"})
    assert answer.status_code == 503 and answer.headers["retry-after"] == "5"


def test_a_server_none_of_whose_drawers_has_a_model(serve):
    client = serve([Unloadable(), Unloadable()], wait=False)
    while "loads" in (told := client.get("/readyz").json()["error"]["message"]):
        time.sleep(0.01)
    assert told == "the model could not be loaded: no such model"


@pytest.mark.slow
def test_kill_in_the_middle_of_20_jobs_loses_none(process):
    fields = {"candidates": 24, "n": 2, "stay": True}
    ids = {}
    for number in range(20):
        ids[f"fox {number}"] = process.client.post("/jobs", json={"prompt": f"fox {number}", **fields}).json()["id"]
    while len(process.drawn()) < 12:
        time.sleep(0.05)
    process.end(signal.SIGKILL)
    killed_in = process.drawn()
    process.start()
    for prompt, id in ids.items():
        kind, job, _ = watched(process.client, id)[-1]
        assert kind == "done" and job["state"] == "done" and len(job["images"]) == 2
        best = sorted(range(24), key=lambda one: (-int(tokens_of(prompt, 0, one)[0]), one))[:2]
        assert [image["candidate"] for image in job["images"]] == best
        for image in job["images"]:
            assert process.client.get(image["url"]).status_code == 200
    again = [one for number, one in enumerate(process.drawn()) if one in process.drawn()[:number]]
    # The call that was killed, and those whose images were on their way to the disk.
    assert len(again) <= 4 and set(again) <= set(killed_in[-6:])


def test_asked_to_stop_it_finishes_its_call_and_keeps_the_rest(process):
    ids = [
        process.client.post("/jobs", json={"prompt": f"a {n}", "candidates": 16, "n": 1, "stay": True}).json()["id"]
        for n in range(6)
    ]
    while not process.notes.exists() or len(process.drawn()) < 2:
        time.sleep(0.02)
    assert process.end(signal.SIGTERM) in (0, -signal.SIGTERM)
    before = process.drawn()
    process.start()
    for id in ids:
        assert watched(process.client, id)[-1][1]["state"] == "done"
    assert sorted(process.drawn()) == sorted(set(process.drawn())) and len(before) < len(process.drawn())


def test_cancel_takes_effect_before_the_next_pause_and_only_on_this_job(serve):
    client = serve(FakeDrawer(stepped=True))
    ids = [client.post("/jobs", json={"prompt": f"fox {n}", "candidates": 1, "n": 1}).json()["id"] for n in range(5)]
    client.drawer.step()
    while not client.drawer.pauses:
        time.sleep(0.01)
    running = [id for id in ids if client.get(f"/jobs/{id}").json()["state"] == "running"]
    queued = [id for id in ids if id not in running]
    assert running and queued
    for id in (running[0], queued[0]):
        assert client.delete(f"/jobs/{id}").json()["state"] == "cancelled"
        assert client.get(f"/jobs/{id}").json()["state"] == "cancelled"
    assert client.drawer.dropped == {running[0]}
    client.drawer.step(1000)
    for id in ids:
        job = watched(client, id)[-1][1]
        assert job["state"] == ("cancelled" if id in (running[0], queued[0]) else "done")
    assert queued[0] not in {part.job for call in client.drawer.calls for part in call}
    assert not list((client.jobs.store.folder / "images" / running[0]).glob("*"))


def test_a_client_that_vanishes_stops_costing_unless_the_job_stays(serve):
    client = serve(FakeDrawer(stepped=True), patience=0.5)
    left = client.post("/jobs", json={"prompt": "left", "candidates": 1, "n": 1}).json()["id"]
    stays = client.post("/jobs", json={"prompt": "stays", "candidates": 1, "n": 1, "stay": True}).json()["id"]
    with client.stream("GET", f"/jobs/{left}/events") as response:
        next(events(response))
    while left in client.jobs._jobs and not client.jobs._jobs[left].is_over:
        time.sleep(0.02)
    client.drawer.step(100)
    told = client.get(f"/jobs/{left}").json()
    assert told["state"] == "cancelled" and "vanished" in told["error"]["message"]
    assert watched(client, stays)[-1][1]["state"] == "done"


def test_an_openai_client_that_hangs_up_stops_costing_at_once(serve):
    client = serve(FakeDrawer(stepped=True))
    body = json.dumps({"prompt": "a fox"}).encode()
    head = "POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with socket.create_connection((client.base_url.host, client.base_url.port)) as wire:
        wire.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        while not client.drawer.calls:
            time.sleep(0.01)
    while not client.drawer.dropped:
        time.sleep(0.01)
    client.drawer.step(1000)
    assert finished(client, prompt="another", candidates=1, n=1)["state"] == "done"


def test_200_clients_that_hang_up_at_random(serve):
    client = serve(FakeDrawer(0.02), per_minute=0, queue=1000)
    rng = random.Random(0)
    address = client.base_url.host, client.base_url.port
    body = json.dumps({"prompt": "a fox", "stream": True, "partial_images": 3, "candidates": 1}).encode()
    head = b"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    request = head + b"Content-Length: %d\r\n\r\n" % len(body) + body

    def hang_up(part, reads):
        with socket.create_connection(address) as wire:
            wire.sendall(request[: int(part * len(request))])
            if reads:
                wire.recv(reads)
            if reads % 2:  # a reset in place of a goodbye
                wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    plans = [(rng.choice([0.3, 1.0, 1.0, 1.0]), rng.choice([0, 0, 1, 200, 2001])) for _ in range(200)]
    threads = [threading.Thread(target=hang_up, args=(part, reads if part == 1 else 0)) for part, reads in plans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert finished(client, prompt="still there", candidates=1, n=1)["state"] == "done"
    while any(not job.is_over for job in client.jobs._jobs.values()):
        time.sleep(0.02)
    assert len(client.jobs._queue) == 0


def test_a_slow_reader_costs_no_memory_and_holds_up_nobody(serve):
    client = serve(FakeDrawer(0.01), pictures=256, per_minute=0)
    slow = client.post("/jobs", json={"prompt": "slow", "candidates": 256, "n": 1}).json()["id"]
    with socket.create_connection((client.base_url.host, client.base_url.port)) as wire:
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        wire.sendall(f"GET /jobs/{slow}/events?partials=256 HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert finished(client, prompt="quick", candidates=1, n=1)["state"] == "done"
        log = client.jobs._jobs[slow].log if slow in client.jobs._jobs else None
        while client.get(f"/jobs/{slow}").json()["state"] != "done":
            assert log is None or len(log._events) <= 256 + 8
            time.sleep(0.02)


def test_a_full_disk_is_503_and_no_crash(serve, full_disk):
    client = serve()
    assert finished(client, prompt="a fox", candidates=1, n=1)
    with full_disk(100):
        answer = client.post("/jobs", json={"prompt": "a fox"})
        assert answer.status_code == 503 and answer.json()["error"]["code"] == "disk_full"
        assert answer.headers["retry-after"] and client.get("/healthz").status_code == 200
    assert finished(client, prompt="a fox", candidates=1, n=1)["state"] == "done"


def test_a_disk_that_fills_while_a_job_is_drawn(serve, full_disk):
    client = serve(FakeDrawer(stepped=True))
    id = client.post("/jobs", json={"prompt": "a fox", "candidates": 1, "n": 1}).json()["id"]
    with full_disk(100):
        client.drawer.step(4)
        told = watched(client, id)[-1][1]
    assert told["state"] == "failed" and "disk" in told["error"]["message"]
    client.drawer.step(100)
    assert finished(client, prompt="a fox", candidates=1, n=1)["state"] == "done"


def test_a_job_that_fails_tells_why_and_the_next_is_drawn(client):
    job = finished(client, prompt="it fails", candidates=1, n=1)
    assert job["state"] == "failed" and job["error"] == {"message": "it cannot be drawn"}
    assert finished(client, prompt="it explodes", candidates=1, n=1)["state"] == "failed"
    assert finished(client, prompt="a fox", candidates=1, n=1)["state"] == "done"


def test_deleted_images_are_gone_and_not_unknown(client):
    job = finished(client, prompt="a fox", candidates=1, n=1)
    url = job["images"][0]["url"]
    assert client.delete(f"/jobs/{job['id']}").json()["state"] == "done"
    assert client.get(f"/jobs/{job['id']}").status_code == 410
    assert client.get(f"/jobs/{job['id']}/events").status_code == 410 == client.get(url).status_code
    assert client.get("/jobs/unknown").status_code == 404


def test_the_queue_has_a_limit(serve):
    client = serve(FakeDrawer(stepped=True), queue=4, keys=("a", "b"))
    mine, other = ({"Authorization": f"Bearer {key}"} for key in "ab")
    job = {"prompt": "a fox", "candidates": 16, "n": 1}
    codes = [client.post("/jobs", json=job, headers=mine).status_code for _ in range(4)]
    assert codes[:2] == [202, 202] and 429 in codes[2:]  # one may be drawn by then, and two may wait
    refused = client.post("/jobs", json=job, headers=mine)
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["code"] == "queue_full"
    assert client.post("/jobs", json=job, headers=other).status_code == 202


def test_metrics_count(client):
    finished(client, prompt="a fox", candidates=3, n=1)
    text = client.get("/metrics").text
    assert 'dalle_jobs_ended_total{state="done"} 1.0' in text and "dalle_images_total 3.0" in text
    assert 'dalle_requests_total{route="create_job",status="202"} 1.0' in text


def test_the_place_in_the_queue_and_the_time_left(serve):
    client = serve(FakeDrawer(stepped=True))
    job = {"candidates": 16, "n": 1}
    client.drawer.step(4)
    finished(client, prompt="first", **job)
    ids = [client.post("/jobs", json={"prompt": f"fox {n}", **job}).json()["id"] for n in range(4)]
    client.drawer.step()
    while not any(client.get(f"/jobs/{id}").json()["passes_done"] for id in ids):
        time.sleep(0.01)
    told = [client.get(f"/jobs/{id}").json() for id in ids]
    assert [one["place"] for one in told] == [None, 1, 2, 3]
    left = [one["seconds_left"] for one in told]
    assert left == sorted(left) and told[0]["passes_done"] == 64 and told[0]["passes_total"] == 256

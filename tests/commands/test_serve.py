"""`dalle-mini serve` as it is typed, with a tiny model."""

import io
import json
import os
import re
import signal
import subprocess
import sys

import httpx
import numpy as np
import pytest
from PIL import Image

from dalle_mini.cli import main
from serving_client import watched


class Served:
    """The command in a process of its own.

    Attributes:
        told: its lines of stderr so far.
    """

    def __init__(self, model, folder, *words, **environment):
        words = ["serve", "--model", str(model), "--port", "0", "--folder", str(folder), *words]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dalle_mini", *words],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment},
        )
        self.told = []
        while not self.told or '"ready"' not in self.told[-1]:
            line = self.process.stderr.readline()
            assert line, self.told
            self.told.append(line)
        (url,) = re.findall(r"listens at (http://\S+)", "".join(self.told))
        self.client = httpx.Client(base_url=url, timeout=60, trust_env=False)

    def end(self, number):
        self.process.send_signal(number)
        self.told += self.process.stderr.readlines()
        return self.process.wait()


@pytest.fixture
def served(golden_bundle, tmp_path):
    running = []

    def start(*words, **environment):
        running.append(Served(golden_bundle, tmp_path / "served", *words, **environment))
        return running[-1]

    yield start
    for one in running:
        if one.process.poll() is None:
            one.end(signal.SIGKILL)


@pytest.mark.slow
def test_images_are_those_of_generate_and_a_kill_loses_no_job(served, pipe):
    first = served()
    assert first.client.get("/").status_code == 200 and first.client.get("/about").json()["limits"]["queue"] == 256
    asked = {"prompt": "a red apple", "seed": 7, "candidates": 4, "n": 2, "stay": True}
    job = watched(first.client, first.client.post("/jobs", json=asked).json()["id"])[-1][1]
    (result,) = pipe.generate(["a red apple"], candidates=4, keep=2, seed=7)
    assert [image["candidate"] for image in job["images"]] == result.indices
    assert [image["tokens"] for image in job["images"]] == result.tokens.tolist()
    for image, drawn in zip(job["images"], result.images, strict=True):
        png = first.client.get(image["url"]).content
        assert (np.asarray(Image.open(io.BytesIO(png))) == np.asarray(drawn)).all()
    again = {"prompt": "a red apple", "seed": 7, "first": result.indices[1], "candidates": 1, "n": 1}
    alone = watched(first.client, first.client.post("/jobs", json=again).json()["id"])[-1][1]["images"][0]
    assert alone["tokens"] == job["images"][1]["tokens"] and alone["address"] == job["images"][1]["address"]
    ids = [first.client.post("/jobs", json={**asked, "seed": seed}).json()["id"] for seed in range(5)]
    first.end(signal.SIGKILL)
    second = served()
    for seed, id in enumerate(ids):
        (result,) = pipe.generate(["a red apple"], candidates=4, keep=2, seed=seed)
        images = watched(second.client, id)[-1][1]["images"]
        assert [image["tokens"] for image in images] == result.tokens.tolist()
    kept = second.client.get(f"/jobs/{job['id']}").json()
    assert [image["tokens"] for image in kept["images"]] == [image["tokens"] for image in job["images"]]


def test_it_stops_when_it_is_asked_to_and_logs_json(served):
    server = served("--root-path", "/draw", DALLE_MINI_KEYS="one, two")
    for prefix in ("", "/draw"):  # a proxy may take it off, or leave it on
        assert server.client.get(f"{prefix}/about").status_code == 401
        assert server.client.get(f"{prefix}/about", headers={"Authorization": "Bearer two"}).status_code == 200
    assert server.end(signal.SIGTERM) == 143
    lines = [json.loads(line) for line in server.told if line.startswith("{")]
    assert [line["status"] for line in lines if line["message"] == "request"] == [401, 200] * 2
    assert "Traceback" not in "".join(server.told)


@pytest.mark.parametrize(("host", "keys", "warned"), [("0.0.0.0", "", 1), ("0.0.0.0", "one", 0), ("127.0.0.1", "", 0)])
def test_a_warning_without_keys(golden_bundle, tmp_path, capsys, monkeypatch, host, keys, warned):
    monkeypatch.setattr("dalle_mini.serving.server.serve", lambda app, at, root_path: at.close())
    monkeypatch.setenv("DALLE_MINI_KEYS", keys)
    words = ["--host", host, "--port", "0", "--folder", str(tmp_path / "served"), "--model", str(golden_bundle)]
    assert main(["serve", *words]) == 0
    told = capsys.readouterr().err
    assert told.count("warning: everybody who reaches 0.0.0.0 may draw") == warned and f"http://{host}:" in told


@pytest.mark.parametrize(
    ("words", "keys", "hosts"),
    [
        ([], "", ()),
        (["--host", "localhost"], "", ()),
        (["--host", "0.0.0.0"], "", None),
        ([], "one", None),
        (["--allow-host", "a.example", "--allow-host", "b.example"], "", ("a.example", "b.example")),
        (["--allow-host", "a.example"], "one", ("a.example",)),
    ],
)
def test_names_that_the_server_answers_to(golden_bundle, tmp_path, monkeypatch, words, keys, hosts):
    seen = []
    monkeypatch.setattr("dalle_mini.serving.server.serve", lambda app, at, root_path: seen.append(app) or at.close())
    monkeypatch.setenv("DALLE_MINI_KEYS", keys)
    always = ["--port", "0", "--folder", str(tmp_path / "served"), "--model", str(golden_bundle)]
    assert main(["serve", *always, *words]) == 0
    assert seen[0].state.jobs.settings.hosts == hosts


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--port", "70000"], "--port is 70000"),
        (["--root-path", "draw"], "--root-path is 'draw'"),
        (["--queue", "0"], "--queue is 0"),
        (["--frame", "https://a.example; script-src *"], "--frame is 'https://a.example; script-src *'"),
        (["--pictures", "9999"], "--pictures is 9999"),
        (["--keep-hours", "-1"], "--keep-hours is -1"),
        (["--keep-hours", "nan"], "--keep-hours is nan"),
        (["--batch-size", "0"], "--batch-size is 0"),
        (["--replicas", "2"], "--replicas needs --ray"),
        (["--ray", "--replicas", "0"], "--replicas is 0"),
        (["--keys", "/no/such/file"], "--keys /no/such/file cannot be read"),
        (["--host", "192.0.2.1"], "cannot listen at 192.0.2.1"),
        (["--model", "/no/such/model"], "no such folder"),
    ],
)
def test_mistakes_are_told_in_one_line(capsys, tmp_path, words, told):
    assert main(["serve", "--port", "0", "--folder", str(tmp_path / "served"), *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert told in captured.err


def test_without_ray_one_line_names_the_extras(golden_bundle, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "dalle_mini.serving.replicas", raising=False)
    words = ["--port", "0", "--folder", str(tmp_path / "served"), "--model", str(golden_bundle), "--ray"]
    assert main(["serve", *words]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: --ray needs Ray Serve: pip install") and "[serve,ray]" in told
    assert told.count("\n") == 1


@pytest.mark.slow
def test_a_server_with_replicas_that_is_killed_loses_no_job(served, pipe):
    words = ("--ray", "--replicas", "1")
    first = served(*words)
    asked = {"prompt": "a red apple", "candidates": 4, "n": 2, "stay": True}
    ids = [first.client.post("/jobs", json={**asked, "seed": seed}).json()["id"] for seed in range(3)]
    first.end(signal.SIGKILL)
    second = served(*words)
    for seed, id in enumerate(ids):
        (result,) = pipe.generate(["a red apple"], candidates=4, keep=2, seed=seed)
        images = watched(second.client, id)[-1][1]["images"]
        assert [image["tokens"] for image in images] == result.tokens.tolist()
    assert second.end(signal.SIGTERM) == 143
    assert "Traceback" not in "".join(second.told)


def test_a_file_of_keys(tmp_path):
    from dalle_mini.commands.serve import _keys
    from dalle_mini.errors import UserError

    (tmp_path / "keys").write_text("# of friends\n\n one \ntwo\n")
    assert _keys(str(tmp_path / "keys")) == ("one", "two")
    (tmp_path / "keys").write_text("# none\n")
    with pytest.raises(UserError, match="has no key"):
        _keys(str(tmp_path / "keys"))

"""Tracking with wandb: the real client without an account, and what happens when it fails."""

import json
import re
import sys
import time

import pytest
from PIL import Image

from dalle_mini.errors import UserError
from dalle_mini.runtime.installing import install_line
from dalle_mini.settings import GenerationSettings
from dalle_mini.training.config.sections import TrackingConfig
from dalle_mini.training.records import read_log
from dalle_mini.training.tracking.samples import Sample
from dalle_mini.training.tracking.tracker import Tracker

ON = TrackingConfig(wandb="tests", wandb_checkpoints=True)


def samples():
    pictures = [Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")]
    return [Sample("a red apple", pictures, [3.0, 1.0], [1, 0], GenerationSettings(2))]


class Fake:
    """As much of the client as a run uses. The calls in `broken` fail."""

    def __init__(self):
        self.started, self.logged, self.artifacts, self.broken, self.ended = [], [], [], set(), []
        self.id = self.url = None
        self.new = "abc123"

    def _act(self, name):
        if name in self.broken:
            raise ConnectionError(f"{name} cannot reach the service\nand a traceback")

    def Settings(self, **_):
        return None

    def init(self, **options):
        self._act("init")
        self.started.append(options)
        self.id, self.url = options["id"] or self.new, "https://somewhere"
        return self

    def define_metric(self, *_, **__):
        pass

    def log(self, values):
        self._act("log")
        self.logged.append(values)

    def Image(self, image, caption=None):
        return ("image", image.getpixel((0, 0)), caption)

    def Table(self, columns):
        class Table:
            def __init__(self):
                self.rows = []

            def add_data(self, *row):
                self.rows.append(dict(zip(columns, row, strict=True)))

        return Table()

    def Artifact(self, name, type, metadata):
        class Artifact:
            def __init__(self):
                self.name, self.metadata, self.content = f"{type}:{name}", metadata, []

            def add_dir(self, folder):
                self.content.append(("dir", folder))

            def add_reference(self, address):
                self.content.append(("reference", address))

        return Artifact()

    def log_artifact(self, artifact, aliases):
        self._act("log_artifact")
        self.artifacts.append((artifact.name, artifact.metadata, artifact.content, aliases))

    def finish(self, exit_code):
        self.ended.append(exit_code)


@pytest.fixture
def wandb(monkeypatch):
    fake = Fake()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_what_is_sent(wandb, tmp_path):
    tracker = Tracker(tmp_path / "mini-2", {"loop": {"steps": 10}}, 10, label="seq2seq", tracking=ON)
    tracker.log(5, {"loss": 2.0, "grad_norm": float("nan")}, 8.0)
    tracker.samples(5, samples())
    tracker.checkpoint(5, tmp_path / "mini-2" / "checkpoints" / "5")
    tracker.checkpoint(10, "gs://bucket/run/final", kind="model")
    tracker.close()
    (started,) = wandb.started
    assert (started["project"], started["name"], started["job_type"]) == ("tests", "mini-2", "seq2seq")
    assert started["config"] == {"loop": {"steps": 10}}
    first, pictures, score = wandb.logged
    assert (first["step"], first["loss"], first["pictures_per_second"]) == (5, 2.0, 8.0)
    assert first["host_memory_gib"] > 0 and "grad_norm" not in first and "time" not in first
    assert pictures["best"] == [("image", (255, 0, 0), "a red apple")]
    rows = pictures["pictures"].rows
    assert [(row["step"], row["prompt"], row["rank"], row["score"]) for row in rows] == [
        (5, "a red apple", 1, 3.0),
        (5, "a red apple", 2, 1.0),
    ]
    assert rows[1]["picture"][1] == (0, 0, 255) and rows[1]["candidate"] == 0
    assert (score["step"], score["sample_score"]) == (5, 2.0)
    checkpoint, model = wandb.artifacts
    folder = str(tmp_path / "mini-2" / "checkpoints" / "5")
    assert checkpoint == ("checkpoint:checkpoint-abc123", {"step": 5}, [("dir", folder)], ["latest", "step-5"])
    assert model[0] == "model:model-abc123" and model[2] == [("reference", "gs://bucket/run/final")]
    assert wandb.ended == [0]


def test_checkpoints_are_sent_where_that_was_asked_for(wandb, tmp_path):
    tracker = Tracker(tmp_path, {}, 10, tracking=TrackingConfig(wandb="tests"))
    tracker.checkpoint(5, tmp_path)
    tracker.close(failed=True)
    assert wandb.artifacts == [] and wandb.ended == [1]


def test_nothing_without_a_project(wandb, tmp_path):
    Tracker(tmp_path, {}, 10, tracking=TrackingConfig()).log(1, {"loss": 1.0})
    assert wandb.started == [] and not (tmp_path / "wandb.json").exists()


def test_a_resumed_run_is_the_same_one(wandb, tmp_path):
    Tracker(tmp_path, {}, 10, tracking=ON).close()
    assert json.loads((tmp_path / "wandb.json").read_text())["id"] == "abc123"
    wandb.new = "another"
    Tracker(tmp_path, {}, 10, 5, tracking=ON).close()
    assert [one["id"] for one in wandb.started] == [None, "abc123"]
    assert {one["resume"] for one in wandb.started} == {"allow"}


@pytest.mark.parametrize("broken", ["log", "log_artifact"])
def test_a_failure_amid_a_run_is_said_once_and_ends_nothing(wandb, tmp_path, capsys, broken):
    tracker = Tracker(tmp_path, {}, 10, label="toy", tracking=ON)
    wandb.broken = {broken}
    for step in (1, 2, 3):
        tracker.log(step, {"loss": 1.0})
        tracker.checkpoint(step, tmp_path)
        tracker.samples(step, samples())
    tracker.close()
    err = capsys.readouterr().err
    assert err.count("wandb failed") == 1
    assert f"toy: wandb failed, and this run continues without it: {broken} cannot reach the service\n" in err
    assert [record["step"] for record in read_log(tmp_path / "log.jsonl")] == [1, 1, 2, 2, 3, 3]


def test_a_new_run_that_cannot_start_is_the_users_to_mend(wandb, tmp_path, capsys):
    wandb.broken = {"init"}
    with pytest.raises(UserError) as error:
        Tracker(tmp_path, {}, 10, tracking=ON)
    assert str(error.value).startswith("tracking.wandb: cannot start a run (init cannot reach the service): log in")
    assert "\n" not in str(error.value)
    # One that is continued, by a watcher at night for one, goes on.
    Tracker(tmp_path, {}, 10, 5, tracking=ON).log(6, {"loss": 1.0})
    assert "continues without it" in capsys.readouterr().err


def test_without_the_package(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(
        UserError, match=f"^tracking.wandb: wandb is not installed: {re.escape(install_line('wandb'))}, or"
    ):
        Tracker(tmp_path, {}, 10, tracking=ON)


def test_the_real_client_offline(tmp_path, monkeypatch, capfd):
    """All of it, twice, as a run that is continued; without account or network."""
    pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_DIR", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path))
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "model.safetensors").write_bytes(b"weights")
    out = tmp_path / "run"
    for start in (0, 1):
        tracker = Tracker(out, {"loop": {"steps": 2}}, 2, start, "seq2seq", ON)
        tracker.log(start + 1, {"loss": 2.0}, 8.0)
        tracker.samples(start + 1, samples())
        tracker.checkpoint(start + 1, weights)
        tracker.close()
    assert "wandb failed" not in capfd.readouterr().err
    runs = sorted((out / "wandb").glob("offline-run-*"))
    identity = json.loads((out / "wandb.json").read_text())["id"]
    assert runs and all(identity in run.name for run in runs)  # within one second the client adds "-1"
    wanted = (b"loss", b"pictures_per_second", b"a red apple", b"step-2", b"host_memory_gib")
    for _ in range(300):  # its own process may still be writing
        content = b"".join(file.read_bytes() for run in runs for file in run.glob("run-*.wandb"))
        missing = [sent for sent in wanted if sent not in content]
        if not missing:
            break
        time.sleep(0.1)
    assert not missing

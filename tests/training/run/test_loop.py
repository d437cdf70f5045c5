"""The loop around a trainer of two numbers."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import children
from dalle_mini.errors import UserError
from dalle_mini.training.config.sections import LoopConfig
from dalle_mini.training.run import folder as resume
from dalle_mini.training.run.folder import started_with
from dalle_mini.training.run.init_from import loaded_parameters
from dalle_mini.training.run.loop import run
from lines import LOOP, Judged, Line, logged


def test_what_a_run_leaves(tmp_path):
    trainer = Line()
    state = run(trainer, LOOP, tmp_path / "new" / "run")
    folder = tmp_path / "new" / "run"
    assert sorted(entry.name for entry in folder.iterdir()) == [
        "checkpoints",
        "config.json",
        "final",
        "log.jsonl",
        "report.html",
        "saved.json",
    ]
    assert int(state.step) == 10
    assert list(logged(folder, "loss")) == [3, 6, 9, 10]
    assert list(logged(folder, "eval_distance")) == trainer.evaluated == [4, 8, 10]
    losses = list(logged(folder, "loss").values())
    assert losses == sorted(losses, reverse=True)
    assert len(set(logged(folder, "noise").values())) == 4  # every step has its own key
    np.testing.assert_array_equal(np.load(folder / "final" / "w.npy"), state.params["w"])
    config = json.loads((folder / "config.json").read_text())
    assert config["trainer"] == "line"
    assert config["loop"] == dataclasses.asdict(LOOP)
    assert config["training"] == {"rate": 0.25, "model": {"width": 2, "levels": [1, 2]}}


def test_the_seed_decides(tmp_path):
    first, again, other = (
        run(Line(), dataclasses.replace(LOOP, seed=seed), tmp_path / str(i)) for i, seed in enumerate((0, 0, 1))
    )
    np.testing.assert_array_equal(first.params["w"], again.params["w"])
    assert not np.array_equal(first.params["w"], other.params["w"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    run(Line(), LOOP, folder)
    return folder


@pytest.mark.parametrize(
    ("trainer", "loop", "before"),
    [
        ({"rate": 0.5}, {}, {"training.rate": 0.25}),
        ({"width": 3}, {}, {"training.model.width": 2}),
        ({}, {"steps": 20}, {"loop.steps": 10}),
        ({"rate": 0.5}, {"seed": 1, "batch_size": 8}, {"loop.batch_size": 4, "loop.seed": 0, "training.rate": 0.25}),
    ],
)
def test_another_configuration_is_refused_by_name(finished, trainer, loop, before):
    log = (finished / "log.jsonl").read_bytes()
    with pytest.raises(UserError) as caught:
        run(Line(**trainer), dataclasses.replace(LOOP, **loop), finished)
    values = ", ".join(f"{name}={value}" for name, value in before.items())
    assert str(caught.value) == (
        f"{finished / 'config.json'}: the run there was started with other values of {', '.join(before)}: "
        f"continue it with those ({values}), or with --allow-changes, or choose another folder"
    )
    assert (finished / "log.jsonl").read_bytes() == log


class Sourced(Line):
    """A line that says what its data is."""

    def __init__(self, data):
        super().__init__()
        self.data = data

    def settings(self):
        return {**super().settings(), "data": self.data}


def test_other_data_is_refused_by_name(tmp_path):
    data = {"train": {"split": "train", "seed": 0}, "tokenizer": "ab"}
    run(Sourced(data), LOOP, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["data"] == data
    run(Sourced(data), LOOP, tmp_path)
    for other, names in [
        ({**data, "train": {"split": "train", "seed": 1}}, "data.train.seed"),
        ({**data, "tokenizer": "cd"}, "data.tokenizer"),
        (None, "data"),
    ]:
        with pytest.raises(UserError, match=f"other values of {names}:"):
            run(Sourced(other), LOOP, tmp_path)


def test_a_run_that_did_not_record_its_data_is_continued(finished):
    assert int(run(Sourced({"train": "anything"}), LOOP, finished).step) == 10


def test_another_trainer_is_refused(finished):
    other = Line()
    other.name = "curve"
    with pytest.raises(UserError, match="other values of trainer"):
        run(other, LOOP, finished)


def test_how_often_may_change(finished):
    changed = dataclasses.replace(LOOP, log_every=1, eval_every=1, checkpoint_minutes=1.0, keep=1)
    assert int(run(Line(), changed, finished).step) == 10


@pytest.mark.parametrize("text", ["", "{", "[]", '"run"', '{"loop": 3}'])
def test_a_damaged_config_is_the_users_to_solve(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config.json: (damaged|the run there was started with other)"):
        run(Line(), LOOP, tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="run: cannot write there"):
        run(Line(), LOOP, tmp_path / "file" / "run")


def test_an_evaluation_that_is_no_number_is_not_passed_over(tmp_path, capsys):
    run(Judged({4: float("nan"), 8: 1.0, 10: 1.0}), LOOP, tmp_path / "good")
    assert "WARNING" not in capsys.readouterr().err
    run(Judged({4: 1.0, 8: 1.0, 10: float("nan")}), LOOP, tmp_path / "bad")
    assert "WARNING: eval_loss of the last evaluation is no number" in capsys.readouterr().err


def test_a_warm_up_that_never_ends_is_told(tmp_path, caplog):
    trainer = Line()
    run(trainer, LOOP, tmp_path / "without")
    assert "warmup_steps" not in caplog.text
    trainer.optimizer = dataclasses.replace(trainer.optimizer, warmup_steps=11)
    run(trainer, LOOP, tmp_path / "with")
    assert "training.optimizer.warmup_steps 11 are more than loop.steps 10" in caplog.text


HOLD = """
import sys
from pathlib import Path
from dalle_mini.training.run.folder import alone_in
with alone_in(Path(sys.argv[1])):
    print("holds", flush=True)
    sys.stdin.read()
"""


def test_two_processes_do_not_write_one_run(tmp_path, monkeypatch):
    monkeypatch.setattr(resume, "PATIENCE", 0.0)
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    other = subprocess.Popen(command, env=children.environment(), stdin=-1, stdout=-1, text=True)
    assert other.stdout.readline() == "holds\n"
    with pytest.raises(UserError, match=r"run: another process trains in this folder"):
        run(Line(), LOOP, tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []
    other.kill()
    other.communicate()
    assert int(run(Line(), LOOP, tmp_path / "run").step) == 10
    run(Line(), LOOP, tmp_path / "run")  # which gave it back


@pytest.mark.parametrize("text", ["", '{"loop": {"steps"', "[]", None])
def test_a_damaged_config_is_taken_from_the_checkpoints(tmp_path, text, caplog):
    run(Line(), LOOP, tmp_path)
    whole = json.loads((tmp_path / "config.json").read_text())
    one_bit = json.dumps(whole).replace('"rate": 0.25', '"rate": 0.35')
    (tmp_path / "config.json").write_text(one_bit if text is None else text)
    assert started_with(tmp_path) == {name: value for name, value in whole.items() if name != "checksum"}
    with pytest.raises(UserError, match=r"other values of training\.rate"):
        run(Line(rate=0.5), LOOP, tmp_path)
    caplog.clear()
    run(Line(), LOOP, tmp_path)
    assert "config.json: damaged" in caplog.text
    assert json.loads((tmp_path / "config.json").read_text()) == whole


@pytest.mark.parametrize("out", ["gs://bucket/run", "s3://bucket/run"])
def test_a_runs_folder_is_here(out, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for form in (out, Path(out)):
        with pytest.raises(UserError, match=r"a run's folder is one on this machine; .*loop.checkpoints=gs://"):
            run(Line(), LOOP, form)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("out", ["", " "])
def test_a_runs_folder_has_a_name(out, monkeypatch, tmp_path):
    """It would be the working directory."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--output is blank: name a folder"):
        run(Line(), LOOP, out)
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_may_lie_in_the_runs_folder_itself(monkeypatch, tmp_path, capsys):
    """One folder under two names is held once: the run does not wait for itself."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("run")
    run(Line(), dataclasses.replace(LOOP, steps=4, checkpoints=str(tmp_path / "run")), "run")
    loop = dataclasses.replace(LOOP, checkpoints=str(tmp_path / "link"))
    assert int(run(Line(), loop, tmp_path / "run", allow_changes=True).step) == 10
    assert "continuing from step 4" in capsys.readouterr().err


def test_the_best_checkpoint_is_kept(tmp_path):
    loop = dataclasses.replace(LOOP, steps=5, eval_every=1, keep=1)
    run(Judged({1: 5.0, 2: 3.0, 3: 4.0, 4: float("nan"), 5: 6.0}), loop, tmp_path)
    assert sorted(entry.name for entry in (tmp_path / "checkpoints").iterdir()) == ["2", "5", "run.json"]


def test_never_and_auto(finished):
    with pytest.raises(UserError, match="there is a run in it already; continue it with resume=auto"):
        run(Line(), LOOP, finished, resume="never")
    with pytest.raises(UserError, match="resume: 'always' is none of auto, never"):
        run(Line(), LOOP, finished, resume="always")


def test_what_may_change_stays_as_it_was_last_said(tmp_path):
    run(Line(), LOOP, tmp_path)
    seldom = dataclasses.replace(LOOP, log_every=7, keep=5, on_bad_loss="skip")
    run(Line(), dataclasses.replace(seldom, steps=12), tmp_path, allow_changes=True)
    run(Line(), dataclasses.replace(seldom, steps=12, keep=6), tmp_path)
    config = started_with(tmp_path)
    kept = {name: config["loop"][name] for name in ("log_every", "keep", "on_bad_loss")}
    assert kept == {"log_every": 7, "keep": 6, "on_bad_loss": "skip"}
    assert len(config["changes"]) == 1


def test_changes_that_are_allowed_are_written_down(tmp_path):
    run(Line(), LOOP, tmp_path)
    longer = dataclasses.replace(LOOP, steps=12)
    assert int(run(Line(rate=0.5), longer, tmp_path, allow_changes=True).step) == 12
    config = started_with(tmp_path)
    (change,) = config["changes"]
    assert change["from"] == {"loop.steps": 10, "training.rate": 0.25}
    assert change["to"] == {"loop.steps": 12, "training.rate": 0.5}
    assert (config["loop"]["steps"], config["training"]["rate"]) == (12, 0.5)
    assert int(run(Line(rate=0.5), longer, tmp_path).step) == 12  # from now on it is that
    with pytest.raises(UserError, match=r"other values of loop.steps, training.rate:"):
        run(Line(), LOOP, tmp_path)
    assert int(run(Line(), LOOP, tmp_path, allow_changes=True).step) == 12  # never backwards
    assert len(started_with(tmp_path)["changes"]) == 2


def test_checkpoints_elsewhere_know_what_the_run_was(tmp_path, capsys):
    """A machine that vanishes takes the run's folder with it; the bucket stays."""
    loop = dataclasses.replace(LOOP, checkpoints=str(tmp_path / "bucket"))
    run(Line(), loop, tmp_path / "first")
    with pytest.raises(UserError, match=r"bucket: these checkpoints belong to another run, that in .*first: give each"):
        run(Line(), loop, tmp_path / "second")
    (tmp_path / "first").rename(tmp_path / "gone")
    assert started_with(tmp_path / "second", tmp_path / "bucket")["loop"]["steps"] == 10
    with pytest.raises(UserError, match=r"bucket: the run there was started with other values of training.rate:"):
        run(Line(rate=0.5), loop, tmp_path / "second")
    capsys.readouterr()
    run(Line(), loop, tmp_path / "second")
    assert "continuing from step 10" in capsys.readouterr().err
    assert started_with(tmp_path / "second") == started_with(tmp_path / "gone")
    assert not (tmp_path / "gone" / "checkpoints").exists()


def test_beginning_again_is_not_silent(tmp_path, capsys):
    run(Line(), LOOP, tmp_path)
    assert "beginning again" not in capsys.readouterr().err
    (tmp_path / "saved.json").unlink()  # as if it had been killed before its first checkpoint was whole
    shutil.rmtree(tmp_path / "checkpoints")
    run(Line(), LOOP, tmp_path)
    assert f"no checkpoint in {tmp_path / 'checkpoints'}: beginning again at step 0" in capsys.readouterr().err


def test_a_run_whose_checkpoints_are_not_found_does_not_begin_again_by_itself(tmp_path, capsys):
    run(Line(), LOOP, tmp_path / "run")
    out, there, typo = tmp_path / "run", tmp_path / "run" / "checkpoints", tmp_path / "typo"
    before = {name: (out / name).read_bytes() for name in ("config.json", "log.jsonl", "final/w.npy")}
    said = f"{typo}: there is no checkpoint, but the run in {out} has saved step 10 in {there}: continue with loop.chec"
    with pytest.raises(UserError, match=re.escape(said)):
        run(Line(), dataclasses.replace(LOOP, checkpoints=str(typo)), out)
    there.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"has saved step 10 in .*: put it back, choose another folder, or begin"):
        run(Line(), LOOP, out)
    assert before == {name: (out / name).read_bytes() for name in before}
    there.rmdir()
    (tmp_path / "moved").rename(there)
    run(Line(), LOOP, out)  # it has ended, and stays so
    shutil.rmtree(there)
    capsys.readouterr()
    run(Line(), LOOP, out, allow_changes=True)
    assert "beginning again at step 0" in capsys.readouterr().err


def test_a_change_that_the_checkpoint_does_not_fit_is_not_written_down(tmp_path):
    run(Line(), LOOP, tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    other = Line()
    other.optimizer = dataclasses.replace(other.optimizer, ema=0.9)
    with pytest.raises(UserError, match=r"does not fit this run's configuration: ema/"):
        run(other, LOOP, tmp_path, allow_changes=True)
    assert (tmp_path / "config.json").read_bytes() == before
    run(Line(), LOOP, tmp_path)


def test_a_run_that_is_beyond_its_end_says_so(tmp_path, capsys):
    run(Line(), LOOP, tmp_path)
    run(Line(), dataclasses.replace(LOOP, steps=2), tmp_path, allow_changes=True)
    assert "continuing from step 10, which is beyond loop.steps=2: nothing is left to do" in capsys.readouterr().err


def test_parameters_to_start_from(finished):
    """`training.init_from` may name a run: its newest checkpoint has the parameters."""

    class Network:
        shapes = staticmethod(lambda config: (None, nnx.State({"w": jax.ShapeDtypeStruct((config,), jnp.float32)})))

    found = loaded_parameters(Network, 2, str(finished))
    np.testing.assert_array_equal(found["w"], np.load(finished / "final" / "w.npy"))
    with pytest.raises(UserError, match=r"params/w \(float32 \[2\] there, float32 \[3\] here\); start from a run of"):
        loaded_parameters(Network, 3, str(finished))


@pytest.mark.parametrize("name", ["steps", "batch_size", "log_every", "eval_every", "keep"])
def test_numbers_that_make_no_sense(name):
    with pytest.raises(UserError, match=f"loop.{name}: 0 is too small"):
        LoopConfig(**{name: 0})


@pytest.mark.parametrize(
    "wrong",
    [
        *({name: -1} for name in ("keep_hours", "checkpoint_minutes", "sample_every", "grace_seconds", "spike")),
        *({"spike": spike} for spike in (0.5, 1.0, float("nan"))),
        {"checkpoint_minutes": float("inf")},
    ],
)
def test_more_numbers_that_make_no_sense(wrong):
    (name,) = wrong
    with pytest.raises(UserError, match=f"loop.{name}: .* is n"):
        LoopConfig(**wrong)

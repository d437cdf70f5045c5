"""The loop around a trainer of two numbers."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dalle_mini.errors import UserError
from dalle_mini.training.config import LoopConfig, OptimizerConfig
from dalle_mini.training.loop import run
from dalle_mini.training.step import Loss


class Line:
    """Fits w to the mean of its batches; the loss is NaN from step `broken_at` on."""

    name = "line"
    dtype = "float32"

    def __init__(self, rate: float = 0.25, width: int = 2, broken_at: int | None = None):
        self.rate, self.width, self.broken_at = rate, width, broken_at
        self.optimizer = OptimizerConfig("adamw", rate, warmup_steps=0, decay="constant")
        self.evaluated = []

    def settings(self):
        return {"training": {"rate": self.rate, "model": {"width": self.width, "levels": (1, 2)}}}

    def parameters(self, key):
        return {"w": jax.random.normal(key, (self.width,))}, ()

    def loaded(self):
        return None

    def batch_shapes(self, batch_size):
        return {"x": jax.ShapeDtypeStruct((batch_size, 1), jnp.float32)}

    def batch(self, step):
        x = np.full((4, 1), 3.0, np.float32)
        return {"x": x * np.nan if self.broken_at is not None and step >= self.broken_at else x}

    def loss(self, params, batch, key):
        count = jnp.float32(len(batch["x"]))
        total = jnp.sum((params["w"] - batch["x"]) ** 2) / self.width
        return Loss(total, count, {"noise": jax.random.normal(key) * count})

    def finish(self, params, state, loss, key):
        return params, state.extra, {}

    def evaluate(self, program, state, batch_size):
        self.evaluated.append(int(state.step))
        return {"distance": float(jnp.abs(state.params["w"] - 3).max())}

    def export(self, state, folder):
        folder.mkdir(exist_ok=True)
        np.save(folder / "w.npy", state.params["w"])


LOOP = LoopConfig(steps=10, batch_size=4, log_every=3, eval_every=4)


def logged(folder, name):
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return {line["step"]: line[name] for line in lines if name in line}


def test_what_a_run_leaves(tmp_path):
    trainer = Line()
    state = run(trainer, LOOP, tmp_path / "new" / "run")
    folder = tmp_path / "new" / "run"
    assert sorted(entry.name for entry in folder.iterdir()) == ["checkpoints", "config.json", "final", "log.jsonl"]
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
    ("trainer", "loop", "names"),
    [
        ({"rate": 0.5}, {}, "training.rate"),
        ({"width": 3}, {}, "training.model.width"),
        ({}, {"steps": 20}, "loop.steps"),
        ({"rate": 0.5}, {"seed": 1, "batch_size": 8}, "loop.batch_size, loop.seed, training.rate"),
    ],
)
def test_another_configuration_is_refused_by_name(finished, trainer, loop, names):
    before = (finished / "log.jsonl").read_bytes()
    with pytest.raises(UserError) as caught:
        run(Line(**trainer), dataclasses.replace(LOOP, **loop), finished)
    assert str(caught.value) == (
        f"{finished / 'config.json'}: the run there was started with other values of {names}: "
        "continue it with those, or choose another folder"
    )
    assert (finished / "log.jsonl").read_bytes() == before


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


@pytest.mark.parametrize("log_every", [1, 100])
def test_not_a_number(tmp_path, log_every):
    """Whether it is logged or not, a broken state stops the run before it is the newest checkpoint."""
    loop = dataclasses.replace(LOOP, log_every=log_every, checkpoint_minutes=0)
    with pytest.raises(FloatingPointError) as caught:
        run(Line(broken_at=4), loop, tmp_path)
    message = str(caught.value)
    assert "line: the loss is nan at step 5" in message
    assert str(tmp_path) in message
    assert "lower training.optimizer.learning_rate" in message
    assert "\n" not in message
    assert sorted(entry.name for entry in (tmp_path / "checkpoints").iterdir()) == ["3", "4"]
    assert not (tmp_path / "final").exists()


@pytest.mark.parametrize("name", ["steps", "batch_size", "log_every", "eval_every", "keep"])
def test_numbers_that_make_no_sense(name):
    with pytest.raises(UserError, match=f"loop.{name}: 0 is too small"):
        LoopConfig(**{name: 0})

"""Checkpoints in gs://, by the real clients (gcsfs and TensorStore) and a small store on this machine."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dalle_mini.errors import UserError
from dalle_mini.training.run.checkpoint import Checkpoints
from dalle_mini.training.run.checkpoint_folder import holds_checkpoints, recorded_config, restore_parameters
from dalle_mini.training.run.loop import run
from dalle_mini.training.run.ownership import Claim
from lines import LOOP, Line
from object_store import serving

pytest.importorskip("gcsfs")

FOLDER = "gs://bucket/run/checkpoints"


@pytest.fixture
def store(monkeypatch):
    with serving(monkeypatch) as objects:
        yield objects


def tree(seed: int):
    rng = np.random.default_rng(seed)
    params = {"w": jnp.asarray(rng.standard_normal((64, 48)), jnp.float32), "b": jnp.zeros(3)}
    return {"params": params, "step": jnp.int32(seed)}


def steps(store):
    """The steps of the whole checkpoints that are in the bucket."""
    parts = [name.removeprefix("run/checkpoints/").split("/") for name in store]
    return sorted({int(first) for first, *_ in parts if first.isdigit()})


@pytest.mark.slow
def test_saved_restored_and_gone_back_to(store, capsys):
    with Checkpoints(FOLDER) as checkpoints:
        assert checkpoints.restore(tree(0)) is None
        for step in (1, 2):
            checkpoints.save(step, tree(step), {"config": {"rate": step}}, eval_loss=1.0)
    assert steps(store) == [1, 2]
    assert holds_checkpoints("gs://bucket/run") and not holds_checkpoints("gs://bucket/nothing")
    assert recorded_config("gs://bucket/run") == {"rate": 2}

    largest = max((name for name in store if "/2/state/" in name), key=lambda name: len(store[name]))
    data = bytearray(store[largest])
    data[len(data) // 2] ^= 4
    store[largest] = bytes(data)
    with Checkpoints(FOLDER) as checkpoints:
        found, record = checkpoints.restore(tree(0))
        assert record["step"] == 1
        jax.tree.map(np.testing.assert_array_equal, found, tree(1))
        checkpoints.save(2, tree(2), {"config": {"rate": 2}})
    told = capsys.readouterr().err
    assert f"{FOLDER}/2: damaged" in told and f"{FOLDER}: going back to step 1" in told
    assert any(name.startswith("run/checkpoints/damaged-2/") for name in store)
    jax.tree.map(
        np.testing.assert_array_equal, restore_parameters("gs://bucket/run", tree(0)["params"]), tree(2)["params"]
    )


@pytest.mark.slow
def test_old_ones_go(store):
    with Checkpoints(FOLDER, keep=1) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, tree(step), {})
    assert steps(store) == [3]


def test_a_bucket_that_is_not_there(store):
    with pytest.raises(UserError, match="gs://another/run: cannot write there"):
        Checkpoints("gs://another/run")


def test_a_run_outlives_its_machine(store, tmp_path, capsys):
    loop = dataclasses.replace(LOOP, checkpoints=FOLDER)
    first = run(Line(), loop, tmp_path / "first")
    shutil.rmtree(tmp_path / "first")
    capsys.readouterr()
    second = run(Line(), loop, tmp_path / "second")
    assert "continuing from step 10" in capsys.readouterr().err
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_of_two_runs_that_share_a_bucket_one_saves(store, tmp_path):
    """Nothing tells there whether the first is alive: it may save until the second has begun."""
    first, second = (Claim(tmp_path / name, FOLDER) for name in ("first", "second"))
    first.take()
    with pytest.raises(UserError, match=f"{FOLDER}: these checkpoints belong to another run, that in .*first"):
        second.take()  # both saw an empty folder: the store lets one of them write
    run(Line(rate=0.5), dataclasses.replace(LOOP, checkpoints=FOLDER), tmp_path / "third")
    with pytest.raises(UserError, match=f"{FOLDER}: these checkpoints belong to another run, that in .*third"):
        first.check()
    run(Line(), LOOP, tmp_path / "fourth")
    before = dict(store)
    with pytest.raises(UserError, match=f"{FOLDER}: these checkpoints belong to another run, that in .*third"):
        run(Line(), dataclasses.replace(LOOP, checkpoints=f"{FOLDER}/"), tmp_path / "fourth")
    assert store == before

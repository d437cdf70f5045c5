"""Checkpoints that do not fit, or are damaged."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dalle_mini.errors import UserError
from dalle_mini.training.checkpoint import Checkpoints


def state(value: float = 0.0, width: int = 300):
    return {"w": jnp.full((width, 30), value), "inner": {"count": jnp.arange(5)}, "extra": ()}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    checkpoints = Checkpoints(folder, keep=2)
    for step in (1, 2, 3):
        checkpoints.save(step, state(step))
    checkpoints.save(3, state(99))  # a step is saved once
    checkpoints.close()
    return folder


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written, tmp_path / "checkpoints")


def restore(folder, like):
    checkpoints = Checkpoints(folder, keep=2)
    restored = checkpoints.restore(like)
    checkpoints.close()
    return restored


def steps(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_the_newest_few_are_kept_and_the_newest_restored(folder):
    assert steps(folder) == ["2", "3"]
    jax.tree.map(np.testing.assert_array_equal, restore(folder, state()), state(3))


def test_none_yet(tmp_path):
    assert restore(tmp_path / "nothing", state()) is None


OTHERS = {
    "more": lambda: {**state(), "new": jnp.ones(2)},
    "less": lambda: {"w": state()["w"]},
    "shape": lambda: state(width=200),
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_structure(folder, other):
    with pytest.raises(UserError, match="checkpoints/3: does not fit this run's configuration, or is damaged; cont"):
        restore(folder, OTHERS[other]())
    assert steps(folder) == ["2", "3"]  # nothing is deleted over a mistake in the configuration


def cut_short(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            path.unlink()


@pytest.mark.parametrize("damage", [cut_short, emptied])
def test_a_damaged_one_is_passed_over(folder, damage, capsys):
    damage(folder / "3")
    jax.tree.map(np.testing.assert_array_equal, restore(folder, state()), state(2))
    assert f"{folder / '3'}: damaged, going back to step 2" in capsys.readouterr().err
    assert steps(folder) == ["2"]  # so that step 3 can be saved anew
    checkpoints = Checkpoints(folder, keep=2)
    checkpoints.save(3, state(33))
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, restore(folder, state()), state(33))


def test_all_are_damaged(folder):
    for step in ("2", "3"):
        cut_short(folder / step)
    with pytest.raises(UserError, match=r"checkpoints/3: .* or is damaged"):
        restore(folder, state())
    assert steps(folder) == ["2", "3"]

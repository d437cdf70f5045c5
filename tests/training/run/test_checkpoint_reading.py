"""A checkpoint is restored to the bit, or not believed: damage, other configurations, what cannot be read now."""

import errno
import random
import shutil
from pathlib import Path

import jax.numpy as jnp
import pytest
from etils import epath

from dalle_mini.errors import UserError
from dalle_mini.training.run import checkpoint, checkpoint_reading
from dalle_mini.training.run.checkpoint import Checkpoints, read_record
from dalle_mini.training.run.checkpoint_folder import holds_checkpoints, recorded_config, restore_parameters
from small_states import LIKE, assert_same, restore, state, steps

OTHERS = {
    "more": (lambda: {**state(), "new": jnp.ones(2)}, "new (not there)"),
    "less": (lambda: {"params": state()["params"]}, "opt_state/0 (only there), opt_state/1 (only there), step (only"),
    "shape": (lambda: state(width=200), "params/w (float32 [300, 30] there, float32 [200, 30] here)"),
    "type": (lambda: {**state(), "step": jnp.float32(0)}, "step (int32 [] there, float32 [] here)"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_configuration_is_refused_not_cast(folder, other):
    make, named = OTHERS[other]
    with pytest.raises(UserError) as caught:
        restore(folder, make())
    assert f"{folder / '3'}: does not fit this run's configuration: " in str(caught.value)
    assert named in str(caught.value)
    assert steps(folder) == ["2", "3"]  # nothing is put aside over a mistake in the configuration


def data_files(folder):
    """Those that hold most of the arrays."""
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size > 10_000]


def flip(path, rng, among=slice(None)):
    data = bytearray(path.read_bytes())
    place = rng.choice(range(len(data))[among])
    data[place] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def cut_short(folder):
    for path in data_files(folder):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def a_file_deleted(folder):
    data_files(folder)[-1].unlink()


def all_deleted(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            path.unlink()


def record_deleted(folder):
    shutil.rmtree(folder / "record")


def record_flipped(folder):
    path = folder / "record" / "metadata"
    path.write_text(path.read_text().replace('"seed": 5', '"seed": 4'))


def record_cut_short(folder):
    path = folder / "record" / "metadata"
    path.write_text(path.read_text()[:-30])


def another_ones_arrays(folder):
    shutil.rmtree(folder / "state")
    shutil.copytree(folder.with_name("2") / "state", folder / "state")


def another_ones_name(folder):
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("2"), folder)


DAMAGE = [
    (cut_short, "Error"),
    (a_file_deleted, "Error"),
    (all_deleted, "its record with the checksums is missing"),
    (record_deleted, "its record with the checksums is missing"),
    (record_flipped, "its record has other bits than were saved"),
    (record_cut_short, "its record cannot be read"),
    (another_ones_arrays, "other bits than were saved"),
    (another_ones_name, "it is the checkpoint of step 2"),
]


@pytest.mark.parametrize(("damage", "reason"), DAMAGE)
def test_a_damaged_one_is_named_and_passed_over(folder, damage, reason, capfd):
    damage(folder / "3")
    found, record = restore(folder)
    assert_same(found, state(2))
    assert record["step"] == 2
    first, second = capfd.readouterr().err.splitlines()  # and no page of traceback
    assert first.startswith(f"{folder / '3'}: damaged (")
    assert reason in first
    assert second == f"{folder}: going back to step 2"
    assert steps(folder) == ["2", "damaged-3"]
    with Checkpoints(folder) as checkpoints:  # so that step 3 can be saved anew
        checkpoints.save(3, state(33), {})
    assert_same(restore(folder)[0], state(33))


@pytest.mark.slow
def test_a_flipped_bit_never_comes_back_as_a_number(folder, tmp_path, capfd):
    """Wherever it is: either it is noticed, or it is in a byte that says nothing of the arrays."""
    rng, noticed = random.Random(7), 0
    files = [path.relative_to(folder) for path in (folder / "3").rglob("*") if path.is_file() and path.stat().st_size]
    for file in [*files, *(path.relative_to(folder) for path in data_files(folder / "3") for _ in range(6))]:
        copy = shutil.copytree(folder, tmp_path / "copy")
        flip(copy / file, rng)
        found, record = restore(copy)
        assert_same(found, state(record["step"]))
        noticed += record["step"] == 2
        shutil.rmtree(copy)
    assert noticed >= 6
    assert "Traceback" not in capfd.readouterr().err


def test_all_are_damaged(folder):
    for step in ("2", "3"):
        cut_short(folder / step)
    with pytest.raises(UserError, match=r"checkpoints: 3, 2: every checkpoint there is damaged; put back a copy, or"):
        restore(folder)
    assert steps(folder) == ["2", "3"]


def test_only_the_parameters(folder, capsys):
    run = folder.parent
    assert holds_checkpoints(run) and holds_checkpoints(folder) and holds_checkpoints(folder / "2")
    assert not holds_checkpoints(folder / "2" / "state") and not holds_checkpoints(run / "nowhere")
    like = LIKE["params"]
    assert_same(restore_parameters(run, like), state(3)["params"])
    assert_same(restore_parameters(folder / "2", like), state(2)["params"])
    cut_short(folder / "3")
    assert_same(restore_parameters(folder, like), state(2)["params"])
    assert "3: damaged" in capsys.readouterr().err
    assert steps(folder) == ["2", "3"]  # another run's folder: nothing is moved in it
    with pytest.raises(UserError, match=r"checkpoints/2: does not fit .* params/c \(not there\)"):
        restore_parameters(folder / "2", {**like, "c": like["b"]})
    with pytest.raises(UserError, match="nowhere: no checkpoint there"):
        restore_parameters(run / "nowhere", like)


def test_a_bucket_is_a_folder_too():
    """Only the path: nothing is asked of the network here."""
    assert str(epath.Path("gs://bucket/run") / "7") == "gs://bucket/run/7"
    with pytest.raises(checkpoint.Damaged):
        read_record(epath.Path(Path("nowhere")) / "7")


WAYS = ["a run", "a run/", "./a run/checkpoints", "a run/checkpoints/3", "a run/checkpoints/3/", "link to it/3", "step"]


@pytest.mark.parametrize("way", [*WAYS, "~/a run", "step/../2", "."])
def test_however_a_run_is_written(way, written, tmp_path, monkeypatch):
    """Orbax wants absolute paths; of any other it said that the checkpoint was damaged."""
    shutil.copytree(written, tmp_path / "a run" / "checkpoints")
    (tmp_path / "link to it").symlink_to(tmp_path / "a run" / "checkpoints")
    (tmp_path / "step").symlink_to(tmp_path / "a run" / "checkpoints" / "3")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path / "a run" / "checkpoints" / "3" if way == "." else tmp_path)
    assert holds_checkpoints(way)
    assert_same(restore_parameters(way, LIKE["params"]), state(2 if way.endswith("2") else 3)["params"])
    assert recorded_config(way) == {"of": 2 if way.endswith("2") else 3}


HINDRANCES = {
    "permission": (PermissionError(errno.EACCES, "Permission denied"), "Permission denied"),
    "TensorStore's": (ValueError("PERMISSION_DENIED: Error opening file"), "PERMISSION_DENIED: Error opening file"),
    "memory": (MemoryError(), "there is not enough memory"),
    "the device's memory": (RuntimeError("RESOURCE_EXHAUSTED: Out of memory"), "RESOURCE_EXHAUSTED: Out of memory"),
    "network": (ConnectionResetError("Connection reset by peer"), "Connection reset by peer"),
    "too many files": (OSError(errno.EMFILE, "Too many open files"), "Too many open files"),
}


@pytest.mark.parametrize("part", ["state", "record"])
@pytest.mark.parametrize("hindrance", HINDRANCES)
def test_what_cannot_be_read_now_is_not_called_damaged(hindrance, part, folder, monkeypatch):
    error, said = HINDRANCES[hindrance]

    def hindered(*_, **__):
        raise error

    if part == "state":
        monkeypatch.setattr(checkpoint.ocp.PyTreeCheckpointHandler, "restore", hindered)
    else:
        monkeypatch.setattr(checkpoint_reading, "_bytes", hindered)
    for read in (restore, lambda folder: restore_parameters(folder, LIKE["params"])):
        with pytest.raises(UserError) as caught:
            read(folder)
        told = str(caught.value)
        assert f"{folder / '3'}: cannot be read ({said}); it may be whole" in told
        assert "damaged" not in told and "anew" not in told
    assert steps(folder) == ["2", "3"]  # nothing is put aside


def test_advice_that_ends_a_run_is_given_to_a_run_alone(folder):
    for step in ("2", "3"):
        (folder / step / "record" / "metadata").write_text("{}")
    with pytest.raises(UserError) as caught:
        restore_parameters(folder / "3", LIKE["params"])
    assert str(caught.value) == f"{folder}: 3: damaged; put back a copy, or name another checkpoint"

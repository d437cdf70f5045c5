"""Checkpoints: kept by the policy, restored to the bit, and not believed when they are damaged."""

import contextlib
import errno
import json
import os
import random
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from dalle_mini.errors import UserError
from dalle_mini.training.run import checkpoint, checkpoint_reading
from dalle_mini.training.run.checkpoint import (
    Checkpoints,
    flatten,
    holds_checkpoints,
    read_record,
    recorded_config,
    restore_parameters,
)
from dalle_mini.training.run.checksums import checksums


def state(value: float = 0.0, width: int = 300):
    """What a train state has: floats of two types, whole numbers, a scalar and an empty part."""
    rng = np.random.default_rng(int(value))
    return {
        "params": {"w": jnp.asarray(rng.random((width, 30), np.float32)), "b": jnp.full(7, value, jnp.float32)},
        "opt_state": [jnp.arange(5), jnp.asarray(rng.random((width, 30)), jnp.bfloat16), ()],
        "step": jnp.int32(value),
    }


LIKE = jax.eval_shape(state)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    with Checkpoints(folder, keep=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, state(step), {"seed": 5, "config": {"of": step}})
        checkpoints.save(3, state(99), {})  # a step is saved once
    return folder


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written, tmp_path / "checkpoints")


def restore(folder, like=LIKE):
    with Checkpoints(folder, keep=2) as checkpoints:
        return checkpoints.restore(like)


def steps(folder):
    return sorted(entry.name for entry in folder.iterdir())


def assert_same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert jax.tree.map(lambda leaf: leaf.dtype, found) == jax.tree.map(lambda leaf: leaf.dtype, expected)


def test_the_newest_few_are_kept_and_the_newest_restored(folder):
    assert steps(folder) == ["2", "3"]
    found, record = restore(folder)
    assert_same(found, state(3))
    assert (record["step"], record["seed"], record["config"]) == (3, 5, {"of": 3})
    assert recorded_config(folder) == {"of": 3}


def test_a_link_where_it_tries_to_write_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / ".probe").symlink_to(tmp_path / "precious")
    with Checkpoints(tmp_path / "checkpoints"):
        assert (tmp_path / "precious").read_text() == "precious"


def test_none_yet(tmp_path):
    assert restore(tmp_path / "nothing") is None
    assert recorded_config(tmp_path / "nothing") is None


@pytest.mark.parametrize(
    ("keep", "keep_hours", "losses", "left"),
    [
        (1, 0.0, [3.0, 1.0, 2.0, 4.0], ["2", "4"]),  # the last one, and the best one
        (2, 0.0, [None, 1.0, None, 0.5], ["3", "4"]),
        (1, 0.0, [float("nan"), None, float("inf"), None], ["4"]),
        (1, 1000.0, [None] * 4, ["1", "4"]),  # the first one is the first of its hours
        (1, 1e-9, [None] * 4, ["1", "2", "3", "4"]),
    ],
)
def test_what_is_kept(keep, keep_hours, losses, left, tmp_path):
    for part in (slice(0, 2), slice(2, 4)):  # a later process knows of the earlier one's
        with Checkpoints(tmp_path, keep, keep_hours) as checkpoints:
            for step, loss in list(enumerate(losses, 1))[part]:
                checkpoints.save(step, {"w": jnp.ones(3)}, {}, loss)
    assert steps(tmp_path) == left


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


def test_a_half_written_one_is_removed(folder, capsys):
    (folder / "3").rename(folder / "3.orbax-checkpoint-tmp")
    found, _ = restore(folder)
    assert_same(found, state(2))
    assert f"{folder / '3.orbax-checkpoint-tmp'}: half-written, removed" in capsys.readouterr().err
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(4, state(4), {})
    assert steps(folder) == ["2", "4"]


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


# What the disk does


@contextlib.contextmanager
def full_disk(size: int = 8192):
    """No file may grow beyond `size` bytes: a write fails as on a full disk, but with EFBIG."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_is_full_is_one_line_and_earlier_checkpoints_stay(folder, capfd):
    with pytest.raises(UserError) as caught, Checkpoints(folder) as checkpoints, full_disk():
        checkpoints.save(4, state(4), {})
        checkpoints.wait()
    assert str(caught.value).startswith(f"{folder}: a checkpoint could not be saved (")
    assert "that of step 3 is whole: make room" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "Traceback" not in capfd.readouterr().err
    assert_same(restore(folder)[0], state(3))


MANY = """
import resource
import sys
import jax
from dalle_mini.errors import UserError
from dalle_mini.training.checkpoint import Checkpoints
state = {f"w{number}": jax.random.normal(jax.random.key(number), (30_000,)) for number in range(40)}
try:
    with Checkpoints(sys.argv[1]) as checkpoints:
        checkpoints.save(1, state, {})
        checkpoints.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        checkpoints.save(2, state, {})
except UserError as error:
    print(error)
"""


def test_the_writes_that_end_after_the_failure_say_nothing(tmp_path):
    """Each of them would print a traceback, about a loop of asyncio that is closed."""
    command = [sys.executable, "-c", MANY, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == (
        f"{tmp_path}: a checkpoint could not be saved (File too large); that of step 1 is whole: "
        "make room or mend the folder, and run the same command again\n"
    )
    assert done.stderr == ""
    with Checkpoints(tmp_path) as checkpoints:  # there is room again
        checkpoints.save(2, state(2), {})
    assert steps(tmp_path) == ["1", "2"]


FULL = """
import sys
import jax
from dalle_mini.errors import UserError
from dalle_mini.training.checkpoint import Checkpoints
noise = jax.random.normal(jax.random.key(0), (50_000,))  # 200 kB, and they do not compress
try:
    with Checkpoints(sys.argv[1]) as checkpoints:
        for step in range(1, 9):
            checkpoints.save(step, {"w": noise.at[0].set(step)}, {}, 9.0 - step)
except UserError as error:
    print(error)
with Checkpoints(sys.argv[1]) as checkpoints:
    found, record = checkpoints.restore({"w": noise})
print(int(found["w"][0]) == record["step"], record["step"])
"""


@pytest.mark.slow
def test_a_disk_that_is_really_full(tmp_path):
    command = f"mount -t tmpfs -o size=500k none {tmp_path} && exec {sys.executable} -c '{FULL}' {tmp_path}"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "JAX_PLATFORMS": "cpu"}
    try:
        done = subprocess.run(["unshare", "-rm", "sh", "-c", command], env=environment, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no unshare")
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip("may not mount a small disk")
    told, restored = done.stdout.splitlines()
    assert "a checkpoint could not be saved (No space left on device); that of step" in told
    assert restored.startswith("True")
    assert "Traceback" not in done.stderr


@contextlib.contextmanager
def read_only(folder):
    """A folder that its user may not write to; root may write anywhere, so it becomes somebody else."""
    for parent in (folder, *folder.parents[:-2]):
        with contextlib.suppress(PermissionError):
            parent.chmod(0o555 if parent == folder else 0o755)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)


def test_a_folder_that_is_read_only_is_told_at_once(folder):
    with read_only(folder), pytest.raises(UserError) as caught:
        Checkpoints(folder)
    assert str(caught.value) == f"{folder}: cannot write there (Permission denied)"
    assert steps(folder) == ["2", "3"]


def test_a_folder_that_becomes_read_only(folder, capfd):
    with pytest.raises(UserError) as caught, Checkpoints(folder) as checkpoints, read_only(folder):
        checkpoints.save(4, state(4), {})
        checkpoints.wait()
    assert str(caught.value).startswith(
        f"{folder}: a checkpoint could not be saved (Permission denied); that of step 3"
    )
    assert "Traceback" not in capfd.readouterr().err
    assert_same(restore(folder)[0], state(3))


def test_names_of_arrays():
    assert list(flatten(state())) == ["opt_state/0", "opt_state/1", "params/b", "params/w", "step"]


MESHES = """
import json, sys
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from dalle_mini.training.checkpoint import Checkpoints, flatten
from dalle_mini.training.checksums import checksums

def mesh(*shape):
    devices = jax.devices()[: shape[0] * shape[1]]
    return jax.make_mesh(shape, ("data", "model"), axis_types=(AxisType.Auto,) * 2, devices=devices)

rng = np.random.default_rng(0)
host = {"w": rng.random((16, 8), np.float32), "v": rng.random(8, np.float32), "step": np.int32(3)}
specs = {"w": P("data", "model"), "v": P(("data", "model")), "step": P()}
placed = lambda mesh: {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
tree = jax.device_put(host, placed(mesh(4, 2)))
answers = [checksums(jax.device_put(host, placed(mesh(*shape)))) for shape in ((4, 2), (2, 4), (1, 1))]
with Checkpoints(sys.argv[1]) as checkpoints:
    checkpoints.save(3, tree, {})
for shape in ((2, 1), (1, 8), (1, 1)):
    to = placed(mesh(*shape))
    like = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=to[name]) for name, leaf in host.items()}
    with Checkpoints(sys.argv[1]) as checkpoints:
        found, _ = checkpoints.restore(like)
    assert all(found[name].sharding == like[name].sharding for name in found)
    assert all(np.array_equal(found[name], host[name]) for name in found)
print(json.dumps(answers))
"""


def test_another_mesh_and_another_number_of_devices(tmp_path):
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "8",
    }
    command = [sys.executable, "-c", MESHES, str(tmp_path / "checkpoints")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    rng = np.random.default_rng(0)  # and on this process's one device
    host = {"w": rng.random((16, 8), np.float32), "v": rng.random(8, np.float32), "step": np.int32(3)}
    assert answers == [checksums(jax.tree.map(jnp.asarray, host))] * 3


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

"""Checkpoints: kept by the policy, restored on any mesh, and saved whole or not at all whatever the disk does."""

import contextlib
import json
import os
import resource
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import children
from dalle_mini.errors import UserError
from dalle_mini.training.run.checkpoint import Checkpoints, flatten
from dalle_mini.training.run.checkpoint_folder import recorded_config
from dalle_mini.training.run.checksums import checksums
from small_states import assert_same, restore, state, steps


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


def test_a_half_written_one_is_removed(folder, capsys):
    (folder / "3").rename(folder / "3.orbax-checkpoint-tmp")
    found, _ = restore(folder)
    assert_same(found, state(2))
    assert f"{folder / '3.orbax-checkpoint-tmp'}: half-written, removed" in capsys.readouterr().err
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(4, state(4), {})
    assert steps(folder) == ["2", "4"]


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
from dalle_mini.training.run.checkpoint import Checkpoints
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
    done = subprocess.run(command, env=children.environment(), capture_output=True, text=True, check=True)
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
from dalle_mini.training.run.checkpoint import Checkpoints
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
    try:
        command = ["unshare", "-rm", "sh", "-c", command]
        done = subprocess.run(command, env=children.environment(), capture_output=True, text=True)
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
from dalle_mini.training.run.checkpoint import (Checkpoints, flatten)
from dalle_mini.training.run.checksums import checksums

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
    command = [sys.executable, "-c", MESHES, str(tmp_path / "checkpoints")]
    done = subprocess.run(command, env=children.environment(devices=8), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    rng = np.random.default_rng(0)  # and on this process's one device
    host = {"w": rng.random((16, 8), np.float32), "v": rng.random(8, np.float32), "step": np.int32(3)}
    assert answers == [checksums(jax.tree.map(jnp.asarray, host))] * 3

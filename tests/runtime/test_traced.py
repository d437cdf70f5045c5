import os
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dalle_mini.runtime import traced
from dalle_mini.runtime.xla import Jit

TRACES = []  # one of each time that a function was traced


def scaled(factor, state, x, shift):
    TRACES.append(factor)
    return {"y": factor * x + shift, "state": jax.tree.map(lambda leaf: leaf + 1, state)}


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    TRACES.clear()
    monkeypatch.setattr(traced, "folder", tmp_path)
    return tmp_path


def made(function=scaled, **options):
    options = {"kept": (), "static_argnums": 0, "donate_argnames": "state"} | options
    return Jit(function, **options)


def run(program=None, factor=3, shape=(4,), dtype=np.float32):
    program = program or made()
    state = [jnp.zeros(3), jnp.ones(2)]
    found = program(factor, state, np.ones(shape, dtype), np.int32(2))
    assert np.array_equal(found["y"], factor * np.ones(shape) + 2)
    assert [leaf.tolist() for leaf in found["state"]] == [[1, 1, 1], [2, 2]]
    return state


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_was_traced_is_not_traced_again(folder):
    run()
    (name,) = names(folder)
    assert name.startswith("scaled-") and TRACES
    TRACES.clear()
    program = made()
    state = run(program)
    run(program)
    assert not TRACES and names(folder) == [name]
    assert all(leaf.is_deleted() for leaf in state)  # donated
    assert program._cache_size() == 1


def test_it_is_found_by_shapes_and_compiled_once(folder):
    arguments = 3, [jnp.zeros(3), jnp.ones(2)], np.ones(4, np.float32), np.int32(2)
    program = made()
    specs = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), arguments[1:])
    program.lower(3, *specs).compile()
    shapes = program.eval_shape(3, *specs)
    assert shapes["y"].shape == (4,) and shapes["y"].dtype == np.float32
    TRACES.clear()
    run(program)
    assert len(names(folder)) == 1 and not TRACES


@pytest.mark.parametrize(
    "damaged",
    [
        lambda whole: b"",
        lambda whole: whole[:-1],
        lambda whole: whole[:-1] + bytes([whole[-1] ^ 1]),
        lambda whole: traced.hashlib.sha256(b"no program").digest() + b"no program",
    ],
)
def test_a_damaged_file_is_written_anew(folder, damaged):
    run()
    (file,) = folder.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damaged(whole))
    TRACES.clear()
    run()
    assert TRACES and len(file.read_bytes()) == len(whole) and names(folder) == [file.name]
    TRACES.clear()
    run()
    assert not TRACES


def test_what_decides_the_program_has_a_file_of_its_own(folder, monkeypatch):
    run()
    run(factor=4)
    run(shape=(5,))
    run(dtype=np.float16)
    run(made(kept=("other",)))
    monkeypatch.setattr(traced, "_origin", lambda: "another version")
    run()
    with jax.default_matmul_precision("highest"):
        run()
    assert len(names(folder)) == 7


def test_a_version_and_a_changed_source_are_others(monkeypatch):
    first = traced._origin()
    traced._origin.cache_clear()
    assert traced._origin() == first
    traced._origin.cache_clear()
    monkeypatch.setattr(jax, "__version__", "99.0")
    assert traced._origin() != first
    traced._origin.cache_clear()


@pytest.mark.parametrize("error", [PermissionError(13, "no"), OSError(30, "read-only"), OSError(28, "full")])
def test_a_folder_that_cannot_be_written_is_done_without(folder, monkeypatch, error):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(traced.files, "writing_whole", refuse)
    run()
    run()
    assert not names(folder)


class Pair(NamedTuple):
    x: jax.Array


def in_a_pair(x):
    return Pair(x + 1)


def with_a_callback(x):
    return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x)


@pytest.mark.parametrize("function", [in_a_pair, with_a_callback])
def test_what_cannot_be_kept_is_traced_each_time(folder, function):
    found = Jit(function, kept=())(jnp.zeros(2))
    assert jax.tree.leaves(found)[0].shape == (2,) and not names(folder)


def test_a_network_of_other_classes_is_traced_each_time(folder):
    class Own(nnx.Linear):
        pass

    for network, count in ((Own, 0), (nnx.Linear, 1)):
        graphdef, state = nnx.split(network(2, 2, rngs=nnx.Rngs(0)))

        def apply(state, x):
            return nnx.merge(graphdef, state)(x)  # noqa: B023 (it is called at once)

        Jit(apply, kept=(graphdef,))(state, jnp.ones(2))
        assert len(names(folder)) == count


def test_a_call_within_a_program_is_a_part_of_it(folder):
    inner = Jit(lambda x: x + 1, kept=())
    assert jax.jit(lambda x: inner(x) * 2)(1.0) == 4 and not names(folder)


PROGRAM = """if True:
    import sys, pathlib, jax, jax.numpy as jnp
    from dalle_mini.runtime import traced
    from dalle_mini.runtime.xla import Jit
    traced.folder = pathlib.Path(sys.argv[1])
    def f(x): return (x * 2).min()
    place = jax.devices()[0]
    if sys.argv[2:]:
        mesh = jax.make_mesh((2,), ("x",))
        place = jax.NamedSharding(mesh, jax.P("x"))
    print(Jit(f, kept=())(jax.device_put(jnp.arange(4.0) + 1, place)))
"""


@pytest.mark.slow
def test_two_processes_write_at_once(tmp_path):
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    for _ in range(2):
        both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
        assert [process.communicate()[0] for process in both] == ["2.0\n", "2.0\n"]
        (name,) = names(tmp_path)
        assert name.startswith("f-")


def test_where_there_are_several_devices_programs_are_traced_each_time(tmp_path):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    for more in ([], ["both"]):
        command = [sys.executable, "-c", PROGRAM, str(tmp_path), *more]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
        assert done.stdout == "2.0\n" and not names(tmp_path)

import json
import os
import subprocess
import sys
import warnings

import jax
import pytest

from dalle_mini.runtime import compilation, traced
from dalle_mini.runtime.compilation import keep_compiled


@pytest.fixture(autouse=True)
def settings(monkeypatch, tmp_path):
    """A cache folder of the test's own, and JAX's settings as they were."""
    names = [name for name in jax.config.values if "compilation_cache" in name or "persistent_cache" in name]
    before = {name: jax.config.values[name] for name in names}
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compilation.platformdirs, "user_cache_dir", lambda name: str(tmp_path / name))
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setattr(traced, "folder", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_programs_are_kept_in_the_users_cache(tmp_path):
    folder = keep_compiled()
    assert folder.is_dir() and folder.is_relative_to(tmp_path / "dalle-mini")
    assert jax.config.jax_compilation_cache_dir == str(folder) and traced.folder == folder


def test_another_machine_or_version_has_a_folder_of_its_own(monkeypatch):
    first = keep_compiled()
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setattr(jax, "__version__", "99.0")
    assert keep_compiled() != first


@pytest.mark.parametrize("value", ["", "/somewhere/else"])
def test_a_users_choice_stays(monkeypatch, value):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", value)
    assert keep_compiled() is None
    assert jax.config.jax_compilation_cache_dir is None and traced.folder is None


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path):
    (tmp_path / "dalle-mini").write_text("in the way")
    assert keep_compiled() is None
    assert jax.config.jax_compilation_cache_dir is None and traced.folder is None


def test_a_cache_that_others_may_write_to_is_done_without(tmp_path, caplog):
    (tmp_path / "dalle-mini").mkdir()
    (tmp_path / "dalle-mini").chmod(0o777)
    assert keep_compiled() is None
    assert "dalle-mini may be written by other users" in caplog.text and "XDG_CACHE_HOME" in caplog.text
    assert jax.config.jax_compilation_cache_dir is None and traced.folder is None


# By these the tests keep compiled programs; a command chooses its folder itself.
KEEPING = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
PROGRAM = """if True:
    import jax, jax.numpy as jnp
    from dalle_mini.runtime.compilation import keep_compiled
    keep_compiled()
    def f(x): return jnp.sort(x * 2)[0]
    print(jax.jit(f)(jnp.arange(4.0) + 1))
"""


def test_a_damaged_program_is_written_anew(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name not in KEEPING}
    environment |= {"XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}

    def run() -> tuple[str, str]:
        done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment)
        return done.stdout, done.stderr

    assert run() == ("2.0\n", "")
    (entry,) = tmp_path.rglob("jit_f-*-cache")
    whole = entry.read_bytes()
    for damaged in (b"", whole[:-1] + bytes([whole[-1] ^ 1])):
        entry.write_bytes(damaged)
        assert run() == ("2.0\n", "")
        anew = entry.read_bytes()
        assert anew != damaged and run() == ("2.0\n", "") and entry.read_bytes() == anew


def test_a_full_disk_is_told_once(tmp_path):
    code = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))\nif True:{PROGRAM[8:]}"
    environment = {name: value for name, value in os.environ.items() if name not in KEEPING}
    environment |= {"XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout == "2.0\n"
    assert done.stderr.count("\n") == 1 and "compiled programs cannot be kept (OSError" in done.stderr


@pytest.mark.slow
def test_a_second_run_of_the_command_traces_and_compiles_nothing(golden_bundle, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name not in KEEPING}
    environment |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "dalle_mini.cli", "generate", "a boat", "--candidates", "2"]
    command += ["--model", str(golden_bundle), "--output", str(tmp_path / "out")]

    def drawn(number: int, **more: str) -> tuple[str, list]:
        subprocess.run(command, check=True, capture_output=True, env=environment | more, cwd=tmp_path)
        folder = tmp_path / "out" / ("a-boat" if number == 1 else f"a-boat-{number}")
        report = json.loads((folder / "results.json").read_text())
        return (folder / "01.png").read_bytes(), [picture["score"] for picture in report["pictures"]]

    def kept() -> dict[str, int]:
        files = (path for path in (tmp_path / "cache").rglob("*") if path.is_file())
        return {path.name: path.stat().st_mtime_ns for path in files if not path.name.endswith("-atime")}

    first, before = drawn(1), kept()
    programs = {name.partition("-")[0] for name in before if name.endswith(".traced")}
    assert programs == {"_keys", "prefill", "decode_steps", "decode", "text_embeds", "image_embeds", "logits"}
    assert drawn(2) == first and kept() == before
    assert drawn(3, JAX_COMPILATION_CACHE_DIR="") == first  # nothing is kept, and all is traced


AHEAD = """
import sys
from pathlib import Path
from dalle_mini.runtime.compilation import keep_compiled
from dalle_mini.pipeline import Ahead, DalleMini
from dalle_mini.settings import GenerationSettings
from dalle_mini.weights.bundle import find_parts

def kept():
    return sorted(path.name for path in folder.iterdir() if path.name.startswith(("jit_prefill-", "jit_decode_steps-")))

folder = keep_compiled()
prompts, settings = ["a boat", "a snail"], GenerationSettings(candidates=3, guidance=float(sys.argv[2]))
pipe = DalleMini.from_parts(find_parts(sys.argv[1]), sys.argv[3], ahead=Ahead(prompts, settings))
before = kept()
list(pipe.generate_each(prompts, settings))
assert before and kept() == before, (before, kept())
"""


@pytest.mark.slow
@pytest.mark.parametrize(("guidance", "dtype"), [(10, "float32"), (1, "int8")])
def test_what_is_compiled_ahead_is_what_draws(golden_bundle, tmp_path, guidance, dtype):
    environment = {name: value for name, value in os.environ.items() if name not in KEEPING}
    environment |= {"XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", AHEAD, str(golden_bundle), str(guidance), dtype]
    subprocess.run(command, check=True, env=environment)

import os
import subprocess
import sys

import jax
import pytest

from dalle_mini import compilation
from dalle_mini.compilation import keep_compiled


@pytest.fixture(autouse=True)
def settings(monkeypatch, tmp_path):
    """A cache folder of the test's own, and JAX's settings as they were."""
    names = [name for name in jax.config.values if "compilation_cache" in name or "persistent_cache" in name]
    before = {name: jax.config.values[name] for name in names}
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compilation.platformdirs, "user_cache_dir", lambda name: str(tmp_path / name))
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_programs_are_kept_in_the_users_cache(tmp_path):
    folder = keep_compiled()
    assert folder.is_dir() and folder.is_relative_to(tmp_path / "dalle-mini")
    assert jax.config.jax_compilation_cache_dir == str(folder)


def test_another_machine_or_version_has_a_folder_of_its_own(monkeypatch):
    first = keep_compiled()
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setattr(jax, "__version__", "99.0")
    assert keep_compiled() != first


@pytest.mark.parametrize("value", ["", "/somewhere/else"])
def test_a_users_choice_stays(monkeypatch, value):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", value)
    assert keep_compiled() is None
    assert jax.config.jax_compilation_cache_dir is None


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path):
    (tmp_path / "dalle-mini").write_text("in the way")
    assert keep_compiled() is None
    assert jax.config.jax_compilation_cache_dir is None


def test_a_second_run_of_the_command_compiles_nothing(golden_bundle, tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "dalle_mini.cli", "generate", "a boat", "--candidates", "2"]
    command += ["--model", str(golden_bundle), "--output", str(tmp_path / "out")]

    def kept() -> set[str]:
        subprocess.run(command, check=True, capture_output=True, env=environment, cwd=tmp_path)
        return {path.name for path in (tmp_path / "cache").rglob("*-cache")}

    first = kept()
    assert first and kept() == first


AHEAD = """
import sys
from pathlib import Path
from dalle_mini.compilation import keep_compiled
from dalle_mini.pipeline import Ahead, DalleMini
from dalle_mini.settings import GenerationSettings
from dalle_mini.weights.bundle import find_parts

def kept():
    return sorted(path.name for path in folder.iterdir() if path.name.startswith(("jit_prefill-", "jit_advance-")))

folder = keep_compiled()
prompts, settings = ["a boat", "a snail"], GenerationSettings(candidates=3, guidance=float(sys.argv[2]))
pipe = DalleMini.from_parts(find_parts(sys.argv[1]), sys.argv[3], ahead=Ahead(prompts, settings))
before = kept()
list(pipe.generate_each(prompts, settings))
assert before and kept() == before, (before, kept())
"""


@pytest.mark.parametrize(("guidance", "dtype"), [(10, "float32"), (1, "int8")])
def test_what_is_compiled_ahead_is_what_draws(golden_bundle, tmp_path, guidance, dtype):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment |= {"XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", AHEAD, str(golden_bundle), str(guidance), dtype]
    subprocess.run(command, check=True, env=environment)

import os
import sys

import pytest

from dalle_mini.cli import main
from dalle_mini.runtime import doctor
from dalle_mini.runtime.installing import install_line


@pytest.fixture
def reported(capsys, monkeypatch, tmp_path):
    """The report, with caches of its own, and with what a probe of jax is to do in place of asking it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)

    def run(probe: str = "import json; print(json.dumps({'gpu (NVIDIA H200)': 2}))") -> str:
        monkeypatch.setattr(doctor, "PROBE", probe)
        assert main(["doctor"]) == 0
        shown = capsys.readouterr()
        assert shown.err == ""
        return shown.out

    return run


def test_the_report_is_markdown_with_devices_versions_caches_and_extras(reported, tmp_path):
    compiled = tmp_path / "cache" / "dalle-mini" / "compiled" / "x"
    compiled.mkdir(parents=True)
    (compiled / "program").write_bytes(b"0" * 2048)
    (compiled / "link").symlink_to(tmp_path / "nowhere")
    shown = reported()
    assert "| devices | 2 gpu (NVIDIA H200) |" in shown
    assert "jax " in shown and "### Extras" in shown
    assert f"| compiled programs | {tmp_path}/cache/dalle-mini/compiled | 2.0" in shown and "KiB" in shown
    tables = [line for line in shown.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in tables)


def test_jax_itself_is_asked(reported):
    assert "cpu" in next(line for line in reported(doctor.PROBE).splitlines() if line.startswith("| devices"))


@pytest.mark.parametrize(
    ("probe", "told"),
    [
        ("raise ImportError('libcudart | is missing')", "fails with exit code 1 (ImportError: libcudart / is missing)"),
        ("import os; os.abort()", "fails with exit code -6 (it says nothing)"),
        ("print('no json')", "cannot be told (JSONDecodeError"),
        ("", "cannot be told (IndexError"),
    ],
)
def test_a_broken_jax_costs_a_row(reported, probe, told):
    shown = reported(probe)
    assert told in shown and "### Caches" in shown


def test_a_jax_that_waits_costs_a_row(reported, monkeypatch):
    monkeypatch.setattr(doctor, "SECONDS", 0.5)
    assert "does not answer within" in reported("import time; time.sleep(600)")


def test_a_cache_that_cannot_be_read_costs_its_size(reported, monkeypatch, tmp_path):
    folder = tmp_path / "cache" / "dalle-mini" / "compiled"
    folder.mkdir(parents=True)

    def refuse(at, onerror):
        onerror(PermissionError(13, "Permission denied", str(folder)))
        return iter(())

    monkeypatch.setattr(os, "walk", refuse)
    assert f"0 bytes, and some that cannot be read (Permission denied: {folder})" in reported()


def test_a_broken_client_of_the_hub_costs_a_row(reported, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "| models of the Hub | cannot be told (ImportError" in reported() or "ModuleNotFoundError" in reported()


def test_what_an_extra_lacks_is_told_with_its_line(monkeypatch):
    class Package:
        version = "1.0"
        metadata = property(lambda self: self)

        def __init__(self, *requires, extras=()):
            self.requires, self.extras = requires, extras

        def get_all(self, _):
            return self.extras

    there = {
        "dalle-mini-jax": Package(
            "core>=2", 'old>=3; extra == "data"', 'gone; extra == "data"', 'part[inner]; extra == "gpu"',
            'plain; extra == "ray"', 'other; python_version < "3" and extra == "ray"',
            extras=("data", "gpu", "ray", "test"),
        ),
        "old": Package(), "plain": Package(), "part": Package('plugin>1; extra == "inner"'),
    }  # fmt: skip
    monkeypatch.setattr(doctor, "_distribution", there.get)
    rows = {extra: (state, line) for extra, state, line in doctor._extras()}
    assert rows["data"] == ("lacks old>=3, gone", install_line("data"))
    assert rows["gpu"][0] == "lacks plugin>1" and rows["ray"] == ("installed", "")
    assert set(rows) == {"data", "gpu", "ray"}  # and not what only work on the code needs
    there["dalle-mini-jax"].requires = ["odd =="]
    assert "InvalidRequirement" in next(doctor._extras())[1]
    there.clear()
    assert next(doctor._extras())[1] == "not known: the package is not installed"

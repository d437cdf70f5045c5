import importlib.machinery
import os
import subprocess
import sys

import pytest

from dalle_mini.runtime.libtpu import TOLD, quiet_libtpu


@pytest.fixture
def installed(monkeypatch):
    module = type(sys)("libtpu")
    module.__spec__ = importlib.machinery.ModuleSpec("libtpu", None)
    monkeypatch.setitem(sys.modules, "libtpu", module)


def bus(tmp_path, *devices):
    for number, (vendor, device) in enumerate(devices):
        folder = tmp_path / f"0000:00:0{number}.0"
        folder.mkdir()
        (folder / "vendor").write_text(f"{vendor}\n")
        (folder / "device").write_text(f"{device}\n")
    (tmp_path / "broken").mkdir()
    return tmp_path


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("devices", "before", "is_told"),
    [
        ([("0x8086", "0x1237")], {}, True),
        ([("0x1ae0", "0x0042")], {}, True),  # a network card of Google's
        ([("0x8086", "0x1237"), ("0x1ae0", "0x0063")], {}, False),
        ([("0x1ae0", "0x9999")], {}, False),  # a TPU to come
        ([], {"TPU_WORKER_HOSTNAMES": "here"}, False),
        ([], {"JAX_FORCE_TPU_INIT": "1"}, False),
    ],
)
def test_libtpu_is_told_where_no_tpu_is(tmp_path, devices, before, is_told):
    environment = dict(before)
    quiet_libtpu(environment, bus(tmp_path, *devices))
    assert environment == before | (TOLD if is_told else {})


def test_without_libtpu_nothing_changes(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    environment = {}
    quiet_libtpu(environment, tmp_path)
    assert environment == {}


@pytest.mark.slow
def test_no_command_prints_what_libtpu_says():
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TPU_", "JAX_"))}
    code = "from dalle_mini.cli import main; main(['info']); import jax; jax.devices()"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""

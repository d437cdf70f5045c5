"""--distributed where the others are not there."""

import socket

import pytest

from dalle_mini.cli import main
from dalle_mini.commands import distributed


@pytest.fixture
def nobody(monkeypatch):
    """An address at which nothing listens."""
    with socket.socket() as port:
        port.bind(("localhost", 0))
        address = f"localhost:{port.getsockname()[1]}"
    for name, value in {"COORDINATOR_ADDRESS": address, "NUM_PROCESSES": "2", "PROCESS_ID": "1"}.items():
        monkeypatch.setenv(f"JAX_{name}", value)
    monkeypatch.setattr(distributed, "PATIENCE", 0.3)
    return address


def test_nobody_listens(nobody, tmp_path, capsys):
    assert main(["generate", "a boat", "--distributed", "--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"none listens at {nobody}" in said and "JAX_PROCESS_ID=0" in said


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("JAX_COORDINATOR_ADDRESS", "here", "it must be HOST:PORT"),
        ("JAX_PROCESS_ID", "one", "it must be a whole number"),
    ],
)
def test_what_the_environment_says_wrongly(nobody, monkeypatch, tmp_path, capsys, name, value, said):
    monkeypatch.setenv(name, value)
    assert main(["generate", "a boat", "--distributed", "--output", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err

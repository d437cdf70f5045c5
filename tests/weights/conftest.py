"""A Hub on this machine for the real client, with a cache of its own."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A `HubServer`; the client in this process talks to nothing else and keeps its files in `tmp_path / "hf"`."""
    from hub_server import HubServer
    from huggingface_hub import constants, file_download

    server = HubServer()
    home = tmp_path / "hf"
    settings = {
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,  # the server speaks plain HTTP and LFS
        "HF_HUB_DISABLE_TELEMETRY": True,
    }
    for name, value in settings.items():  # the client read the environment when it was imported
        monkeypatch.setattr(constants, name, value)
        if hasattr(file_download, name):  # older clients copied it
            monkeypatch.setattr(file_download, name, value)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    yield server
    server.close()


@pytest.fixture
def impatient(monkeypatch):
    """The client waits for seconds before it tries again; not here."""
    import time

    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.01)))

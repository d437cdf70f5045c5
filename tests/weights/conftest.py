"""A Hub on this machine for the real client, with a cache of its own."""

import pytest


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A `HubServer`; the client in this process talks to nothing else and keeps its files in `tmp_path / "hf"`."""
    from hub_server import serving

    with serving(monkeypatch, tmp_path) as server:
        yield server


@pytest.fixture
def impatient(monkeypatch):
    """The client waits for seconds before it tries again; not here."""
    import time

    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.01)))

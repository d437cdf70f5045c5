"""Patience for the real client of the Hub."""

import pytest


@pytest.fixture
def impatient(monkeypatch):
    """The client waits for seconds before it tries again; not here."""
    import time

    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.01)))

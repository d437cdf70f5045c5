import contextlib

import pytest

from fake_drawer import FakeDrawer
from fake_server import running


@pytest.fixture
def serve(tmp_path):
    """`serve(drawer, **limits)` is a client of a running server; its folder is `tmp_path / "served"`."""
    with contextlib.ExitStack() as stack:
        yield lambda drawer=None, **limits: stack.enter_context(
            running(drawer or FakeDrawer(), limits.pop("folder", tmp_path / "served"), **limits)
        )


@pytest.fixture
def client(serve):
    return serve()

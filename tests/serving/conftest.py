import contextlib
import sys
import threading
from pathlib import Path

import httpx
import pytest
import uvicorn

sys.path.insert(0, str(Path(__file__).parent))

from fake_drawer import FakeDrawer

from dalle_mini.serving.app import application
from dalle_mini.serving.settings import ServerSettings


@contextlib.contextmanager
def running(drawer, folder, *, wait=True, **limits):
    """A server on a free port of loopback, in a thread; yields a client of it, which knows `.drawer` and `.jobs`."""
    app = application([drawer], ServerSettings(folder=folder, **limits))
    config = uvicorn.Config(app, port=0, log_config=None, access_log=False, timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    started = threading.Event()
    while not server.started and thread.is_alive():
        started.wait(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as client:
        client.app, client.drawer = app, drawer
        client.jobs, client.signer = app.state.jobs, app.state.signer
        while wait and client.get("/readyz").status_code != 200:
            started.wait(0.01)
        yield client
        if drawer.steps is not None:
            drawer.step(10_000)
        server.should_exit = True
        thread.join()


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

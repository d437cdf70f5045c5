"""A server whose images a fake draws, in a thread of this process."""

import contextlib
import threading

import httpx
import uvicorn

from dalle_mini.serving.app import application
from dalle_mini.serving.settings import ServerSettings


@contextlib.contextmanager
def running(drawer, folder, *, wait=True, **limits):
    """A server on a free port of loopback, in a thread; yields a client of it, which knows `.drawer` and `.jobs`.

    `drawer` is one, or a list of several.
    """
    app = application(drawer if isinstance(drawer, list) else [drawer], ServerSettings(folder=folder, **limits))
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
        if getattr(drawer, "steps", None) is not None:
            drawer.step(10_000)
        server.should_exit = True
        thread.join()

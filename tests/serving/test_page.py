"""The page in a real browser (tests/web), against a server with the shipped model."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

import dalle_mini
from dalle_mini.text.known_words import KnownWords

WEB = Path(__file__).parents[1] / "web"
BUNDLE = Path(dalle_mini.__file__).parent / "assets" / "emoji"


@pytest.fixture
def address(tmp_path):
    """A server's, whose model has a vocabulary."""
    bundle = tmp_path / "bundle"
    shutil.copytree(BUNDLE, bundle)
    KnownWords(["apple", "chair", "an", "a", "and"], {"armchair": ["chair"]}).save(bundle / "dalle")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "dalle_mini",
        "serve",
        "--port",
        str(port),
        "--per-minute",
        "0",
        "--frame",
        "http://localhost:*",
    ]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            [*command, "--model", str(bundle), "--folder", str(tmp_path / "served")],
            env=os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"},  # as users' programs are
            stdout=log,
            stderr=log,
        )
    try:
        wait_until_ready(f"http://127.0.0.1:{port}/", server)
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.terminate()
        server.wait(60)


def wait_until_ready(address, server):
    while server.poll() is None:
        try:
            if httpx.get(f"{address}readyz", trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    pytest.fail("the server ended")


@pytest.mark.slow
def test_the_page_in_a_browser(address):
    assert shutil.which("chromium"), "install chromium: apt-get install chromium"
    assert (WEB / "node_modules").is_dir(), "run npm ci in tests/web"
    command = ["node", "--test", "--test-concurrency=1", "page.test.js"]
    done = subprocess.run(
        command, cwd=WEB, env=os.environ | {"PAGE_ADDRESS": address}, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr

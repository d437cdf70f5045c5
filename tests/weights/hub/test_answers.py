"""A mirror of the Hub that means no good, or is broken: one line, and nothing is written where it should not be."""

import itertools
import json
import os
import subprocess
import sys

import pytest

from dalle_mini.errors import UserError
from dalle_mini.runtime.limits import VARIABLE
from dalle_mini.weights.hub.answers import is_file_name
from dalle_mini.weights.hub.repository import resolve
from hub_repositories import publish, refused


@pytest.mark.parametrize(
    ("headers", "named"),
    [
        ({"ETag": '"{outside}"'}, "the ETag"),
        ({"ETag": 'W/".."'}, "the ETag"),
        ({"ETag": '"a/b"'}, "the ETag"),
        ({"X-Linked-Etag": '"../../../written"'}, "the ETag"),
        ({"X-Repo-Commit": "../../../written"}, "the commit"),
        ({"X-Repo-Commit": "{outside}", "Status": "404", "X-Error-Code": "EntryNotFound"}, "the commit"),
        ({"X-Linked-Size": "-5"}, "the x-linked-size"),
        ({"X-Linked-Size": "1e9"}, "the x-linked-size"),
        ({"Content-Length": str(10**15)}, "download_bytes"),
        ({"X-Linked-Size": str(10**30)}, "the x-linked-size"),
        ({"Status": "302", "Location": "file:///etc/passwd"}, "a way to"),
        ({"Content-Encoding": "gzip"}, "compressed data"),
    ],
)
def test_headers_are_checked_before_the_client_acts_on_them(hub, tmp_path, headers, named):
    publish(hub)
    outside = tmp_path / "outside"
    hub.headers = {name: value.replace("{outside}", str(outside)) for name, value in headers.items()}
    message = refused("acme/mini")
    assert "config.json of acme/mini" in message and named in message
    assert not outside.exists() and not list(tmp_path.rglob("written*"))


SIBLINGS = {"id": "acme/mini", "sha": "a" * 40}


@pytest.mark.parametrize(
    "listing",
    [
        b"{" * 100_000,
        b"[1, 2]",
        b'"text"',
        b"\xff\xfe",
        json.dumps(SIBLINGS | {"siblings": [1]}).encode(),
        json.dumps(SIBLINGS | {"siblings": [{"name": "config.json"}]}).encode(),
        json.dumps(SIBLINGS | {"siblings": [{"rfilename": ["config.json"]}]}).encode(),
        json.dumps(SIBLINGS | {"siblings": 7}).encode(),
        json.dumps(SIBLINGS | {"sha": "../../x"}).encode(),
        json.dumps(SIBLINGS | {"sha": 5}).encode(),
        json.dumps(SIBLINGS | {"lastModified": "yesterday"}).encode(),
        b'{"id": "acme/mini", "sha": ' + b"9" * 5000 + b"}",
    ],
)
def test_a_listing_that_makes_no_sense_is_one_line(hub, listing):
    publish(hub)
    hub.listing = [listing]
    assert "acme/mini" in refused("acme/mini")


def test_names_that_lead_elsewhere_are_no_files(hub):
    for name in (
        "",
        ".",
        "..",
        "a/../b",
        "/etc/passwd",
        "a//b",
        "a\\b",
        "a\nb",
        "a\0b",
        "\x1b[31m",
        "a/" + "b" * 256,
        1,
    ):
        assert not is_file_name(name)
    assert is_file_name("dalle/model-00001-of-00002.safetensors") and is_file_name("Größe 1.txt")
    index = {"weight_map": {"a": "..", "b": "model-1.safetensors", "c": "../model-1.safetensors", "d": 5}}
    files = {"config.json": b"{}", "model.safetensors.index.json": json.dumps(index).encode()}
    hub.add("acme/mini", **files, **{"model-1.safetensors": b"1", "..": b"2"})
    resolve("acme/mini")
    assert hub.fetched() == ["config.json", "model.safetensors.index.json", "model-1.safetensors"]


def test_what_never_ends_is_left_off(hub, tmp_path, monkeypatch, impatient):
    commit = publish(hub)
    hub.endless = {"config.json"}
    assert "more than the" in refused("acme/mini")
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 100_000
    monkeypatch.setenv(VARIABLE, "json_bytes=100000")
    hub.listing = itertools.repeat(b" " * 1000)
    assert "json_bytes" in refused("acme/mini")
    assert commit


def test_the_token_goes_to_the_hub_alone(hub, tmp_path, monkeypatch):
    from hub_server import TOKEN, HubServer

    publish(hub)
    stranger, asked = HubServer(), []
    handler = stranger._server.RequestHandlerClass
    handler._answer = lambda self: (asked.append(dict(self.headers)), self._send(b"{}", 200, ETag='"a"'))
    hub.headers = {"Status": "302", "Location": f"{stranger.url}/x", "X-Linked-Etag": '"a"', "X-Linked-Size": "2"}
    try:
        resolve("acme/mini", token=TOKEN)
    finally:
        stranger.close()
    assert asked and not any("authorization" in {name.lower() for name in headers} for headers in asked)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"ALL_PROXY": "socks5://127.0.0.1:9"}, "acme/mini"),
        ({"ALL_PROXY": "socks://127.0.0.1:9"}, "acme/mini"),
        ({"HTTPS_PROXY": "http://127.0.0.1:abc", "HTTP_PROXY": "http://127.0.0.1:abc"}, "acme/mini"),
        ({"HF_TOKEN": "hf_ключ"}, "HF_TOKEN"),
        ({"HF_HUB_ETAG_TIMEOUT": "soon"}, "HF_*"),
        ({"HF_ENDPOINT": "ftp://127.0.0.1:9"}, "acme/mini"),
        ({"HF_ENDPOINT": "127.0.0.1:9"}, "acme/mini"),
    ],
)
def test_settings_that_make_no_sense_are_one_line_and_a_full_cache_answers(hub, tmp_path, settings, named):
    publish(hub)
    resolve("acme/mini")
    code = """if True:
        import sys
        from dalle_mini import UserError
        from dalle_mini.weights.hub.repository import resolve
        try:
            print(resolve(sys.argv[1]))
        except UserError as error:
            print("refused:", error)"""
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    environment |= {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": "http://127.0.0.1:9", "PYTHONIOENCODING": "utf-8"}

    def told(source: str) -> str:
        command = [sys.executable, "-c", code, source]
        done = subprocess.run(command, env=environment | settings, capture_output=True, text=True, encoding="utf-8")
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
        return done.stdout

    if named == "acme/mini":  # else not a word can be had of the client
        assert "config.json" in os.listdir(told("acme/mini").strip())
    message = told("acme/mini@v2")
    assert message.startswith("refused: ") and named in message and message.count("\n") == 1


def test_an_index_that_cannot_be_read_is_one_line(hub):
    hub.add("acme/odd", **{"config.json": b"{}", "model.safetensors.index.json": b'{"weight_map": ' + b"[" * 50_000})
    with pytest.raises(UserError, match=r"model\.safetensors\.index\.json: it is nested more than 64 deep"):
        resolve("acme/odd")

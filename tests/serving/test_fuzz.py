"""Odd requests at all routes: no 500, no hang, and errors in one shape."""

import contextlib
import json
import random
import socket
import string

import pytest

from dalle_mini.serving.app import OPENAPI
from serving_client import finished

TRIES = 2000
FILES = ["", "; filename=a"]
ODD = [
    None, True, 0, -1, 1, 2**31, 2**63, 10**40, 0.5, -0.0, 1e308, "", "x", "a fox", "\x00", "\ud800", "🦊" * 50,
    "../../etc/passwd",
    "<b>", "%00", "1", [], [[]], [0], ["a"], {}, {"a": {}}, "data:image/png;base64,AAAA", "A" * 5000,
]  # fmt: skip
FIELDS = [
    "prompt", "n", "candidates", "seed", "guidance", "temperature", "top_k", "top_p", "negative_prompt", "decode",
    "first", "stay", "image", "mask", "keep_top", "vary", "tokens", "size", "response_format", "output_format",
    "output_compression", "stream", "partial_images", "user", "quality", "model", "image[]", "nonsense",
]  # fmt: skip
HEADERS = {
    "Authorization": ["", "Bearer", "Bearer x", "Basic eDp5", "\x7f"],
    "Content-Type": [
        "application/json",
        "text/plain",
        "multipart/form-data",
        "multipart/form-data; boundary=x",
        "\x01",
    ],
    "Last-Event-ID": ["", "1", "x.9999999999999999999", "0" * 500],
    "Origin": ["null", "http://[", "https://evil.example"],
    "Range": ["bytes=0-", "bytes=5-1", "x"],
    "Accept": ["text/event-stream", "*/*;q=x"],
}


def request(rng, client):
    paths = json.loads(OPENAPI.read_text("utf-8"))["paths"]
    path = rng.choice([*paths, "/", "/index.html", "/nothing", "//", "/jobs/"])
    for name in ("id", "number", "suffix", "model"):
        odd = rng.choice(["x", "1", "0", "-1", "9" * 30, "%2e%2e", "%00", "%ff", "a/b", "é", "A" * 300])
        path = path.replace("{" + name + "}", odd)
    method = rng.choice(["GET", "POST", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS"])
    query = {rng.choice([*FIELDS, "until", "sign", "partials", "format"]): str(rng.choice(ODD)) for _ in range(2)}
    query = {name: value.encode("utf-8", "replace").decode() for name, value in query.items()}
    headers = {name: rng.choice(values) for name, values in HEADERS.items() if rng.random() < 0.3}
    fields = {name: rng.choice(ODD) for name in rng.sample(FIELDS, rng.randrange(6))}
    if rng.random() < 0.6:
        fields["prompt"] = "a fox"
    body = json.dumps(fields).encode()
    kind = rng.random()
    if kind < 0.2:
        body = bytes(rng.choices(range(256), k=rng.randrange(200)))
    elif kind < 0.3:
        body = body[: rng.randrange(len(body))]
    elif kind < 0.5:
        parts = "".join(
            f'--x\r\nContent-Disposition: form-data; name="{name}"{rng.choice(FILES)}\r\n\r\n{value}\r\n'
            for name, value in fields.items()
        )
        body = (parts + rng.choice(["--x--\r\n", "--x", ""])).encode("utf-8", "replace")
        headers["Content-Type"] = "multipart/form-data; boundary=x"
    else:
        headers.setdefault("Content-Type", "application/json")
    headers = {name: value.encode("utf-8", "replace") for name, value in headers.items()}
    return client.build_request(method, path, params=query, content=body, headers=headers)


@pytest.mark.slow
def test_no_odd_request_is_an_error_of_the_server(serve):
    client, rng = serve(per_minute=0, queue=100_000), random.Random(25)
    for number in range(TRIES):
        asked = request(rng, client)
        with_body = asked.method != "HEAD"
        answer = client.send(asked)  # within the client's 30 seconds
        told = number, asked.method, asked.url, asked.headers, asked.content, answer.text[:500]
        assert answer.status_code < 500, told
        if answer.status_code >= 400 and with_body and answer.headers.get("content-type") == "application/json":
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}, told
    assert finished(client, prompt="a fox", candidates=1, n=1)["state"] == "done"


def test_no_odd_bytes_are_an_error_of_the_server(serve):
    client, rng = serve(per_minute=0), random.Random(26)
    for _ in range(100):
        size = rng.randrange(1, 300)
        line = rng.choice([b"GET / HTTP/1.1\r\n", b"POST /jobs HTTP/1.1\r\nHost: x\r\n", b"", b"GET /%zz HTTP/1.1\r\n"])
        noise = "".join(rng.choices(string.printable, k=size)).encode() if rng.random() < 0.5 else rng.randbytes(size)
        with socket.create_connection((client.base_url.host, client.base_url.port)) as wire:
            wire.settimeout(10)
            wire.sendall(line + noise + b"\r\n\r\n")
            wire.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                assert b" 500 " not in wire.recv(1000)
    assert finished(client, prompt="a fox", candidates=1, n=1)["state"] == "done"

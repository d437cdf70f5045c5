"""Requests of strangers: each item has a test of its own."""

import ast
import base64
import io
import json
import logging
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

import dalle_mini.serving
from bad_dataset import bomb
from dalle_mini.serving import guard
from dalle_mini.serving.app import PAGE
from fake_drawer import FakeDrawer
from serving_client import finished, picture

CHUNK = 1 << 16


def post(client, **fields):
    return client.post("/jobs", json=fields)


def refused(answer, status=400, param=None):
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"] and error["code"]
    assert param in (None, error["param"])
    return error


@pytest.mark.parametrize(
    "name", ["../secret", "..%2f..%2fsecret", "%2e%2e/secret", "....//secret", "/etc/passwd", "a%00b"]
)
def test_names_that_leave_a_folder(client, name):
    (client.jobs.store.folder / "secret.png").write_bytes(b"x")
    for path in (f"/jobs/{name}", f"/jobs/{name}/images/1.png", f"/{name}", f"/v1/files/{name}/1.png?until=1&sign=x"):
        answer = client.get(path)
        assert answer.status_code in (400, 403, 404, 405) and b"root:" not in answer.content, path


@pytest.mark.parametrize(
    "prompt", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "a\x1b[31m red\x07 \u202e fox"]
)
def test_prompts_with_html_and_escape_codes(client, prompt, caplog):
    with caplog.at_level(logging.INFO, "dalle_mini.serving"):
        job = finished(client, prompt=prompt, candidates=1, n=1)
    assert job["asked"]["prompt"] == prompt
    answer = client.get(f"/jobs/{job['id']}")
    assert (
        answer.headers["content-type"] == "application/json" and answer.headers["x-content-type-options"] == "nosniff"
    )
    assert b"\x1b" not in answer.content
    address = job["images"][0]["address"]
    assert not set("<>\"'\x1b\x07\u202e ") & set(address)
    assert prompt not in json.dumps([record.__dict__ for record in caplog.records], default=str)


def test_the_log_has_prompts_only_if_asked(serve, caplog):
    client = serve(log_prompts=True)
    with caplog.at_level(logging.INFO, "dalle_mini.serving"):
        finished(client, prompt="a secret fox", candidates=1, n=1)
    assert any("a secret fox" in str(record.__dict__.get("fields")) for record in caplog.records)


def test_a_prompt_of_100_kb(client):
    refused(post(client, prompt="a" * 100_000), 400, "prompt")
    refused(post(client, prompt="a fox", negative_prompt="b" * 100_000), 400, "negative_prompt")


def test_a_prompt_with_half_a_character(client):
    answer = client.post("/jobs", content=b'{"prompt": "\\ud800"}', headers={"Content-Type": "application/json"})
    refused(answer, 400, "prompt")
    answer = client.post("/jobs", content=b'{"\\ud800": 1}', headers={"Content-Type": "application/json"})
    refused(answer, 400)


def test_headers_cannot_be_injected(client):
    for value in ("x\r\nX-Evil: 1", "x\nX-Evil: 1"):
        answer = client.post(
            "/v1/images/generations", json={"prompt": value, "model": value, "user": value, "candidates": 1}
        )
        assert answer.status_code == 200 and "x-evil" not in answer.headers
        answer = client.get(f"/v1/models/{value}".replace("\r", "%0d").replace("\n", "%0a"))
        assert "x-evil" not in answer.headers
        answer = client.get("/jobs/x/events", headers={"Last-Event-ID": "1"}, params={"partials": value})
        refused(answer, 404)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        b'{"prompt": "a fox", "seed": ' + b"9" * 10_000 + b"}",
        b'{"prompt": "a fox", "temperature": 1e999}',
        b'{"prompt": "a fox", "temperature": NaN}',
        b'{"prompt": "a fox", "guidance": -Infinity}',
        b"\xff\xfe",
        b"",
        b"null",
        b"[]",
        b'"a fox"',
        b"{",
    ],
)
def test_json_that_is_none_or_huge(client, body):
    for path in ("/jobs", "/v1/images/generations"):
        refused(client.post(path, content=body, headers={"Content-Type": "application/json"}))


def test_a_body_that_is_too_large(serve):
    client = serve(body_bytes=10_000)
    refused(client.post("/jobs", json={"prompt": "a" * 20_000}), 413)
    refused(client.post("/v1/images/edits", files={"image": b"x" * 20_000}, data={"prompt": "x"}), 413)

    def drop_by_drop():
        for _ in range(20):
            yield b"x" * 1000

    answer = client.post("/jobs", content=drop_by_drop(), headers={"Content-Type": "application/json"})
    refused(answer, 413)
    with socket.create_connection((client.base_url.host, client.base_url.port)) as wire:
        wire.sendall(b"POST /jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\n")
        assert wire.recv(CHUNK).split()[1] in (b"400", b"413")


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("prompt", [1, None, [], {}, True, ["a fox"], ""]),
        ("n", ["1", 0, -1, 1.5, True, [], 10**30]),
        ("candidates", ["1", 0, 65, 1.5, True, {}]),
        ("seed", ["x", -1, 2**32, 1.5, True]),
        ("guidance", ["x", 0, -1, True, []]),
        ("temperature", ["x", 0, -1, 1e300]),
        ("top_k", [0, -1, "x", 1.5]),
        ("top_p", [0, 1.1, "x"]),
        ("negative_prompt", [1, []]),
        ("decode", ["x", 1, []]),
        ("first", [-1, 5000, "x", 1.5]),
        ("stay", ["yes", 1, []]),
        ("image", [1, "not base64!", "https://example.org/a.png", "file:///etc/passwd", {}, "aGFsbG8="]),
        ("mask", ["x", [1]]),
        ("keep_top", [0.5]),
        ("vary", [0.5]),
        ("tokens", ["x", [1], [-2] * 16, [256] * 16, [1.5] * 16, [0] * 16, {}]),
        ("nonsense", [1]),
    ],
)
def test_wrong_types_and_values(client, field, values):
    for value in values:
        answer = post(client, **{"prompt": "a fox", field: value})
        assert refused(answer)["param"] is not None, (field, value)
    assert not client.drawer.calls


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("mask", ["x", [16], [-1], ["a"], [0] * 17, {}, base64.b64encode(picture((3, 3))).decode()]),
        ("keep_top", [0, 1, "x", True, -1]),
        ("vary", [-1, 2, "x", True]),
    ],
)
def test_wrong_parts_of_an_image(client, field, values):
    image = base64.b64encode(picture()).decode()
    for value in values:
        refused(post(client, prompt="a fox", image=image, **{field: value}))


def test_a_picture_bomb(client):
    for data in (bomb(), bomb(2**31 - 1), b"GIF89a" + b"\xff" * 100, b"<svg onload=alert(1)>", b""):
        text = base64.b64encode(data).decode()
        assert refused(post(client, prompt="a fox", image=text, vary=0.5))["code"] in ("invalid_image", "invalid_value")
        files = {"image": ("a.png", data), "mask": ("b.png", data)}
        refused(client.post("/v1/images/edits", data={"prompt": "a fox"}, files=files), 400)
    assert not client.drawer.calls


def test_an_upload_of_too_many_pixels(serve):
    client = serve(pixels=100)
    error = refused(post(client, prompt="a fox", image=base64.b64encode(picture()).decode(), vary=0.5), 400, "image")
    assert "100" in error["message"]


def test_addresses_of_images_are_not_fetched(client):
    asked = []

    class Trap(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(picture())

    with HTTPServer(("127.0.0.1", 0), Trap) as trap:
        threading.Thread(target=trap.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{trap.server_port}/a.png"
        for fields in ({"image": url}, {"image": f"data:{url}"}, {"image": base64.b64encode(url.encode()).decode()}):
            refused(post(client, prompt="a fox", vary=0.5, **fields))
        refused(client.post("/v1/images/edits", data={"prompt": "a fox", "image": url}), 400, "image")
        client.post("/v1/images/generations", json={"prompt": url, "image": url, "candidates": 1})
        trap.shutdown()
    assert not asked


def test_keys_are_compared_in_constant_time(serve, monkeypatch):
    compared = []
    right = guard.hmac.compare_digest
    monkeypatch.setattr(guard.hmac, "compare_digest", lambda a, b: compared.append((a, b)) or right(a, b))
    client = serve(keys=("first", "second", "third"))
    compared.clear()
    assert client.get("/about", headers={"Authorization": "Bearer first"}).status_code == 200
    assert [known for known, _ in compared if known in (b"first", b"second", b"third")] == [
        b"first",
        b"second",
        b"third",
    ]
    for wrong in ("", "firs", "firsts", "FIRST", "\u00e9"):
        headers = {"Authorization": f"Bearer {wrong or 'x'}".encode()}
        refused(client.get("/about", headers=headers), 401)
    # No key, signature or owner is compared in any other way.
    for file in Path(dalle_mini.serving.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Compare):
                text = ast.unparse(node)
                assert not re.search(
                    r"\b_?(owner|sign|secret|keys?) (==|!=|in) |(==|!=) \S*\b_?(owner|sign|secret|keys?)\b", text
                ), (file, text)


def test_a_signature_opens_one_image_and_nothing_else(serve):
    client = serve(keys=("right",))
    mine = {"Authorization": "Bearer right"}
    id = client.post("/jobs", json={"prompt": "a fox", "candidates": 2, "n": 2}, headers=mine).json()["id"]
    while (job := client.get(f"/jobs/{id}", headers=mine).json())["state"] != "done":
        pass
    url = job["images"][0]["url"]
    assert client.get(url).status_code == 200
    query = url.partition("?")[2]
    for path in (f"/jobs/{id}", f"/jobs/{id}/events", "/about", "/metrics", "/v1/models", "/v1/images/generations"):
        refused(client.get(f"{path}?{query}"), 401)
    refused(client.post(f"/v1/images/generations?{query}", json={"prompt": "a fox"}), 401)
    refused(client.get(url.replace("/1.png", "/2.png")), 401)
    refused(client.get(url.replace("until=1", "until=2")), 401)
    refused(client.get(f"/jobs/{id}/images/1.png?sign="), 401)
    refused(client.get(f"/jobs/{id}/images/1.png"), 401)


def test_only_the_owner_sees_a_job(serve):
    client = serve(keys=("mine", "yours"))
    mine, yours = ({"Authorization": f"Bearer {key}"} for key in ("mine", "yours"))
    id = client.post("/jobs", json={"prompt": "a fox"}, headers=mine).json()["id"]
    assert len(id) >= 22
    for method, path in (("GET", ""), ("GET", "/events"), ("GET", "/images/1.png"), ("DELETE", "")):
        refused(client.request(method, f"/jobs/{id}{path}", headers=yours), 404)
        refused(client.request(method, f"/jobs/{id}{path}"), 401)
    assert client.get(f"/jobs/{id}", headers=mine).status_code == 200


def test_tries_of_keys_are_counted(serve):
    client = serve(keys=("right",), per_minute=5)
    codes = [client.get("/about", headers={"Authorization": f"Bearer {n}"}).status_code for n in range(8)]
    assert codes == [401] * 5 + [429] * 3
    assert client.get("/about", headers={"Authorization": "Bearer right"}).status_code == 200


def test_pages_of_other_sites(serve):
    client = serve()
    evil = {"Origin": "https://evil.example"}
    refused(client.post("/jobs", json={"prompt": "a fox"}, headers=evil), 403)
    refused(client.delete("/jobs/x", headers=evil), 403)
    # A form or a script without permission can send only these types, and JSON is none of them.
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        refused(client.post("/jobs", content=b'{"prompt": "a fox"}', headers={"Content-Type": kind}), 400)
    own = {"Origin": str(client.base_url).rstrip("/")}
    assert client.post("/jobs", json={"prompt": "a fox"}, headers=own).status_code == 202
    answer = client.get("/about", headers=evil)
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "192.168.0.7",
        "[::2]",
        "[",
        "",
    ],
)
def test_names_that_a_stranger_lets_point_to_this_machine(serve, host):
    client = serve(hosts=("draw.example",))
    for path in ("/", "/about", "/healthz", "/jobs/x"):
        refused(client.get(path, headers={"Host": host}), 403)
    own = {"Host": host, "Origin": f"http://{host}"}
    refused(client.post("/jobs", json={"prompt": "a fox"}, headers=own), 403)
    assert not client.jobs._jobs


def test_names_that_a_server_answers_to(serve, tmp_path):
    client = serve(hosts=("Draw.example",))
    for host in (
        "localhost",
        "LOCALHOST:1",
        "127.0.0.1:8000",
        "127.1.2.3",
        "[::1]:80",
        "a.localhost",
        "draw.example.",
        "draw.Example",
    ):
        assert client.get("/about", headers={"Host": host}).status_code == 200, host
    for number, hosts in enumerate((None, ("*",))):
        other = serve(hosts=hosts, folder=tmp_path / str(number))
        assert other.get("/about", headers={"Host": "evil.example"}).status_code == 200


def test_cors_if_asked(serve):
    client = serve(origins=("https://good.example",))
    good = {"Origin": "https://good.example"}
    assert client.post("/jobs", json={"prompt": "a fox"}, headers=good).status_code == 202
    assert client.get("/about", headers=good).headers["access-control-allow-origin"] == "https://good.example"
    refused(client.post("/jobs", json={"prompt": "a fox"}, headers={"Origin": "https://evil.example"}), 403)
    asked = good | {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    assert client.options("/v1/images/generations", headers=asked).status_code == 200


def test_the_page_may_load_nothing_from_elsewhere(client):
    policy = client.get("/").headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy and "*" not in policy
    assert client.get("/").headers["x-frame-options"] == "DENY"


def test_the_page_in_a_frame_of_another_site(client, serve, tmp_path):
    headers = client.get("/").headers
    assert "frame-ancestors 'none'" in headers["content-security-policy"] and headers["x-frame-options"] == "DENY"
    sites = ("https://huggingface.co", "https://*.example")
    headers = serve(frames=sites, folder=tmp_path / "framed").get("/").headers
    assert headers["content-security-policy"].endswith("frame-ancestors https://huggingface.co https://*.example")
    assert "x-frame-options" not in headers


def test_pixels_of_others_never_come_back(client):
    """The image that a job starts from is not told, and not kept after its end."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer := io.BytesIO(), "PNG")
    job = finished(
        client, prompt="a fox", candidates=1, n=1, image=base64.b64encode(buffer.getvalue()).decode(), vary=0.5
    )
    assert job["state"] == "done" and "image" not in job["asked"]


def test_behind_a_proxy_with_a_prefix(tmp_path):
    import anyio

    from dalle_mini.serving.app import application
    from dalle_mini.serving.settings import ServerSettings

    app = application([FakeDrawer()], ServerSettings(folder=tmp_path / "served", keys=("right",)))

    async def ask():
        transport = httpx.ASGITransport(app, root_path="/draw")
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://x") as client,
        ):
            headers = {"Authorization": "Bearer right"}
            while (await client.get("/draw/readyz")).status_code != 200:
                await anyio.sleep(0.01)
            assert (await client.get("/draw/about")).status_code == 401
            body = {"prompt": "a fox", "candidates": 1, "response_format": "url"}
            answer = await client.post("/draw/v1/images/generations", json=body, headers=headers)
            url = answer.json()["data"][0]["url"]
            assert url.startswith("http://x/draw/v1/files/") and (await client.get(url)).status_code == 200

    anyio.run(ask)


def test_the_page_needs_no_key(serve):
    client = serve(keys=("secret",))
    for file in [path for path in PAGE.rglob("*") if path.is_file()]:
        assert client.get(f"/{file.relative_to(PAGE)}").status_code == 200, file

"""A small object store on this machine that speaks as much of Google's JSON API as gcsfs and TensorStore use.

`serving` has them send there what they have for gs://bucket.
"""

import contextlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

OBJECT = re.compile(r"/(?:download/)?storage/v1/b/bucket/o(?:/([^/]+))?")
MOVE = re.compile(r"/storage/v1/b/bucket/o/([^/]+)/(rewriteTo|copyTo|moveTo)(?:/b/bucket)?/o/([^/]+)")
BATCH = "/batch/storage/v1"
UPLOAD = "/upload/storage/v1/b/bucket/o"


class Store(BaseHTTPRequestHandler):
    """`objects` are by name; `generations` count how often each was written, `uploads` are those under way."""

    objects: dict[str, bytes]
    generations: dict[str, int]
    uploads: dict[str, tuple[str, bytearray]]
    lock: threading.RLock
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        path, asked = self.asked()
        if path == "/storage/v1/b/bucket":
            return self.answer(b'{"kind": "storage#bucket", "name": "bucket"}')
        match = OBJECT.fullmatch(path)
        if not match:
            return self.answer(b"{}", 404)
        if match[1] is None:
            return self.answer(json.dumps(self.listing(asked)).encode())
        name = unquote(match[1])
        with self.lock:
            if name not in self.objects:
                return self.missing()
            if asked.get("alt") != "media":
                return self.answer(json.dumps(self.about(name)).encode())
            data, generation = self.objects[name], self.generation(name)
        if not self.is_wanted(name, asked):
            return self.answer(b"", 304 if "ifGenerationNotMatch" in asked else 412)
        headers = {"x-goog-generation": generation}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not wanted:
            return self.answer(data, headers=headers)
        start, stop = int(wanted[1]), min(int(wanted[2] or len(data)) + 1, len(data))
        self.answer(data[start:stop], 206, {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"})

    def do_POST(self):
        path, asked = self.asked()
        body = self.body()
        if move := MOVE.fullmatch(path):
            source, how, target = map(unquote, move.groups())
            with self.lock:
                if source not in self.objects:
                    return self.missing()
                self.put(target, self.objects.pop(source) if how == "moveTo" else self.objects[source])
                about = self.about(target)
            return self.answer(json.dumps(about if how == "moveTo" else {"done": True, "resource": about}).encode())
        if path == BATCH:
            return self.batch(body.decode())
        if path != UPLOAD:
            return self.answer(b"{}", 404)
        if "upload_id" in asked:
            return self.piece(body, asked)
        kind, name = asked.get("uploadType"), asked.get("name")
        if kind == "resumable":
            number = str(len(self.uploads))
            self.uploads[number] = (name or json.loads(body)["name"], bytearray())
            address = f"http://{self.headers['Host']}{UPLOAD}?uploadType=resumable&upload_id={number}"
            return self.answer(b"", headers={"Location": address})
        if kind == "multipart":
            name, body = multipart(self.headers["Content-Type"], body)
        self.store(name, body, asked)

    def do_PUT(self):
        self.piece(self.body(), self.asked()[1])

    def piece(self, body, asked):
        name, data = self.uploads[asked["upload_id"]]
        data += body
        total = self.headers.get("Content-Range", "").rpartition("/")[2]
        if total == "*":
            return self.answer(b"", 308, {"Range": f"bytes=0-{len(data) - 1}"} if data else {})
        self.store(name, bytes(data), asked)

    def do_DELETE(self):
        path, asked = self.asked()
        name = unquote(OBJECT.fullmatch(path)[1])
        with self.lock:
            if name not in self.objects:
                return self.missing()
            if not self.is_wanted(name, asked):
                return self.answer(b"{}", 412)
            del self.objects[name]
        self.answer(b"", 204)

    def batch(self, body):
        """Deletions, many in one request."""
        answers = []
        for name in re.findall(r"^DELETE /storage/v1/b/bucket/o/([^? ]+)", body, re.MULTILINE):
            there = self.objects.pop(unquote(name), None) is not None
            answers.append(f"--part\nContent-Type: application/http\n\nHTTP/1.1 {204 if there else 404} -\n\n")
        text = "".join(answers) + "--part--"
        self.answer(text.encode(), headers={"Content-Type": "multipart/mixed; boundary=part"})

    def asked(self):
        url = urlsplit(self.path)
        return url.path, {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def store(self, name, data, asked):
        with self.lock:
            if not self.is_wanted(name, asked):
                return self.answer(b"{}", 412)
            self.put(name, data)
            about = self.about(name)
        self.answer(json.dumps(about).encode())

    def put(self, name, data):
        self.objects[name] = data
        self.generations[name] = self.generation(name) + 1

    def generation(self, name):
        return self.generations.get(name, 1)

    def is_wanted(self, name, asked):
        there = self.generation(name) if name in self.objects else 0
        wanted, unwanted = asked.get("ifGenerationMatch"), asked.get("ifGenerationNotMatch")
        return (wanted is None or int(wanted) == there) and (unwanted is None or int(unwanted) != there)

    def about(self, name):
        return {
            "kind": "storage#object",
            "name": name,
            "bucket": "bucket",
            "size": str(len(self.objects[name])),
            "generation": str(self.generation(name)),
            "updated": "2026-01-01T00:00:00.000Z",
            "timeCreated": "2026-01-01T00:00:00.000Z",
        }

    def listing(self, asked):
        prefix, delimiter = asked.get("prefix", ""), asked.get("delimiter")
        items, folders = [], set()
        with self.lock:
            for name in sorted(self.objects):
                rest = name.removeprefix(prefix)
                if not asked.get("startOffset", "") <= name < asked.get("endOffset", "\U0010ffff"):
                    continue
                if name.startswith(prefix) and delimiter and delimiter in rest:
                    folders.add(prefix + rest.split(delimiter)[0] + delimiter)
                elif name.startswith(prefix):
                    items.append(self.about(name))
        return {"kind": "storage#objects", "items": items, "prefixes": sorted(folders)}

    def missing(self):
        self.answer(b'{"error": {"code": 404, "message": "No such object"}}', 404)

    def answer(self, data, status=200, headers=()):
        self.send_response(status)
        for key, value in {"Content-Length": len(data), "Content-Type": "application/json", **dict(headers)}.items():
            self.send_header(key, str(value))
        self.end_headers()
        self.wfile.write(data)


def multipart(kind, body):
    """(name, data) of an upload in two parts, what it is and then its bytes."""
    boundary = re.search(r"boundary=[\"']?([^\"';]+)", kind)[1].encode()
    about, data = (part.split(b"\n\n" if b"\r\n\r\n" not in part else b"\r\n\r\n", 1)[1]
                   for part in body.split(b"--" + boundary)[1:3])  # fmt: skip
    return json.loads(about)["name"], data.removesuffix(b"\r\n") if data.endswith(b"\r\n") else data.removesuffix(b"\n")


@contextlib.contextmanager
def serving(monkeypatch):
    """The objects of gs://bucket, by name."""
    import gcsfs
    from etils.epath import backend

    objects: dict[str, bytes] = {}
    state = {"objects": objects, "generations": {}, "uploads": {}, "lock": threading.RLock()}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Store,), state))
    server.handle_error = lambda *_: None  # clients that hang up
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # it would look for credentials
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", address)
    monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")
    gcsfs.GCSFileSystem.clear_instance_cache()
    backend.fsspec_backend._get_filesystem.cache_clear()  # etils has one of its own
    try:
        yield objects
    finally:
        server.shutdown()
        server.server_close()
        gcsfs.GCSFileSystem.clear_instance_cache()

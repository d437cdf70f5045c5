"""`gs://` with the real client and a small store on this machine that speaks Google's JSON API."""

import io
import json
import pickle
import re
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import bad_pile
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dalle_mini.data import reasons
from dalle_mini.data.sources import open_source
from dalle_mini.errors import UserError

pytest.importorskip("gcsfs")

PICTURE = bad_pile.packed(bad_pile.photo(0))


class Store(BaseHTTPRequestHandler):
    objects: dict[str, bytes]
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        url = urlsplit(self.path)
        asked = {name: values[0] for name, values in parse_qs(url.query).items()}
        match = re.fullmatch(r"/(?:download/)?storage/v1/b/bucket/o(?:/(.+))?", url.path)
        if not match:
            return self.answer(b"{}", 404)
        if match[1] is None:
            return self.answer(json.dumps(self.listing(asked.get("prefix", ""), asked.get("delimiter"))).encode())
        name = unquote(match[1])
        if name not in self.objects:
            return self.answer(b'{"error": {"code": 404, "message": "No such object"}}', 404)
        if asked.get("alt") != "media":
            return self.answer(json.dumps(self.about(name)).encode())
        data = self.objects[name]
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not wanted:
            return self.answer(data)
        start, stop = int(wanted[1]), min(int(wanted[2] or len(data)) + 1, len(data))
        self.answer(data[start:stop], 206, {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"})

    def about(self, name):
        return {"kind": "storage#object", "name": name, "bucket": "bucket", "size": str(len(self.objects[name]))}

    def listing(self, prefix, delimiter):
        items, folders = [], set()
        for name in sorted(self.objects):
            rest = name.removeprefix(prefix)
            if name.startswith(prefix) and delimiter and delimiter in rest:
                folders.add(prefix + rest.split(delimiter)[0] + delimiter)
            elif name.startswith(prefix):
                items.append(self.about(name))
        return {"kind": "storage#objects", "items": items, "prefixes": sorted(folders)}

    def answer(self, data, status=200, headers=()):
        self.send_response(status)
        for key, value in {"Content-Length": len(data), "Content-Type": "application/json", **dict(headers)}.items():
            self.send_header(key, str(value))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def store(monkeypatch):
    """The objects of gs://bucket, by name."""
    import gcsfs

    objects: dict[str, bytes] = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Store,), {"objects": objects}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # it would look for credentials
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_address[1]}")
    gcsfs.GCSFileSystem.clear_instance_cache()
    yield objects
    server.shutdown()
    server.server_close()
    gcsfs.GCSFileSystem.clear_instance_cache()


def outcome(spec):
    parts = pickle.loads(pickle.dumps(open_source(spec).parts()))
    return [(example.key, example.captions, example.problem) for part in parts for example in part.examples()]


def test_piles_of_every_kind_in_a_bucket(store):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        bad_pile.put(tar, "0.jpg", PICTURE)
        bad_pile.put(tar, "0.txt", b"of a tar")
    pq.write_table(pa.table({"image": [PICTURE], "text": ["of Parquet"]}), table := io.BytesIO())
    store |= {
        "pile/": b"",  # what a console puts in a folder's place
        **{f"pile/{i:02d}.jpg": PICTURE for i in range(20)},
        **{f"pile/{i:02d}.txt": f"number {i}".encode() for i in range(20)},
        "pile/deep/x.jpg": b"",
        "tars/0.tar": file.getvalue(),
        "tars/1.tar": file.getvalue()[:1500],
        "parquet/x.parquet": table.getvalue(),
        "list/metadata.csv": b"file_name,text\na.jpg,one\ngs://bucket/list/a.jpg,two\n../pile/00.jpg,three\n",
        "list/a.jpg": PICTURE,
    }
    numbers = [(f"{i:02d}", (f"number {i}",), None) for i in range(20)]
    assert outcome("gs://bucket/pile") == [*numbers, ("deep/x", (), reasons.EMPTY_FILE)]
    tars = [("0/0", ("of a tar",), None), ("1/archive cut short", (), reasons.CUT_SHORT)]
    assert outcome("gs://bucket/tars") == outcome("gs://bucket/tars/*.tar") == tars
    gone = ("2/cannot be read", (), reasons.CANNOT_READ)
    assert outcome("gs://bucket/tars/{0..2}.tar") == [*tars, gone]
    assert (
        outcome("gs://bucket/parquet") == outcome("gs://bucket/parquet/x.parquet") == [("x/0", ("of Parquet",), None)]
    )
    assert outcome("gs://bucket/list") == [
        ("a", ("one",), None),
        ("a", ("two",), None),
        ("metadata.csv:4", ("three",), reasons.LEAVES_FOLDER),
    ]
    with pytest.raises(UserError, match="gs://bucket/none: there is no such file or folder"):
        open_source("gs://bucket/none")

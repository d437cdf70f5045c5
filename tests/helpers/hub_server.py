"""A small Hugging Face Hub on this machine, for the real client to talk to.

It speaks what the client of today asks for: a revision's commit and files, files with ETag and Range, and for uploads
repos/create, preupload, LFS and commit. It counts requests and can misbehave.
"""

import base64
import contextlib
import hashlib
import itertools
import json
import re
import threading
from collections import Counter
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

TOKEN = "hf_secret"
LFS = (".msgpack", ".safetensors", ".bin")  # the others lie in git itself


class HubServer:
    """Serves repositories until `close`.

    Attributes:
        url: what `HF_ENDPOINT` is to be.
        requests: (method, path) of each, in order.
        private, gated: repositories that want the `TOKEN`, or more than that.
        cut: file name -> how many of its next downloads break off after half of what was asked for.
        spoiled: file name -> how many come with one wrong byte.
        short: file name -> how many come without their last byte.
        status: if set, the HTTP status of every answer, which is a page in HTML.
        headers: laid over those of every file's answer; `Status` is the answer's own.
        listing: if set, the body of every answer about a revision, chunk by chunk.
        endless: names of files that never end.
    """

    def __init__(self):
        self.repositories: dict[str, dict[str, str]] = {}  # name -> branch -> commit
        self.commits: dict[str, dict[str, bytes]] = {}  # commit -> file name -> content
        self.requests: list[tuple[str, str]] = []
        self.private, self.gated = set(), set()
        self.cut, self.spoiled, self.short = Counter(), Counter(), Counter()
        self.uploaded: dict[str, bytes] = {}  # LFS object -> content
        self.messages: list[str] = []  # of commits made through the client
        self.status: int | None = None
        self.headers: dict[str, str] = {}
        self.listing: Iterable[bytes] | None = None
        self.endless: set[str] = set()
        self._is_closed = False
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._is_closed = True  # for connections that are open
        self._server.shutdown()
        self._server.server_close()

    def add(self, repo_id: str, *folders: Path, branch: str = "main", **files: bytes) -> str:
        """Commit the files of some folders (and of their folders) to a branch, in place of what is there."""
        content = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for folder in folders
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        return self.commit(repo_id, branch, content | files)

    def commit(self, repo_id: str, branch: str, content: dict[str, bytes]) -> str:
        listing = json.dumps([repo_id, {name: git_sha1(data) for name, data in content.items()}])
        commit = hashlib.sha1(listing.encode()).hexdigest()
        self.commits[commit] = content
        self.repositories.setdefault(repo_id, {})[branch] = commit
        return commit

    def fetched(self) -> list[str]:
        """The names of the files downloaded since the last call of `forget`, in order."""
        files = [path.split("/resolve/") for method, path in self.requests if method == "GET" and "/resolve/" in path]
        return [revision_and_name.split("/", 1)[1] for _, revision_and_name in files]

    def forget(self) -> None:
        self.requests.clear()


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextlib.contextmanager
def serving(monkeypatch, folder: Path):
    """A `HubServer`; the client in this process talks to nothing else and keeps its files in `folder / "hf"`."""
    from huggingface_hub import constants, file_download

    server = HubServer()
    home = folder / "hf"
    settings = {
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,  # the server speaks plain HTTP and LFS
        "HF_HUB_DISABLE_TELEMETRY": True,
    }
    for name, value in settings.items():  # the client read the environment when it was imported
        monkeypatch.setattr(constants, name, value)
        if hasattr(file_download, name):  # older clients copied it
            monkeypatch.setattr(file_download, name, value)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    try:
        yield server
    finally:
        server.close()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        self._answer()

    def do_POST(self):
        self._answer()

    def do_PUT(self):
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        if self.hub._is_closed:
            self.close_connection = True
            return
        self.hub.requests.append((self.command, path))
        if self.hub.status:
            return self._send(b"<html>Welcome to the hotel", self.hub.status, Content_Type="text/html")
        for pattern, method in _ROUTES:
            match = re.fullmatch(pattern, f"{self.command} {path}")
            if match:
                return method(self, body, **match.groupdict())
        self._refuse(404, "", f"no such page: {self.command} {path}")

    # -- reading

    def _revision(self, body, repo, revision):
        commit = self._commit(repo, revision)
        if commit and self.hub.listing is not None:
            self._send_chunks(self.hub.listing)
        elif commit:
            siblings = [{"rfilename": name} for name in self.hub.commits[commit]]
            self._json({"id": repo, "modelId": repo, "sha": commit, "siblings": siblings, "private": False, "tags": []})

    def _tree(self, body, repo, revision):
        commit = self._commit(repo, revision)
        if commit:
            self._json([_entry(name, data) for name, data in self.hub.commits[commit].items()])

    def _file(self, body, repo, revision, name):
        commit = self._commit(repo, revision)
        if not commit:
            return
        if name not in self.hub.commits[commit]:
            return self._refuse(404, "EntryNotFound", f"{name} does not exist")
        data = self.hub.commits[commit][name]
        etag = hashlib.sha256(data).hexdigest() if name.endswith(LFS) else git_sha1(data)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if name.endswith(LFS):
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(data))}
        base = name.rpartition("/")[2]
        if self._strikes(self.hub.spoiled, base):
            data = data[:-1] + bytes([data[-1] ^ 1])
        if self._strikes(self.hub.short, base):
            data = data[:-1]
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(wanted[1]) if wanted else 0
        if wanted:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if base in self.hub.endless and self.command == "GET":
            return self._send_chunks(itertools.repeat(b"0" * 1000))
        headers |= {"Status": "206" if wanted else "200", "Content-Length": str(len(data) - start)} | self.hub.headers
        self.send_response(int(headers.pop("Status")))
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            part = data[start:]
            if self._strikes(self.hub.cut, base):
                part, self.close_connection = part[: len(part) // 2], True
            self.wfile.write(part)

    def _strikes(self, fault: Counter, name: str) -> bool:
        strikes = self.command == "GET" and fault[name] > 0
        fault[name] -= strikes
        return strikes

    def _commit(self, repo: str, revision: str) -> str | None:
        """The commit of a revision, or None where the refusal has been sent."""
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        branches = self.hub.repositories.get(repo)
        if repo in self.hub.gated:
            self._refuse(403, "GatedRepo", f"Access to model {repo} is restricted")
        elif branches is None or (repo in self.hub.private and token != TOKEN):
            # The Hub does not tell strangers what is private from what is not there.
            self._refuse(404 if token == TOKEN else 401, "RepoNotFound", "Repository not found")
        elif revision in branches or revision in self.hub.commits:
            return branches.get(revision, revision)
        else:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")

    # -- writing

    def _create(self, body):
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._refuse(401, "", "Invalid username or password.")
        asked = json.loads(body)
        repo = f"{asked['organization']}/{asked['name']}"
        if repo in self.hub.repositories:
            return self._refuse(409, "", "You already created this model repo", url=f"{self.hub.url}/{repo}")
        self.hub.commit(repo, "main", {".gitattributes": b""})
        if asked.get("private") or asked.get("visibility") == "private":
            self.hub.private.add(repo)
        self._json({"url": f"{self.hub.url}/{repo}", "name": repo})

    def _branch(self, body, repo, branch):
        branches = self.hub.repositories[repo]
        branches.setdefault(branch, branches["main"])
        self._json({})

    def _validate(self, body):
        self._json({"errors": [], "warnings": []})

    def _preupload(self, body, repo, revision):
        names = [file["path"] for file in json.loads(body)["files"]]
        modes = {name: "lfs" if name.endswith(LFS) else "regular" for name in names}
        self._json({"files": [{"path": n, "uploadMode": mode, "shouldIgnore": False} for n, mode in modes.items()]})

    def _batch(self, body, repo):
        objects = [{"oid": o["oid"], "size": o["size"]} for o in json.loads(body)["objects"]]
        for item in objects:
            item["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{item['oid']}"}}
        self._json({"transfer": "basic", "objects": objects})

    def _store(self, body, oid):
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.uploaded[oid] = body
        self._json({})

    def _push(self, body, repo, revision):
        content = dict(self.hub.commits[self.hub.repositories[repo][revision]])
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                self.hub.messages.append(value["summary"])
            elif item["key"] == "file":
                content[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                content[value["path"]] = self.hub.uploaded[value["oid"]]
        commit = self.hub.commit(repo, revision, content)
        self._json({"commitUrl": f"{self.hub.url}/{repo}/commit/{commit}", "commitOid": commit})

    def _send_chunks(self, chunks: Iterable[bytes]) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with contextlib.suppress(OSError):  # the client has had enough
            for chunk in chunks:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            self.wfile.write(b"0\r\n\r\n")

    def _json(self, value, status: int = 200, **headers: str) -> None:
        self._send(json.dumps(value).encode(), status, Content_Type="application/json", **headers)

    def _send(self, data: bytes, status: int, **headers: str) -> None:
        self.send_response(status)
        for key, text in (headers | {"Content_Length": str(len(data))}).items():
            self.send_header(key.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _refuse(self, status: int, code: str, message: str, **more) -> None:
        self._json({"error": message, **more}, status, X_Error_Code=code, X_Error_Message=message)


def _entry(name: str, data: bytes) -> dict:
    entry = {"type": "file", "path": name, "size": len(data), "oid": git_sha1(data)}
    if name.endswith(LFS):
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return entry


_KIND = r"(?:models|datasets)"
_REPO = r"(?P<repo>[^/]+/[^/]+)"
_ROUTES = (
    (rf"GET /api/{_KIND}/{_REPO}/revision/(?P<revision>.+)", _Handler._revision),
    (rf"GET /api/{_KIND}/{_REPO}/tree/(?P<revision>[^/]+)", _Handler._tree),
    (rf"(?:GET|HEAD) /(?:datasets/)?{_REPO}/resolve/(?P<revision>[^/]+)/(?P<name>.+)", _Handler._file),
    (r"POST /api/repos/create", _Handler._create),
    (rf"POST /api/models/{_REPO}/branch/(?P<branch>.+)", _Handler._branch),
    (r"POST /api/validate-yaml", _Handler._validate),
    (rf"POST /api/models/{_REPO}/preupload/(?P<revision>.+)", _Handler._preupload),
    (r"POST /(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", _Handler._batch),
    (r"PUT /lfs/(?P<oid>\w+)", _Handler._store),
    (rf"POST /api/models/{_REPO}/commit/(?P<revision>.+)", _Handler._push),
)

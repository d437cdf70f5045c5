"""Checks of what the Hub, or a mirror in its place (`HF_ENDPOINT`), answers, before the Hub's client acts on it.

The client takes names of files in its cache from headers, reads answers of any length, and unpacks what is compressed.
So every session that it opens gets a hook. Whatever is odd in an answer ends the request with `OddAnswer`.
"""

import contextlib
import functools
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urljoin, urlsplit

from dalle_mini.errors import UserError
from dalle_mini.runtime.limits import exceeded, limits

ETAGS, COMMIT = ("etag", "x-linked-etag"), "x-repo-commit"
SIZES = ("content-length", "x-linked-size")
TRIES = 8  # times a file's size may arrive, for downloads that break off and begin again

_ETAG = re.compile(r"[0-9A-Za-z][\w.+=-]{0,200}", re.ASCII)
_COMMIT = re.compile(r"[0-9A-Za-z][\w-]{0,100}", re.ASCII)

# The file that a thread fetches: .urls, where it is; .size, as it was told; .left, how many bytes may still come.
_told = threading.local()


class OddAnswer(UserError):
    """The Hub, or a mirror, answered something that no client should act on."""

    def __init__(self, what: str):
        from huggingface_hub import constants

        super().__init__(f"{constants.ENDPOINT} answered {what}: name another HF_ENDPOINT, or none")


def is_commit(text: Any) -> bool:
    """Whether this can be a commit's name: the client makes a folder of it."""
    return isinstance(text, str) and bool(_COMMIT.fullmatch(text))


def is_file_name(name: Any) -> bool:
    """Whether this can be a file of a repository: a relative path that leads nowhere else, in printable characters."""
    return (
        isinstance(name, str)
        and name.isprintable()
        and "\\" not in name
        and all(part not in ("", ".", "..") and len(part.encode()) <= 255 for part in name.split("/"))
    )


@contextlib.contextmanager
def one_file() -> Iterator[None]:
    """While this thread's block fetches a file: no more bytes of it may come than the answer to HEAD told of."""
    _told.urls = set()
    try:
        yield
    finally:
        del _told.urls


def check_answers() -> None:
    """Let the client open no session, from now on, whose answers are not checked. Raises what the client raises."""
    import huggingface_hub
    from huggingface_hub.utils import _http

    if hasattr(huggingface_hub, "set_client_factory"):
        install, made = huggingface_hub.set_client_factory, _http._GLOBAL_CLIENT_FACTORY
    else:  # before 1.0, on requests
        backend = _http._GLOBAL_BACKEND_FACTORY  # type: ignore[attr-defined]  # of the older client
        install, made = huggingface_hub.configure_http_backend, backend
    if not (isinstance(made, functools.partial) and made.func is _checked):
        install(functools.partial(_checked, made))


def _checked(make: Callable[[], Any]) -> Any:
    """A session of httpx or requests, with the hook. Answers are asked for as they are, not compressed."""
    session = make()
    session.headers["Accept-Encoding"] = "identity"
    if hasattr(session, "event_hooks"):
        hooks = session.event_hooks
        session.event_hooks = hooks | {"response": [*hooks.get("response", ()), _check_httpx]}
    else:
        session.hooks["response"].append(_check_requests)
    return session


def _check_httpx(response: Any) -> None:
    most = _check(response.request.method, str(response.request.url), response.status_code, response.headers)
    stream = response.stream
    base = next(kind for kind in type(stream).__mro__ if kind.__name__ == "SyncByteStream")
    # A class of the client's own library, which is httpx or httpx2.
    body = type("Bounded", (base,), {"__iter__": lambda _: _bounded(stream, most), "close": lambda _: stream.close()})
    response.stream = body()


def _check_requests(response: Any, *_: Any, **__: Any) -> None:
    most = _check(response.request.method, response.request.url, response.status_code, response.headers)
    raw, unbounded = response.raw, response.raw.stream
    raw.stream = lambda *arguments, **options: _bounded(unbounded(*arguments, **options), most)


def _bounded(chunks: Any, most: tuple[int, str] | None) -> Iterator[bytes]:
    """The chunks; raises OddAnswer where there are more bytes than `most`. None: than the file has that was told of."""
    got = 0
    for chunk in chunks:
        got += len(chunk)
        if most is not None and got > most[0]:
            raise OddAnswer(f"with more than {most[0]} bytes ({exceeded(most[1])})")
        if most is None:
            _told.left -= len(chunk)
            if got > _told.size or _told.left < 0:
                raise OddAnswer(f"with more than the {_told.size} bytes that it had announced")
        yield chunk


def _check(method: str, url: str, status: int, headers: Any) -> tuple[int, str] | None:
    """How many bytes the body may have, and by which limit. Raises OddAnswer."""
    if COMMIT in headers and not is_commit(headers[COMMIT]):
        raise OddAnswer(f"with the commit {headers[COMMIT]!r:.80}")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise OddAnswer("with compressed data, which it was not asked for")
    sizes = {name: _size(name, headers[name]) for name in SIZES if name in headers}
    there = headers.get("location")
    if there is not None:
        there = urljoin(url, there)
        if urlsplit(there).scheme not in ("http", "https"):
            raise OddAnswer(f"with a way to {there!r:.80}")
    if method == "HEAD":
        _check_etags(headers)
        size = sizes.get("x-linked-size", sizes.get("content-length") if status == 200 else None)
        if size is not None and hasattr(_told, "urls"):
            _told.urls, _told.size, _told.left = {url, there}, size, TRIES * size
        return 0, "download_bytes"
    if status >= 400 or "/api/" in urlsplit(url).path:
        return limits().json_bytes, "json_bytes"
    if url not in getattr(_told, "urls", ()):
        return limits().download_bytes, "download_bytes"
    _told.urls.add(there)
    return None


def _check_etags(headers: Any) -> None:
    for name in ETAGS:
        if name in headers and not _ETAG.fullmatch(headers[name].removeprefix("W/").strip('"')):
            raise OddAnswer(f"with the ETag {headers[name]!r:.80}")


def _size(name: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise OddAnswer(f"with the {name} {text!r:.80}")
    if int(text) > limits().download_bytes:
        raise OddAnswer(f"with a file of {text} bytes ({exceeded('download_bytes')})")
    return int(text)

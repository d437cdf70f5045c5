"""The guard before all routes: keys, limits, headers, numbers and the log."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import re
import time
from collections import OrderedDict
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dalle_mini.serving.metrics import Metrics
from dalle_mini.serving.problems import Problem
from dalle_mini.serving.settings import ServerSettings

logger = logging.getLogger("dalle_mini.serving")
OPEN = ("/healthz", "/readyz", "/openapi.json")  # without a key, and without counting
SIGNED = re.compile(r"/jobs/[^/]+/images/[0-9]+\.png")  # may be asked for with a signature, which its route checks
MOST_CLIENTS = 10_000  # that are remembered for a minute
SECURITY = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; font-src 'self'; "
        "connect-src 'self'; manifest-src 'self'; worker-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
}


class Guard:
    """An ASGI application around another one.

    It sets `scope["owner"]`, whose jobs a client may see, and `scope["client_name"]`, with whom it shares its turns.

    Args:
        prefixes: the beginnings of paths that need a key.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings, metrics: Metrics, prefixes: tuple[str, ...]):
        self._app, self._settings, self._metrics, self._prefixes = app, settings, metrics, prefixes
        self._security = dict(SECURITY)
        if settings.frames:
            self._security["Content-Security-Policy"] = SECURITY["Content-Security-Policy"].replace(
                "frame-ancestors 'none'", f"frame-ancestors {' '.join(settings.frames)}"
            )
            del self._security["X-Frame-Options"]
        self._keys = [key.encode() for key in settings.keys]
        self._budgets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # by client: requests left, and when

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        clock, status = time.monotonic(), 499  # as nginx calls a client that has gone
        root = scope.get("root_path", "")
        if root and scope["path"].startswith(f"{root}{root}/"):  # a proxy that leaves its prefix on
            scope["path"] = scope["path"].removeprefix(root)

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in self._security.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            try:
                self._admit(scope)
                receive = self._counted(scope, receive)
            except Problem as problem:
                await problem.response(scope, receive, sent)
            else:
                await self._app(scope, receive, sent)
        finally:
            self._note(scope, status, time.monotonic() - clock)

    def _admit(self, scope: Scope) -> None:
        """Set owner and client. Raises Problem where the request is refused."""
        headers = Headers(scope=scope)
        scope["owner"], scope["client_name"] = "", _address(scope)
        if not self._settings.answers_to(headers.get("host", "")):
            raise Problem(403, "this server does not answer to that name (--allow-host)", code="foreign_host")
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        is_open = path in OPEN or not path.startswith(self._prefixes)
        key = headers.get("authorization", "")
        key = key[7:].strip() if key[:7].lower() == "bearer " else ""
        if self._keys:
            # All of them are compared, so that the time tells nothing.
            found = [hmac.compare_digest(known, key.encode("utf-8", "replace")) for known in self._keys]
            if any(found):
                scope["owner"] = scope["client_name"] = f"key {hashlib.sha256(key.encode()).hexdigest()[:16]}"
            elif not is_open and not (SIGNED.fullmatch(path) and b"sign=" in scope["query_string"]):
                self._count(scope["client_name"])  # so that nobody tries many keys
                raise Problem(401, "give an API key of this server: Authorization: Bearer KEY")
        if not is_open:
            self._count(scope["client_name"])
        if scope["method"] not in ("GET", "HEAD", "OPTIONS"):
            self._check_origin(headers)

    def _check_origin(self, headers: Headers) -> None:
        """Refuse what a page of another site sends without being asked to: a browser names the page's origin."""
        origin = headers.get("origin")
        if origin is None or "*" in self._settings.origins or origin in self._settings.origins:
            return
        try:
            is_own = urlsplit(origin).netloc == headers.get("host")
        except ValueError:
            is_own = False
        if not is_own:
            raise Problem(403, "pages of other sites may not call this server (--cors)", code="foreign_origin")

    def _count(self, client: str) -> None:
        """One request more of a client. Raises Problem beyond so many a minute."""
        most = self._settings.per_minute
        if not most:
            return
        now = time.monotonic()
        left, when = self._budgets.pop(client, (float(most), now))
        left = min(most, left + (now - when) * most / 60)
        if left < 1:
            self._budgets[client] = left, now
            raise Problem(429, f"more than {most} requests a minute", wait=(1 - left) * 60 / most)
        self._budgets[client] = left - 1, now
        if len(self._budgets) > MOST_CLIENTS:
            self._budgets.popitem(last=False)

    def _counted(self, scope: Scope, receive: Receive) -> Receive:
        """A body of at most so many bytes. Raises Problem beyond, at once where its length is told."""
        most, seen = self._settings.body_bytes, 0
        told = Headers(scope=scope).get("content-length", "0")
        refused = Problem(413, f"the request has more than {most} bytes")
        if not (told.isdecimal() and len(told) < 19):
            raise Problem(400, "Content-Length is no number")
        if int(told) > most:
            raise refused

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > most:
                raise refused
            return message

        return counted

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("endpoint"), "__name__", "page")
        self._metrics.requests.labels(route, str(status)).inc()
        if route in ("healthz", "readyz", "metrics"):
            return
        fields = {"method": scope["method"], "route": route, "status": status, "seconds": round(seconds, 3)}
        logger.info("request", extra={"fields": fields | {"client": scope.get("client_name")}})


def _address(scope: Scope) -> str:
    """The client's address; of IPv6 the network, of which a client has many addresses."""
    host = (scope.get("client") or ("unknown", 0))[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host[:60]
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is None:
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)

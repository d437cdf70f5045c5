"""The common part of the routes: bodies with limits, server-sent events, and clients that hang up."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import os
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from dalle_mini.errors import UserError
from dalle_mini.runtime import files
from dalle_mini.runtime.parsing import ParseError, parse_json
from dalle_mini.serving.problems import Problem

T = TypeVar("T")
BODY_SECONDS = 60.0  # in which a body must have come


async def json_object(request: Request) -> dict[str, Any]:
    """The body as a JSON object. Raises Problem."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Problem(400, "send JSON, with the header Content-Type: application/json", code="invalid_content_type")
    body = await in_time(request.body())
    try:
        value = parse_json(body)
    except (ParseError, UserError) as error:
        raise Problem(400, f"the body: {error}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise Problem(400, "the body must be a JSON object", code="invalid_json")
    return value


async def in_time(work: Awaitable[T]) -> T:
    """The callable that reads a body. Raises Problem if it takes too long."""
    try:
        return await asyncio.wait_for(work, BODY_SECONDS)
    except TimeoutError:
        raise Problem(408, f"the body did not come within {BODY_SECONDS:.0f} seconds", code="timeout") from None


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of the work. Raises ClientDisconnect, and cancels it, when the client hangs up. The body was read."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        for task in (working, watching):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task


class EventStream(Response):
    """Server-sent events. When the client hangs up, the iterator is closed at once."""

    def __init__(self, events: AsyncIterator[bytes], headers: dict[str, str] | None = None):
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"} | (headers or {}))
        self.headers["Content-Type"] = "text/event-stream; charset=utf-8"
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending() -> None:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async with contextlib.aclosing(self._events) as events:  # type: ignore[type-var]
                async for event in events:
                    await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b""})

        with contextlib.suppress(ClientDisconnect):
            await unless_gone(receive, sending())


def event(data: Any, kind: str | None = None, id: str | None = None) -> bytes:
    """An event, as it goes over the wire; JSON has no line breaks."""
    lines = [f"id: {id}"] if id else []
    lines += [f"event: {kind}"] if kind else []
    return "\n".join([*lines, f"data: {json.dumps(data, ensure_ascii=False)}", "", ""]).encode("utf-8", "replace")


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


class Signer:
    """Signs addresses of images, which then need no key for a time. The secret lies beside the images."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time):
        self._clock, file = clock, folder / "secret"
        try:
            self._secret = files.read_bytes(file, 1000)
        except OSError:
            self._secret = secrets.token_bytes(32)
            files.write_whole(file, self._secret)
            os.chmod(file, 0o600)

    def query(self, job: str, number: int, seconds: float, more: str = "") -> str:
        """The query that signs the address of an image; `more` of it is signed too."""
        until = int(self._clock() + seconds)
        return f"until={until}&sign={self._sign(job, number, until, more)}{more}"

    def allows(self, job: str, number: int, until: str, sign: str, more: str = "") -> bool:
        if not (until.isascii() and until.isdecimal() and len(until) < 15):
            return False
        right = self._sign(job, number, int(until), more)
        return hmac.compare_digest(right.encode(), sign.encode("utf-8", "replace")) and int(until) >= self._clock()

    def _sign(self, job: str, number: int, until: int, more: str) -> str:
        text = f"{job}/{number}/{until}/{more}"
        return hmac.new(self._secret, text.encode("utf-8", "replace"), hashlib.sha256).hexdigest()[:40]

"""The answer to a request that cannot be served: OpenAI's shape of errors."""

from __future__ import annotations

from starlette.responses import JSONResponse

TYPES = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}
CODES = {
    401: "invalid_api_key",
    404: "not_found",
    405: "method_not_allowed",
    410: "gone",
    413: "request_too_large",
    429: "rate_limit_exceeded",
    503: "unavailable",
}


class Problem(Exception):
    """A request that is refused, or could not be answered.

    Args:
        status: of HTTP.
        message: one line, with the way out.
        param: the field that is wrong.
        code: for programs; by default the status's own.
        wait: seconds after which to try again, for `Retry-After`.
    """

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None, wait: float | None = None
    ):
        super().__init__(message)
        self.status, self.message, self.param = status, _printable(message), param and _printable(param)
        self.code, self.wait = code or CODES.get(status, "invalid_value"), wait

    @property
    def told(self) -> dict:
        kind = TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        headers = {"Retry-After": str(max(1, round(self.wait)))} if self.wait is not None else {}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})

    @property
    def response(self) -> JSONResponse:
        return JSONResponse(self.told, self.status, self.headers)


def _printable(text: str) -> str:
    """One line without control characters, and without halves of characters, which JSON cannot hold."""
    return "".join(letter if letter.isprintable() else " " for letter in text)[:1000]

"""The process: uvicorn, the log, and a stop that loses nothing."""

from __future__ import annotations

import json
import logging
import socket
import time
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from dalle_mini.errors import UserError
from dalle_mini.runtime import console, files
from dalle_mini.serving.jobs import Jobs

STOP_SECONDS = 20  # that requests have to end when the server is asked to stop


class JsonLines(logging.Handler):
    """Writes records as lines of JSON on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        told = {"time": round(time.time(), 3), "level": record.levelname.lower(), "message": record.getMessage()}
        told |= getattr(record, "fields", {})
        if record.exc_info:
            told["traceback"] = logging.Formatter().formatException(record.exc_info)
        console.say(json.dumps(told, ensure_ascii=False, default=str))


def listening(host: str, port: int) -> socket.socket:
    """A socket at that address; port 0 is any free one.

    Raises:
        UserError: the address cannot be had.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        found = socket.socket(family, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        return found
    except OSError as error:
        raise UserError(
            f"cannot listen at {host}, port {port} ({files.reason(error)}): name another --host or --port"
        ) from None


def serve(app: Starlette, at: socket.socket, root_path: str = "") -> None:
    """Answer until SIGTERM or Ctrl-C."""
    log = logging.getLogger("dalle_mini.serving")
    log.setLevel(logging.INFO)
    for name in ("dalle_mini", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [JsonLines()], False
    config = uvicorn.Config(
        app,
        root_path=root_path,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=STOP_SECONDS,
        timeout_keep_alive=30,
        h11_max_incomplete_event_size=64 << 10,
    )
    Server(config, app.state.jobs).run([at])


class Server(uvicorn.Server):
    """A server that begins no new call from the first signal on, so that whoever waits hears of it at once."""

    def __init__(self, config: uvicorn.Config, jobs: Jobs):
        super().__init__(config)
        self._jobs = jobs

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._jobs.stop_soon()
        super().handle_exit(sig, frame)

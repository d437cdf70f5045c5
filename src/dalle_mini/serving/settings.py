"""The limits of a server, checked before anything heavy is imported."""

import dataclasses
import ipaddress
import re
from pathlib import Path
from urllib.parse import urlsplit

from dalle_mini.errors import UserError
from dalle_mini.settings import MAX_CANDIDATES, check_whole


@dataclasses.dataclass(frozen=True)
class ServerSettings:
    """The limits of a server. 0 turns `per_minute` off.

    Attributes:
        folder: of the queue and of the images.
        queue: jobs that may wait; one client may have half of them.
        pictures: candidates that a request may ask for.
        body_bytes: of a request.
        pixels: of an uploaded image.
        per_minute: requests of one key or address.
        keep_hours: for which the images of a job that has ended are kept.
        keep_bytes: of images that are kept; the oldest are deleted first.
        patience: seconds without a sign of its client, after which a job that was not asked to stay is cancelled.
        keys: API keys; without any, everybody may draw.
        origins: of other sites whose pages may call this server; "*" is all.
        hosts: names by which requests may call this server, besides this machine's own; None and "*" are any.
        frames: other sites whose pages may show this server's page in a frame.
        log_prompts: write prompts into the log.

    Raises:
        UserError: a value makes no sense; the message names the option.
    """

    folder: Path
    queue: int = 256
    pictures: int = 64
    body_bytes: int = 32 << 20
    pixels: int = 16_000_000
    per_minute: int = 600
    keep_hours: float = 24.0
    keep_bytes: int = 2 << 30
    patience: float = 60.0
    keys: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] | None = None
    frames: tuple[str, ...] = ()
    log_prompts: bool = False

    def __post_init__(self):
        check_whole("--queue", self.queue, 1, 100_000)
        check_whole("--pictures", self.pictures, 1, MAX_CANDIDATES)
        check_whole("--body-bytes", self.body_bytes, 1 << 10)
        check_whole("--pixels", self.pixels, 1)
        check_whole("--per-minute", self.per_minute, 0)
        check_whole("--keep-bytes", self.keep_bytes, 0)
        for site in self.frames:
            if not re.fullmatch(r"https?://[\w.:*-]+", site, re.ASCII):
                raise UserError(f"--frame is {site!r}: it is a site such as https://huggingface.co")
        for name in ("keep_hours", "patience"):
            if not 0 < getattr(self, name) < 1e6:
                raise UserError(f"--{name.replace('_', '-')} is {getattr(self, name)}: it must be a number above 0")

    def answers_to(self, host: str) -> bool:
        """Whether a request with this Host may come in.

        A page of a stranger can have its own name point to 127.0.0.1, and then calls the server as if it were of the
        same site (DNS rebinding). Its requests have the stranger's name as Host.
        """
        if self.hosts is None or "*" in self.hosts:
            return True
        try:
            name = (urlsplit(f"//{host}").hostname or "").removesuffix(".")
        except ValueError:
            return False
        return is_this_machine(name) or name in (one.lower() for one in self.hosts)

    @property
    def told(self) -> dict[str, float]:
        """The limits, for clients."""
        names = ("queue", "pictures", "body_bytes", "pixels", "per_minute", "keep_hours", "keep_bytes")
        return {name: getattr(self, name) for name in names}


def is_this_machine(host: str) -> bool:
    """Whether a name or an address leads to the machine that uses it, and to no other."""
    host = host.lower()
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")

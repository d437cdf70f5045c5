"""Drawers in other processes, on this machine or on others: Ray Serve starts them, and starts again what dies.

The server's process stays the one that answers HTTP and owns the queue and SQLite. Each replica is a Serve deployment
of its own, because a call, and what is told of it while it runs, must reach the same replica.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayActorError, RayTaskError

from dalle_mini.errors import UserError
from dalle_mini.serving.drawing import About, Away, Drawer, Drawn, Event, Failed, Part
from dalle_mini.settings import GenerationSettings

LIVES = 3  # replicas that a call may cost before its parts are given up
ANSWER = 5.0  # seconds that a replica has for a short question
LOADS = 3  # tries to load the model before Serve gives up
STARTING = threading.Lock()  # deployments are made by one thread at a time: Serve's own registries have no lock
ONGOING = 1000  # requests of a replica: one draws, the others are short


class Replica:
    """The deployment that Ray Serve runs: a drawer, in a thread of its own, that is asked over handles."""

    def __init__(self, make: Callable[[], Drawer]):
        self._drawer, self._thread = make(), ThreadPoolExecutor(1)  # a drawer loads and draws in one thread
        self._about = self._thread.submit(self._drawer.open).result()

    async def about(self) -> About:
        return self._about

    async def check(self, prompt: str, settings: GenerationSettings) -> tuple[GenerationSettings, int]:
        return await asyncio.to_thread(self._drawer.check, prompt, settings)

    async def unknown_words(self, prompt: str) -> list[tuple[str, tuple[str, ...]]] | None:
        return await asyncio.to_thread(self._drawer.unknown_words, prompt)

    async def drop(self, job: str) -> None:
        self._drawer.drop(job)

    async def watch(self, job: str, below: int) -> None:
        self._drawer.watch(job, below)

    async def draw(self, parts: Sequence[Part], watched: Mapping[str, int]) -> AsyncIterator[Event]:
        for job, below in watched.items():
            self._drawer.watch(job, below)
        events = iter(self._drawer.draw(parts))
        loop = asyncio.get_running_loop()
        while (event := await loop.run_in_executor(self._thread, next, events, None)) is not None:
            yield event
        for part in parts:
            self._drawer.watch(part.job, 0)


class RemoteDrawer:
    """A replica as a `Drawer`: if it dies, its calls wait for the one that takes its place, and are drawn there.

    Args:
        name: of its application in Ray Serve.
        make: makes the drawer, in the replica's process.
        gpus: of the replica.
    """

    def __init__(self, name: str, make: Callable[[], Drawer], gpus: int):
        self._name, self._make, self._gpus = name, make, gpus
        self._watched: dict[str, int] = {}
        self._left: dict[str, set[int]] = {}  # candidates of the present call that are not finished, by job
        self._handle: Any = None

    def open(self) -> About:
        with STARTING:
            deployment = serve.deployment(
                name="drawer",
                num_replicas=1,
                max_ongoing_requests=ONGOING,
                max_constructor_retry_count=LOADS,
                ray_actor_options={"num_gpus": self._gpus},
            )(Replica)
            self._handle = serve.run(deployment.bind(self._make), name=self._name, route_prefix=None)
        with _plain_errors():
            return self._handle.about.remote().result()

    def check(self, prompt: str, settings: GenerationSettings) -> tuple[GenerationSettings, int]:
        return self._asked("check", prompt, settings)

    def unknown_words(self, prompt: str) -> list[tuple[str, tuple[str, ...]]] | None:
        return self._asked("unknown_words", prompt)

    def drop(self, job: str) -> None:
        if self._left.pop(job, None) is not None:
            self._handle.drop.remote(job)

    def watch(self, job: str, below: int) -> None:
        if below:
            self._watched[job] = below
        else:
            self._watched.pop(job, None)
        if job in self._left:
            self._handle.watch.remote(job, below)

    def draw(self, parts: Sequence[Part]) -> Iterator[Event]:
        self._left = {part.job: set() for part in parts}
        for part in parts:
            self._left[part.job].update(range(part.first, part.first + part.count))
        try:
            for life in range(1, LIVES + 1):
                left = [part for part in parts if self._missing(part)]
                if not left:
                    return
                try:
                    yield from self._draw(left)
                    return
                except RayActorError:
                    logging.getLogger(__name__).warning("a replica died", extra={"fields": {"replica": self._name}})
                    if life == LIVES:
                        raise UserError(f"drawing failed: {LIVES} replicas died of it") from None
        finally:
            self._left = {}

    def _missing(self, part: Part) -> set[int]:
        """The candidates of a part that are not finished yet; none of a job that was dropped or has failed."""
        return self._left.get(part.job, set()).intersection(range(part.first, part.first + part.count))

    def _draw(self, parts: Sequence[Part]) -> Iterator[Event]:
        watched = {part.job: self._watched[part.job] for part in parts if part.job in self._watched}
        with _plain_errors():
            for event in self._handle.options(stream=True).draw.remote(parts, watched):
                if isinstance(event, Failed) and self._left.pop(event.job, None) is None:
                    continue
                if isinstance(event, Drawn):  # perhaps again, if the replica before this one died of what came next
                    left = self._left.get(event.job, set())
                    event = event._replace(pictures=[one for one in event.pictures if one.candidate in left])
                    left.difference_update(one.candidate for one in event.pictures)
                    if not event.pictures:
                        continue
                yield event

    def _asked(self, method: str, *args: Any) -> Any:
        try:
            with _plain_errors():
                return getattr(self._handle, method).remote(*args).result(timeout_s=ANSWER)
        except (RayActorError, TimeoutError):
            raise Away from None


@contextlib.contextmanager
def replicas(count: int, make: Callable[[], Drawer], folder: Path) -> Iterator[list[RemoteDrawer]]:
    """So many drawers in replicas of Ray Serve, which end with the context; each is started when it is opened.

    Joins the cluster of RAY_ADDRESS, or one that was joined before; else starts one on this machine. A replica takes
    one GPU, where the cluster has any.

    Args:
        make: makes the drawer in a replica's process; it can be pickled.
        folder: of the queue. After a crash, a server of the same folder replaces the replicas of the one before it.

    Raises:
        UserError: the cluster cannot be reached, or has no room for so many.
    """
    mine = not ray.is_initialized()
    if mine:
        _join()
    try:
        cluster = ray.cluster_resources()
        gpus = int(cluster.get("GPU", 0))
        room = gpus or int(cluster.get("CPU", 1))
        if count > room:
            raise UserError(f"--replicas is {count}, but Ray has {room} {'GPUs' if gpus else 'CPUs'}, one a replica")
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        serve.start(proxy_location="Disabled")
        prefix = "dalle-mini-" + hashlib.sha256(os.fsencode(folder.absolute())).hexdigest()[:8]
        names = [f"{prefix}-{number}" for number in range(count)]
        try:
            yield [RemoteDrawer(name, make, 1 if gpus else 0) for name in names]
        finally:
            for name in names:
                serve.delete(name, _blocking=False)
    finally:
        if mine:
            ray.shutdown()


def _join() -> None:
    """Join or start a cluster, whose signals and statistics stay off: a stop is the server's affair."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    stop = signal.getsignal(signal.SIGTERM)
    dashboard = None if os.environ.get("RAY_ADDRESS") else False
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=dashboard)
    except Exception as error:  # Ray raises bare ones
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"Ray cannot be reached or started ({reason}): see RAY_ADDRESS") from None
    with contextlib.suppress(ValueError):  # in a thread, where Ray sets no handler either
        signal.signal(signal.SIGTERM, stop)


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """An exception of a replica, as if it had been raised here."""
    try:
        yield
    except RayTaskError as error:
        raise error.cause from error

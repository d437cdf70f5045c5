"""Jobs from the request to the last image: the one owner of the queue.

All of it runs in the event loop's thread. Each drawer has a thread of its own, which asks for the next parts and hands
the events back. So nothing here needs a lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from dalle_mini.errors import UserError
from dalle_mini.serving.drawing import About, Away, Drawer, Drawn, Event, Failed, Part, Partial, Progress
from dalle_mini.serving.fair import FairQueue, Waiting
from dalle_mini.serving.job import Job, png_of
from dalle_mini.serving.metrics import Metrics
from dalle_mini.serving.orders import Order
from dalle_mini.serving.problems import Problem
from dalle_mini.serving.settings import ServerSettings
from dalle_mini.serving.store import Image, Record, Store
from dalle_mini.serving.threads import DrawingThread
from dalle_mini.serving.watching import EventLog

T = TypeVar("T")
logger = logging.getLogger("dalle_mini.serving")
SMOOTH = 0.2  # weight of the newest call in the seconds that an image takes
LOOK_AROUND = 1.0  # seconds from one look for clients that have vanished to the next
EACH = 16  # images of a job that are drawn before it is another one's turn
TRIES = 12  # to have an answer of a drawer
CLEAN_UP = 60.0  # seconds from one look for old images to the next


class Jobs:
    """The queue, and what became of it.

    Args:
        drawers: one, or several that draw side by side; a thread is made for each.
    """

    def __init__(self, drawers: Sequence[Drawer], store: Store, settings: ServerSettings, metrics: Metrics):
        self._drawers, self.store, self.settings, self.metrics = drawers, store, settings, metrics
        self._open, self._broken = deque[Drawer](), 0  # drawers that are ready, and how many cannot be
        self.about: About | None = None
        self.failure: str | None = None  # why the model could not be loaded
        self._queue, self._jobs = FairQueue(), dict[str, Job]()
        self._seconds: float | None = None  # that an image takes
        self._drawing: dict[int, list[Job]] = {}  # by drawer
        self._stops = False
        self._tasks: set[asyncio.Task] = set()

    # --- begin and end

    async def start(self) -> None:
        self._loop, self._news = asyncio.get_running_loop(), asyncio.Condition()
        for record in self.store.unfinished():
            self._resume(record)
        self._threads = [DrawingThread(number, one, self, self._loop) for number, one in enumerate(self._drawers)]
        for thread in self._threads:
            thread.start()
        self._spawn(self._look_after())

    def stop_soon(self) -> None:
        """Begin no new call, from a handler of a signal; watchers are sent away when the present ones are over."""
        with contextlib.suppress(AttributeError, RuntimeError):  # not begun yet, or over
            self._loop.call_soon_threadsafe(lambda: self._spawn(self._end_calls()))

    async def stop(self) -> None:
        """Finish the calls that are being drawn, whose images are kept; what waits is drawn after the next start."""
        await self._end_calls()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _end_calls(self) -> None:
        self._stops = True
        await self._wake()
        for thread in self._threads:
            await asyncio.to_thread(thread.join, 120)
        for job in self._jobs.values():
            job.log.end()

    @property
    def is_ready(self) -> bool:
        return self.about is not None and not self._stops

    def need(self) -> About:
        """The model that draws. Raises Problem while it is not ready."""
        if self.failure is not None:
            raise Problem(503, f"the model could not be loaded: {self.failure}", code="not_ready")
        if self.about is None or self._stops:
            doing = "stops" if self._stops else "loads its model"
            raise Problem(503, f"the server {doing}: try again in a moment", code="not_ready", wait=5)
        return self.about

    def check(self, order: Order) -> Order:
        """The order with the model's own settings. It takes a while. Raises Problem."""
        try:
            settings, words = self._ask(lambda drawer: drawer.check(order.prompt, order.settings))
            return dataclasses.replace(order, settings=settings, text_tokens=words)
        except UserError as error:
            raise Problem(400, str(error), "prompt") from None

    def unknown_words(self, prompt: str) -> list[tuple[str, tuple[str, ...]]] | None:
        return self._ask(lambda drawer: drawer.unknown_words(prompt))

    def _ask(self, question: Callable[[Drawer], T]) -> T:
        """The answer of a drawer that is ready: of the next one where one is away. Raises Problem if all are."""
        for _ in range(TRIES):
            drawer = self._open[0]
            try:
                return question(drawer)
            except Away:
                self._open.rotate(-1)
        raise Problem(503, "the model does not answer: try again in a moment", code="not_ready", wait=5)

    # --- what clients ask for

    async def submit(self, order: Order, owner: str, client: str) -> Job:
        """Accept a job. It is on disk when this returns. Raises Problem."""
        self.need()
        waiting = sum(job.state == "queued" for job in self._jobs.values())
        own = sum(job.state == "queued" and job.record.client == client for job in self._jobs.values())
        if waiting >= self.settings.queue or own >= max(1, self.settings.queue // 2):
            what = "the queue is full" if waiting >= self.settings.queue else "too many jobs of yours wait"
            raise Problem(429, f"{what}: try again later", code="queue_full", wait=self._wait() or 10)
        id = secrets.token_urlsafe(18)
        record = Record(id, owner, client, time.time(), "queued", order, None, None, None)
        job = self._enter(record, [(order.first, order.first + order.settings.candidates)])
        try:
            await asyncio.to_thread(self.store.add, id, owner, client, order)
        except BaseException:
            del self._jobs[id]
            raise
        if not job.is_over:  # it may have been cancelled meanwhile
            self._enqueue(job, [(order.first, order.first + order.settings.candidates)])
        self.metrics.accepted.inc()
        return job

    def find(self, id: str, owner: str) -> Job | Record:
        """A job that lives, or its record. Raises Problem where the owner has no such job."""
        job = self._jobs.get(id)
        record = job.record if job is not None else self.store.find(id) if len(id) <= 100 else None
        if record is None or not secrets.compare_digest(record.owner, owner):
            raise Problem(404, "there is no such job")
        if record.state == "deleted":
            raise Problem(410, "the images of this job have been deleted: draw it again")
        if job is None:
            return record
        job.seen = time.monotonic()
        return job

    async def cancel(self, job: Job) -> None:
        """Cancel this job alone."""
        if not job.is_over:
            await self._end(job, "cancelled")

    async def delete(self, record: Record) -> None:
        self._jobs.pop(record.id, None)
        await asyncio.to_thread(self.store.end, record.id, "deleted")

    @contextlib.contextmanager
    def watching(self, job: Job, candidates: int) -> Iterator[None]:
        """While somebody watches a job: it is not given up, and its first candidates have partial images."""
        job.watchers += 1
        if job.state == "queued":
            self._tell_state(job, self._queue.order())
        if candidates and not job.is_over:
            for drawer in self._drawers:
                drawer.watch(job.id, job.record.order.first + candidates)
        try:
            yield
        finally:
            job.watchers -= 1
            job.seen = time.monotonic()
            if not job.watchers and not job.is_over:
                self._unwatch(job)
            if not job.watchers and job.is_over:
                self._jobs.pop(job.id, None)

    def stand(self, job: Job, order: Sequence[str] | None = None) -> dict[str, Any]:
        """The place in the queue, and an estimate of the seconds left; `order` is the queue's, if it is known."""
        if job.is_over:
            return {"place": None, "seconds_left": None}
        order = self._queue.order() if order is None else order
        place = None
        images: float = job.missing
        if job.state == "queued":
            place = order.index(job.id) + 1 if job.id in order else len(order) + 1
            before = [self._jobs[id] for id in order[: place - 1]]
            drawn = [one for jobs in self._drawing.values() for one in jobs]
            images += sum(min(one.missing, job.missing + EACH) for one in (*before, *drawn))
        elif job.total:
            images -= job.now * job.record.order.settings.candidates / job.total
        seconds = None if self._seconds is None else round(images * self._seconds / len(self._drawers), 1)
        return {"place": place, "seconds_left": seconds}

    # --- the queue

    def _enter(self, record: Record, left: list[tuple[int, int]]) -> Job:
        length = self.about.image_length if self.about else 0
        total = length * record.order.settings.candidates
        job = Job(record, EventLog(), total=total, seen=time.monotonic())
        job.missing = sum(stop - start for start, stop in left)
        self._jobs[record.id] = job
        return job

    def _enqueue(self, job: Job, left: list[tuple[int, int]]) -> None:
        order = job.record.order
        waiting = Waiting(job.id, job.record.client, order.prompt, order.settings, order.start, left)
        self._queue.add(waiting)
        self._spawn(self._wake())

    def _resume(self, record: Record) -> None:
        """A job of an earlier run of the server: what is on disk is not drawn again."""
        order = record.order
        finished = self.store.images(record.id)
        have = {image.candidate for image in finished}
        wanted = range(order.first, order.first + order.settings.candidates)
        left: list[tuple[int, int]] = []
        for number in wanted:
            if number not in have:
                if left and left[-1][1] == number:
                    left[-1] = (left[-1][0], number + 1)
                else:
                    left.append((number, number + 1))
        job = self._enter(dataclasses.replace(record, state="queued"), left)
        if left:
            job.tell_finished(finished)
            self._enqueue(job, left)
        else:
            self._spawn(self._finish(job))

    async def _wake(self) -> None:
        async with self._news:
            self._news.notify_all()

    async def next_parts(self, drawer: int) -> list[Part] | None:
        """The parts of a drawer's next call; None when the server stops. It waits until there are any."""
        assert self.about is not None
        async with self._news:
            while not self._stops:
                if parts := self._queue.take(self.about.batch_size):
                    break
                await self._news.wait()
            else:
                return None
        jobs = [self._jobs[part.job] for part in parts]
        self._drawing[drawer] = jobs
        for job, part in zip(jobs, parts, strict=True):
            job.flying += part.count
            if job.state == "queued":
                job.state, job.begun = "running", time.monotonic()
                self.metrics.waited.observe(time.time() - job.record.created)
                self._tell_state(job)
        self._tell_places()
        return parts

    # --- what a drawer's thread tells

    def opened(self, drawer: int, about: About) -> None:
        self._open.append(self._drawers[drawer])
        self.about = self.about or about
        for job in self._jobs.values():
            job.total = about.image_length * job.record.order.settings.candidates
        logger.info("ready", extra={"fields": {"model": about.model, "weights": about.weights}})

    def broke(self, message: str) -> None:
        self._broken += 1
        if self._broken == len(self._drawers):
            self.failure = message
        logger.error("the model could not be loaded", extra={"fields": {"error": message}})

    def noticed(self, event: Event, parts: Sequence[Part]) -> None:
        if isinstance(event, Progress):
            for job in self._alive(parts):
                mine = sum(part.count for part in parts if part.job == job.id)
                job.now = event.done * mine
                job.log.tell("progress", {"done": job.passes, "total": job.total})
        elif isinstance(event, Partial):
            if (watched := self._jobs.get(event.job)) is not None and not watched.is_over and watched.watchers:
                watched.log.tell("partial", event, event.candidate)
        elif isinstance(event, Failed) and event.job in self._jobs:
            self._spawn(self._end(self._jobs[event.job], "failed", event.message))

    async def keep(self, drawn: Drawn) -> None:
        """Keep what was drawn of a part, and see whether its job is whole."""
        job = self._jobs.get(drawn.job)
        if job is None or job.is_over:
            return
        try:
            images = await asyncio.to_thread(self._write, job.record, drawn)
        except Problem as problem:
            await self._end(job, "failed", problem.message)
            return
        except Exception as error:
            logger.error("images could not be kept", exc_info=error)
            await self._end(job, "failed", "the images could not be kept: the server's log has the reason")
            return
        if job.is_over:  # cancelled meanwhile
            await asyncio.to_thread(self.store.end, job.id, job.state, job.error)
            return
        job.record = dataclasses.replace(job.record, kept=drawn.kept)
        job.missing -= len(drawn.pictures)
        job.now = max(0, job.now - len(drawn.pictures) * job.each)
        self.metrics.images.inc(len(drawn.pictures))
        if job.missing:
            job.tell_finished(images)
        else:
            await self._finish(job)

    async def call_ended(self, drawer: int, parts: Sequence[Part], seconds: float, problem: str | None) -> None:
        self._drawing.pop(drawer, None)
        count = sum(part.count for part in parts)
        self.metrics.calls.observe(seconds)
        if problem is None:
            pace = seconds / count
            self._seconds = pace if self._seconds is None else (1 - SMOOTH) * self._seconds + SMOOTH * pace
        for part in parts:
            job = self._jobs.get(part.job)
            if job is None:
                continue
            job.flying -= part.count
            job.now = 0
            if problem is not None and not job.is_over:
                await self._end(job, "failed", problem)

    def _write(self, record: Record, drawn: Drawn) -> list[Image]:
        assert self.about is not None
        images = [
            (Image(one.candidate, None, one.score, one.tokens), png_of(record.order, one, drawn.kept, self.about))
            for one in drawn.pictures
        ]
        self.store.add_images(record.id, images, drawn.kept)
        return [image for image, _ in images]

    # --- the end of a job

    async def _finish(self, job: Job) -> None:
        try:
            job.images = await asyncio.to_thread(self.store.finish, job.id, job.record.order.settings.keep or 1)
        except Problem as problem:
            await self._end(job, "failed", problem.message)
            return
        if job.is_over:  # cancelled meanwhile
            await asyncio.to_thread(self.store.end, job.id, job.state, job.error)
            return
        job.state = "done"
        self._over(job)

    async def _end(self, job: Job, state: str, error: str | None = None) -> None:
        if job.is_over:
            return
        job.state, job.error = state, error
        self._queue.remove(job.id)
        self._tell_places()
        for number, jobs in self._drawing.items():
            if any(one is job for one in jobs):
                self._drawers[number].drop(job.id)
        self._over(job)
        with contextlib.suppress(Problem):  # after a restart it is drawn again, if the disk stays full
            await asyncio.to_thread(self.store.end, job.id, state, error)

    def _over(self, job: Job) -> None:
        self._unwatch(job)
        job.log.forget("partial")
        job.log.forget("finished")
        job.finished.clear()
        job.record = dataclasses.replace(job.record, state=job.state, error=job.error, ended=time.time())
        self._tell_state(job)
        for image in job.images:
            job.log.tell("image", image, image.number)
        job.log.tell("done", job)
        job.log.end()
        self.metrics.ended.labels(job.state).inc()
        fields: dict[str, Any] = {"job": job.id[:8], "state": job.state}
        fields |= {"seconds": round(time.time() - job.record.created, 3)}
        fields |= {"candidates": job.record.order.settings.candidates}
        if self.settings.log_prompts:
            fields["prompt"] = job.record.order.prompt
        if job.error:
            fields["error"] = job.error
        logger.info("job ended", extra={"fields": fields})
        if not job.watchers:
            self._loop.call_later(5, self._jobs.pop, job.id, None)

    def _unwatch(self, job: Job) -> None:
        for drawer in self._drawers:
            drawer.watch(job.id, 0)

    def _tell_state(self, job: Job, order: Sequence[str] | None = None) -> None:
        told = {"state": job.state, **self.stand(job, order), "error": job.error}
        if job.state != "queued":
            job.log.forget("state", "queued")
        job.log.tell("state", told, job.state)

    def _tell_places(self) -> None:
        """The queue has moved: tell those who watch a job that waits."""
        order = self._queue.order()
        for id in order:
            if self._jobs[id].watchers and self._jobs[id].state == "queued":
                self._tell_state(self._jobs[id], order)

    def _alive(self, parts: Sequence[Part]) -> list[Job]:
        found = {part.job: self._jobs.get(part.job) for part in parts}
        return [job for job in found.values() if job is not None and not job.is_over]

    async def _look_after(self) -> None:
        """Give up the jobs of clients that have vanished, and delete old images, again and again."""
        cleaned = -CLEAN_UP
        while True:
            await asyncio.sleep(LOOK_AROUND)
            now = time.monotonic()
            for job in list(self._jobs.values()):
                is_left = not job.watchers and not job.record.order.stay and not job.is_over
                if is_left and now - job.seen > self.settings.patience:
                    await self._end(job, "cancelled", "its client has vanished")
            if now - cleaned > CLEAN_UP:
                cleaned = now
                with contextlib.suppress(Problem):
                    await asyncio.to_thread(self.store.delete_old, self.settings.keep_hours, self.settings.keep_bytes)
            self.metrics.waiting.set(len(self._queue))
            self.metrics.stored.set(await asyncio.to_thread(self.store.bytes))

    def _wait(self) -> float | None:
        return None if self._seconds is None else self._seconds * self._queue.images() / 4

    def _spawn(self, coroutine) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

"""The queue and the results on disk: kill -9 loses no accepted job, and no finished image is drawn again.

    FOLDER/jobs.sqlite         jobs and what is known of their images
           images/ID/0003.png  candidate 3 of a job

A job is on disk before its client hears of it. Results are deleted after a time, or when they take too much room; a row
that says so stays for a month.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dalle_mini.errors import UserError
from dalle_mini.runtime import files
from dalle_mini.runtime.locks import Busy
from dalle_mini.runtime.private import Unsafe, make_private
from dalle_mini.serving.orders import Order, packed_start, unpacked_start
from dalle_mini.serving.problems import Problem
from dalle_mini.settings import GenerationSettings

VERSION = 1
WAITING, ENDED = ("queued", "running"), ("done", "failed", "cancelled")
TRACE_DAYS = 30
TABLES = """
create table if not exists jobs (
    id text primary key, owner text not null, client text not null, created real not null, state text not null,
    asked text not null, pixels blob, error text, ended real, kept text, bytes integer not null default 0
) without rowid;
create table if not exists images (
    job text not null, candidate integer not null, number integer, score real not null, tokens blob not null,
    primary key (job, candidate)
) without rowid;
create index if not exists of_state on jobs (state, ended);
"""


@dataclasses.dataclass(frozen=True)
class Record:
    """A job as it is on disk; `state` may also be "deleted"."""

    id: str
    owner: str
    client: str
    created: float
    state: str
    order: Order
    error: str | None
    ended: float | None
    kept: tuple[int, ...] | None


@dataclasses.dataclass(frozen=True)
class Image:
    """A finished image of a job; `number` is its rank from 1, or None while others are still drawn."""

    candidate: int
    number: int | None
    score: float
    tokens: np.ndarray


def best_first(image: Image) -> tuple[float, int]:
    """Sorts images as CLIP ranks them; of equal ones the earlier candidate comes first."""
    return -image.score, image.candidate


class Store:
    """Any thread may use it; one process at a time.

    Raises:
        UserError: another server has the folder, or it cannot be written, or is of another version.
    """

    def __init__(self, folder: Path):
        self.folder, self._lock, self._held = folder, threading.RLock(), contextlib.ExitStack()
        try:
            make_private(folder)
            self._held.enter_context(files.locked(folder / "lock"))
            (folder / "images").mkdir(exist_ok=True)
            self._db = sqlite3.connect(folder / "jobs.sqlite", check_same_thread=False, isolation_level=None)
            self._db.execute("pragma journal_mode = wal")
            self._db.execute("pragma synchronous = full")
            version = self._db.execute("pragma user_version").fetchone()[0]
            if version not in (0, VERSION):
                raise UserError(f"{folder} belongs to another version of this server: name another --folder")
            self._db.executescript(TABLES)
            self._db.execute(f"pragma user_version = {VERSION}")
        except Busy:
            raise UserError(f"{folder}: another server uses this folder: name another --folder") from None
        except Unsafe as error:
            raise UserError(f"--folder: {error}") from None
        except (OSError, sqlite3.Error) as error:
            raise UserError(f"--folder {folder} cannot be used ({files.reason(error)})") from None

    def close(self) -> None:
        with self._lock:
            self._db.close()
            self._held.close()

    def image_file(self, job: str, candidate: int) -> Path:
        return self.folder / "images" / job / f"{candidate:04d}.png"

    def add(self, id: str, owner: str, client: str, order: Order) -> None:
        """Accept a job. Raises Problem where the disk is full."""
        start, pixels = (None, None) if order.start is None else packed_start(order.start)
        settings = dataclasses.asdict(order.settings)
        asked = json.dumps(
            {
                "prompt": order.prompt,
                "settings": settings,
                "first": order.first,
                "stay": order.stay,
                "start": start,
                "text_tokens": order.text_tokens,
            }
        )
        with self._writing() as db:
            db.execute(
                "insert into jobs (id, owner, client, created, state, asked, pixels) values (?, ?, ?, ?, ?, ?, ?)",
                (id, owner, client, time.time(), "queued", asked, pixels),
            )

    def add_images(self, job: str, images: Sequence[tuple[Image, bytes]], kept: tuple[int, ...] | None) -> None:
        """Keep finished images, with their files. Raises Problem where the disk is full."""
        with self._writing() as db:
            for image, png in images:
                files.write_whole(self.image_file(job, image.candidate), png, sync=False)
            db.execute("begin")
            db.executemany(
                "insert or replace into images (job, candidate, score, tokens) values (?, ?, ?, ?)",
                [(job, image.candidate, image.score, image.tokens.astype("<i4").tobytes()) for image, _ in images],
            )
            if kept is not None:
                db.execute("update jobs set kept = ? where id = ?", (json.dumps(kept), job))
            db.execute("commit")

    def finish(self, job: str, keep: int) -> list[Image]:
        """Rank a job's images, keep the best, and delete the others."""
        ranked = sorted(self.images(job), key=best_first)
        with self._writing() as db:
            size = sum(self.image_file(job, one.candidate).stat().st_size for one in ranked[:keep])
            db.execute("begin")
            for number, one in enumerate(ranked[:keep], 1):
                db.execute("update images set number = ? where job = ? and candidate = ?", (number, job, one.candidate))
            db.execute("delete from images where job = ? and number is null", (job,))
            db.execute(
                "update jobs set state = 'done', ended = ?, bytes = ?, pixels = null where id = ?",
                (time.time(), size, job),
            )
            db.execute("commit")
        for one in ranked[keep:]:
            self.image_file(job, one.candidate).unlink(missing_ok=True)
        return [dataclasses.replace(one, number=number) for number, one in enumerate(ranked[:keep], 1)]

    def end(self, job: str, state: str, error: str | None = None) -> None:
        """A job failed, was cancelled, or its images are deleted."""
        with self._writing() as db:
            db.execute(
                "update jobs set state = ?, error = ?, ended = ?, bytes = 0, pixels = null where id = ?",
                (state, error, time.time(), job),
            )
            db.execute("delete from images where job = ?", (job,))
        shutil.rmtree(self.image_file(job, 0).parent, ignore_errors=True)

    def find(self, job: str) -> Record | None:
        with self._lock:
            return next(self._records("id = ?", (job,)), None)

    def unfinished(self) -> list[Record]:
        """The jobs that were accepted and have not ended, in order."""
        with self._lock:
            return list(self._records("state in ('queued', 'running') order by created, id", ()))

    def images(self, job: str) -> list[Image]:
        """A job's images, the best first. After a kill some files may lack their rows, and no row its file."""
        with self._lock:
            rows = self._db.execute(
                "select candidate, number, score, tokens from images where job = ? order by number, candidate", (job,)
            ).fetchall()
        return [Image(row[0], row[1], row[2], np.frombuffer(row[3], "<i4")) for row in rows]

    def delete_old(self, hours: float, most_bytes: int) -> int:
        """Delete the images that were kept for long enough, and the oldest beyond so many bytes; how many jobs had."""
        old, room = time.time() - hours * 3600, most_bytes
        with self._lock:
            ended = self._db.execute(
                "select id, ended, bytes from jobs where state in ('done', 'failed', 'cancelled') order by ended desc"
            ).fetchall()
        gone = []
        for job, when, size in ended:
            room -= size
            if when < old or (room < 0 and size):
                gone.append(job)
        for job in gone:
            self.end(job, "deleted")
        with contextlib.suppress(Problem), self._writing() as db:
            trace = time.time() - TRACE_DAYS * 24 * 3600
            db.execute("delete from jobs where state = 'deleted' and ended < ?", (trace,))
        return len(gone)

    def bytes(self) -> int:
        """The size of all images that are kept."""
        with self._lock:
            return self._db.execute("select coalesce(sum(bytes), 0) from jobs").fetchone()[0]

    def _records(self, where: str, values: tuple) -> Iterator[Record]:
        rows = self._db.execute(
            "select id, owner, client, created, state, asked, pixels, error, ended, kept from jobs where " + where,
            values,
        ).fetchall()
        for id, owner, client, created, state, asked, pixels, error, ended, kept in rows:
            told: dict[str, Any] = json.loads(asked)
            if told["start"] is not None and kept is not None:
                told["start"]["tokens"], pixels = json.loads(kept), None  # the pixels are not needed any more
            start = None if told["start"] is None else unpacked_start(told["start"], pixels)
            settings = GenerationSettings(**told["settings"])
            order = Order(told["prompt"], settings, told["first"], told["stay"], start, told["text_tokens"])
            yield Record(
                id,
                owner,
                client,
                created,
                state,
                order,
                error,
                ended,
                None if kept is None else tuple(json.loads(kept)),
            )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                yield self._db
            except (sqlite3.Error, OSError, UserError) as error:
                if self._db.in_transaction:
                    with contextlib.suppress(sqlite3.Error):
                        self._db.execute("rollback")
                reason = files.reason(error).removeprefix(f"{self.folder}/")
                raise Problem(
                    503, f"the server cannot write to its disk ({reason})", code="disk_full", wait=60
                ) from None

"""Processes that read parts and decode their pictures, into memory that they share with the process of the VQGAN.

Each has a few batches of shared memory. It fills one after the other and says so through its pipe; what goes through
the pipe is keys, captions and sizes, never a picture. When the VQGAN is done with a batch its memory is filled again,
so that a fast reader waits and memory stays what it is.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import threading
import traceback
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import numpy as np

from dalle_mini.data.encode.crops import Block, Cropper, blocks
from dalle_mini.data.sources.example import Part
from dalle_mini.errors import UserError
from dalle_mini.runtime.memory import shortage, told

BATCHES = 3  # of shared memory for a process: one is filled, the others are with the VQGAN or on their way
PATIENCE = 0.02  # seconds
AHEAD = 2  # parts that a process is told of: it begins the next one without asking
MOST_DEATHS = 3  # of a process at one place: the next time its picture is skipped, then the run ends


class ReadingFailed(Exception):
    """A source raised something unexpected; the traceback is that of its process."""


@dataclass
class Reader:
    """One process, as its parent knows it."""

    process: BaseProcess
    connection: Connection
    memory: np.ndarray  # uint8 [BATCHES, batch_size, S, S, 3]
    place: ctypes.c_int64  # position of the example it is at
    parts: deque[int] = field(default_factory=deque)  # numbers of those it was given, the first being read

    def tell(self, *message) -> None:
        if not self.connection.closed:
            with contextlib.suppress(OSError):  # it died: that shows when it is read from
                self.connection.send(message)


class Read(NamedTuple):
    """A block of part `number`, or its end (None), and the reader whose shared memory holds it."""

    number: int
    block: Block | None
    reader: Reader | None = None
    batch: int = -1

    def free(self) -> None:
        """Give the memory back: it is filled anew at once."""
        if self.reader is not None and self.batch >= 0:
            self.reader.tell("free", self.batch)


class Restart(NamedTuple):
    """A process died: all that was read of part `number` comes again."""

    number: int


class Readers:
    """The processes. Iterate to get what they read; of one part in order, of different parts in any.

    None comes where there is nothing yet: they may be waiting for memory that the one who iterates holds.
    """

    def __init__(
        self, parts: Sequence[tuple[int, Part]], preparation: Cropper, batch_size: int, processes: int
    ) -> None:
        self._preparation, self._batch_size = preparation, batch_size
        self._parts, self._todo = dict(parts), deque(number for number, _ in parts)
        self._deaths: Counter[tuple[int, int]] = Counter()
        self._skip: dict[int, set[int]] = {}
        self._processes = min(processes, len(parts))
        self._readers: list[Reader] = []

    def __enter__(self) -> Readers:
        self._readers = [self._start() for _ in range(self._processes)]
        for _ in range(AHEAD):  # in turn, so that few parts are spread over all
            for reader in self._readers:
                self._give(reader)
        return self

    def __exit__(self, *_) -> None:
        for reader in self._readers:
            reader.process.kill()
        for reader in self._readers:
            reader.process.join()
            reader.connection.close()

    def __iter__(self) -> Iterator[Read | Restart | None]:
        while any(reader.parts for reader in self._readers):
            ready = wait([reader.connection for reader in self._readers if reader.parts], PATIENCE)
            if not ready:
                yield None
            for connection in ready:
                index = next(i for i, reader in enumerate(self._readers) if reader.connection is connection)
                try:
                    message = self._readers[index].connection.recv()
                except (EOFError, OSError):
                    yield from self._replace(index)
                    break  # the list of connections is not the same any more
                yield self._read(index, *message)

    def _read(self, index: int, kind: str, number: int, *rest) -> Read:
        reader = self._readers[index]
        if kind == "failed":
            is_users, text = rest
            raise UserError(text) if is_users else ReadingFailed(text)
        if kind == "end":
            reader.parts.popleft()
            self._give(reader)
            return Read(number, None)
        batch, rows, rejected, seen = rest
        images = reader.memory[batch, : len(rows)] if rows else reader.memory[0, :0]
        return Read(number, Block(images, rows, rejected, seen), reader, batch)

    def _start(self) -> Reader:
        context, size = multiprocessing.get_context("spawn"), self._preparation.resolution
        shape = (BATCHES, self._batch_size, size, size, 3)
        memory = context.RawArray(ctypes.c_uint8, int(np.prod(shape)))  # nameless: it goes with the processes
        place = context.RawValue(ctypes.c_int64, 0)
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_work, args=(theirs, memory, place, self._preparation, self._batch_size), daemon=True
        )
        process.start()
        theirs.close()  # so that its death is the pipe's end
        return Reader(process, ours, np.frombuffer(memoryview(memory), np.uint8).reshape(shape), place)

    def _give(self, reader: Reader) -> None:
        if self._todo:
            number = self._todo.popleft()
            reader.parts.append(number)
            reader.tell("part", number, self._parts[number], frozenset(self._skip.get(number, ())))

    def _replace(self, index: int) -> Iterator[Restart]:
        """A new process for one that died. Its part is read again; twice at one place, and the picture is skipped."""
        reader = self._readers[index]
        reader.process.join()
        number, place = reader.parts[0], reader.place.value
        self._deaths[number, place] += 1
        deaths = self._deaths[number, place]
        if deaths > MOST_DEATHS or sum(self._deaths.values()) > 100 + len(self._parts):
            raise ReadingFailed(
                f"the process that reads {self._parts[number].name} died again and again at its example {place} "
                f"(exit code {reader.process.exitcode}): is there enough memory?"
            )
        if deaths == 2:
            self._skip.setdefault(number, set()).add(place)
        yield Restart(number)
        reader.connection.close()
        self._todo.extendleft(reversed(reader.parts))
        self._readers[index] = new = self._start()
        for _ in range(AHEAD):
            self._give(new)


def start_readers(
    parts: Sequence[tuple[int, Part]], preparation: Cropper, batch_size: int, processes: int
) -> contextlib.AbstractContextManager[Iterable[Read | Restart | None]]:
    """`Readers`; with no processes, this one reads."""
    if processes:
        return Readers(parts, preparation, batch_size, processes)
    return read_here(parts, preparation, batch_size)


@contextlib.contextmanager
def read_here(parts: Sequence[tuple[int, Part]], preparation: Cropper, batch_size: int) -> Iterator[Iterator[Read]]:
    """As `Readers`, but in this process: nothing to start, and one thing at a time."""
    shape = (batch_size, preparation.resolution, preparation.resolution, 3)

    def read() -> Iterator[Read]:
        for number, part in parts:
            for block in blocks(part, preparation, batch_size, lambda: np.empty(shape, np.uint8)):
                yield Read(number, block)
            yield Read(number, None)

    yield read()


def _work(connection: Connection, memory, place, preparation: Cropper, batch_size: int) -> None:
    """The process: reads the parts that it is told of, until its pipe closes."""
    for ending in (signal.SIGINT, signal.SIGHUP):  # which a terminal sends to all: the parent ends us
        signal.signal(ending, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    Worker(connection, memory, place, preparation, batch_size).run()


class Worker:
    """What a process was told, and the shared memory that it may fill."""

    def __init__(self, connection: Connection, memory, place, preparation: Cropper, batch_size: int) -> None:
        self._connection, self._place = connection, place
        self._preparation, self._batch_size = preparation, batch_size
        size = preparation.resolution
        self._batches = np.frombuffer(memory, np.uint8).reshape(-1, batch_size, size, size, 3)
        self._free = deque(range(len(self._batches)))
        self._todo: deque[list[Any]] = deque()  # number and content of each part, and the positions to skip
        self._filling = -1

    def run(self) -> None:
        number = -1
        try:
            while True:
                while not self._todo:
                    self._listen()
                number, part, skip = self._todo.popleft()
                for block in blocks(part, self._preparation, self._batch_size, self._new_batch, skip, self._at):
                    self._connection.send(("block", number, self._filling if block.rows else -1, *block[1:]))
                self._connection.send(("end", number))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            os._exit(0)  # the parent is gone
        except UserError as error:
            self._connection.send(("failed", number, True, str(error)))
        except Exception as error:
            missing = shortage(error)
            text = told(missing) if missing else traceback.format_exc()
            self._connection.send(("failed", number, bool(missing), text))

    def _listen(self) -> None:
        kind, *rest = self._connection.recv()
        if kind == "free":
            self._free.append(*rest)
        else:
            self._todo.append(rest)

    def _new_batch(self) -> np.ndarray:
        while not self._free:
            self._listen()
        self._filling = self._free.popleft()
        return self._batches[self._filling]

    def _at(self, position: int) -> None:
        self._place.value = position


def _end_with_parent() -> None:
    """The pipe's end tells it too, but not a process that waits for a slow disk or network."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # this process is a child
    parent.join()
    os._exit(0)

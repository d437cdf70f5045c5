"""Captioned images -> shards of VQGAN tokens, once, ahead of training.

The work has two passes. The first encodes every part of the source and stages it by itself (`stage.py`); any process
may do any part at any time. The second makes shards of what is staged, in one process (`finish.py`). A killed run goes
on with the parts that are not staged, and ends with the same bytes.

    OUT/.work/run.json             what this folder is for; another source, VQGAN or option is refused
              parts/000000.parquet ...   staged parts
              *.lock               held while a process is at it
    OUT/train-00000.parquet ...    see `tokens/shards.py`

`.work` goes when the manifest is written. The result is a function of source, options and VQGAN on one kind of device:
processors of different kinds may round a close call between two tokens differently.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from dalle_mini.data.encode.encoders import Weights
from dalle_mini.data.encode.finish import NothingKept, finish
from dalle_mini.data.encode.launchers import Share
from dalle_mini.data.encode.run import EncodeOptions, Run
from dalle_mini.data.encode.stage import Progress, missing_parts
from dalle_mini.data.sources.example import Source, total_size
from dalle_mini.data.tokens.shards import Manifest
from dalle_mini.errors import UserError
from dalle_mini.runtime.folders import LocalFolder, RemoteFolder, open_output
from dalle_mini.runtime.locks import Busy

ENGINES = ("local", "ray")


@dataclass(frozen=True)
class Outcome:
    """The result of a call of `encode`.

    Attributes:
        manifest: of the finished folder; None where parts are left to others.
        was_finished: the folder was finished before, and nothing was done.
        parts_left: parts that are not staged yet: other processes are at them, or have to be started.
    """

    manifest: Manifest | None
    was_finished: bool = False
    parts_left: int = 0


class Executor(Protocol):
    """Stages parts of a run, on this machine or on others."""

    def __call__(
        self, run: Run, numbers: list[int], out: str, workers: int | None, report: Callable[[int, int, int], None], /
    ) -> None:
        """Stage the parts of these numbers in the folder `out`. Parts that cannot be reached stay unstaged.

        Args:
            workers: of `encode`.
            report: is called with images read, images kept, and parts staged since the last call.
        """


def encode(
    source: Source,
    weights: Weights,
    out: str,
    options: EncodeOptions | None = None,
    *,
    engine: str = "local",
    workers: int | None = None,
    share: Share | None = None,
    progress: Callable[[str, Progress], None] = lambda stage, progress: None,
) -> Outcome:
    """Encode captioned images into the folder `out`, or go on with what is there.

    In a script, call it under `if __name__ == "__main__":`, for it starts processes that import the script.

    Args:
        source: the captioned images.
        weights: where VQGAN and CLIP come from.
        out: a local folder, or one in a bucket (`runtime/folders.py` tells the difference).
        engine: "local", or "ray" for the machines of a Ray cluster.
        workers: processes that read and decode, by default one a core, 0 for none but this; with Ray, actors, by
            default one a GPU, or two.
        share: which part of the work is this process's. The process that stages the last part makes the shards.
        progress: called with "encode" or "finish" and how far it is.

    Raises:
        UserError: `out` belongs to another run or cannot be written, another process is at it, weights are missing,
            or nothing is kept.
    """
    share = share or Share()
    execute = _executor(engine, share)
    folder = open_output(out)
    run = Run(source, weights, options or EncodeOptions())
    if (found := run.finished(folder)) is not None:
        return Outcome(found, was_finished=True)
    with _locked(folder, share):
        if (found := run.finished(folder)) is not None:  # another process finished it before the lock was ours
            return Outcome(found, was_finished=True)
        run.claim(folder)
        mine = range(share.index, len(run.parts), share.count)
        todo = [number for number in missing_parts(folder, len(run.parts)) if number in mine]
        total = total_size(run.parts[number] for number in todo)
        execute(run, todo, out, workers, _Counter(Progress(0, 0, len(mine) - len(todo), len(mine), total), progress))
        left = missing_parts(folder, len(run.parts))
        if left:
            return Outcome(None, parts_left=len(left))
        return _finish_once(run, folder, progress)


def _executor(engine: str, share: Share) -> Executor:
    if engine not in ENGINES:
        raise UserError(f"--engine is {engine!r}: it must be {' or '.join(ENGINES)}")
    if engine == "local":
        return _encode_here
    if share.count > 1:
        raise UserError(f"--engine ray shares the work itself: leave out what makes this {share.said_by or 'a shard'}")
    from dalle_mini.data.encode.ray_engine import encode_with_ray

    return encode_with_ray


def _encode_here(
    run: Run, numbers: list[int], out: str, workers: int | None, report: Callable[[int, int, int], None]
) -> None:
    if numbers:
        run.encode(numbers, open_output(out), workers, report)


@contextlib.contextmanager
def _locked(folder: LocalFolder | RemoteFolder, share: Share) -> Iterator[None]:
    """Alone in the folder, or with the other shards of an array, each of them once."""
    with contextlib.ExitStack() as locks:
        try:
            locks.enter_context(folder.lock("run", shared=share.count > 1))
            if share.count > 1:
                locks.enter_context(folder.lock(f"shard-{share.index}-of-{share.count}"))
        except Busy:
            who = f"shard {share.index} of {share.count}, or an unsharded run," if share.count > 1 else "another run"
            raise UserError(f"{folder}: {who} is at work there: wait for its end, or name another folder") from None
        yield


def _finish_once(run: Run, folder: LocalFolder | RemoteFolder, progress) -> Outcome:
    try:
        with folder.lock("finish"):
            found = run.finished(folder)  # by another shard, since we looked
            if found is None:
                found = _finish(run, folder, progress)
            folder.remove_work()
            return Outcome(found)
    except NothingKept:
        folder.remove_work()  # nothing here is in the way of other options
        raise
    except Busy:
        return Outcome(None)


def _finish(run: Run, folder: LocalFolder | RemoteFolder, progress) -> Manifest:
    try:
        return finish(folder, run.plan(), lambda done, total: progress("finish", Progress(0, 0, done, total)))
    except UserError:
        found = run.finished(folder)  # where there are no locks another may have been quicker, and tidied up
        if found is None:
            raise
        return found


class _Counter:
    """Adds up what is reported piece by piece."""

    def __init__(self, start: Progress, progress: Callable[[str, Progress], None]) -> None:
        self._now, self._progress = start, progress
        progress("encode", start)

    def __call__(self, images: int, kept: int, parts: int) -> None:
        now = self._now
        added = {"images": now.images + images, "kept": now.kept + kept, "parts_done": now.parts_done + parts}
        self._now = dataclasses.replace(now, **added)
        self._progress("encode", self._now)

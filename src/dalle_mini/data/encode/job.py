"""Pictures and captions -> shards of VQGAN tokens, once, ahead of training.

First every part of the source is encoded and staged by itself (`encode_parts.py`), by whom and when does not matter;
then one process makes shards of what is staged (`finish.py`). A run that is killed goes on with the parts that are not
staged, and ends with the same bytes.

    OUT/.work/run.json             what this folder is for; another source, VQGAN or option is refused
              parts/000000.parquet ...   staged parts
              *.lock               held while a process is at it
    OUT/train-00000.parquet ...    see `shards.py`

`.work` goes when the manifest is written. All of the result is a function of source, options and VQGAN, on one kind of
device: processors of different kinds may round a close call between two tokens differently.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dalle_mini.data.encode.crops import CENTER, Preparation, crop_count
from dalle_mini.data.encode.encoders import Networks, Weights
from dalle_mini.data.encode.filters import Filters
from dalle_mini.data.encode.finish import NothingKept, Plan, finish
from dalle_mini.data.encode.launchers import Share
from dalle_mini.data.encode.stage import Progress, encode_parts, missing_parts
from dalle_mini.data.sources.example import Source
from dalle_mini.data.sources.fingerprint import CONTENT, STAMPS
from dalle_mini.data.tokens.shards import DROPPED, MANIFEST, Manifest, TokensOf
from dalle_mini.errors import UserError, shown
from dalle_mini.models.fingerprint import clip_identity, identity
from dalle_mini.runtime.files import as_utf8
from dalle_mini.runtime.folders import WORK, Busy, LocalFolder, RemoteFolder, open_output
from dalle_mini.runtime.parsing import ParseError, convert, parse_json

if TYPE_CHECKING:
    from dalle_mini.generation.ranking import ClipRanker
    from dalle_mini.models import VQGAN

__all__ = ["EncodeOptions", "Outcome", "encode", "identity"]

RUN = f"{WORK}/run.json"
ENGINES = ("local", "ray")


@dataclass(frozen=True)
class EncodeOptions:
    """What decides, beside source and networks, what is in the shards.

    Attributes:
        filters: what is kept.
        crops: "center", or "random:N" for N random crops of each picture.
        seed: of the random crops.
        clip_scores: let CLIP judge each crop with its first caption.
        validation: share of the pictures, by a hash of their keys, that the validation split gets.
        shard_rows: rows of a shard.
        batch_size: pictures of one call of the VQGAN on one device. On a CPU 16 are quicker than more.
        quick_jpeg: decode JPEG files at 1/2, 1/4 or 1/8 where that is twice as large as is needed. Pixels differ by
            about one level from those of the original's preparation, and some of a hundred tokens.
    Raises UserError where a value makes no sense.
    """

    filters: Filters = field(default_factory=Filters)
    crops: str = CENTER
    seed: int = 0
    clip_scores: bool = False
    validation: float = 0.01
    shard_rows: int = 2**16
    batch_size: int = 16
    quick_jpeg: bool = False

    def __post_init__(self) -> None:
        crop_count(self.crops)
        if not 0 <= self.validation < 1:
            raise UserError(f"--validation is {self.validation}: it must be a share, from 0 to less than 1")
        if self.shard_rows < 1:
            raise UserError(f"--shard-rows is {self.shard_rows}: it must be at least 1")
        if self.batch_size < 1:
            raise UserError(f"--batch-size is {self.batch_size}: it must be at least 1")
        for name, most in (("seed", 2**63 - 1), ("shard_rows", 1 << 24), ("batch_size", 1 << 20)):
            if getattr(self, name) > most:
                option = "--" + name.replace("_", "-")
                raise UserError(f"{option} is {shown(getattr(self, name))}: it may be at most {most}")
        ranged = self.filters.min_clip_score is not None or self.filters.max_clip_score is not None
        if ranged and not self.clip_scores:
            raise UserError("--min-clip-score and --max-clip-score want --clip-scores (of a column: use --where)")


@dataclass(frozen=True)
class Outcome:
    """What came of a run.

    Attributes:
        manifest: of the finished folder; None where parts are left to others.
        was_finished: it was finished before, and nothing was done.
        parts_left: parts that are not staged yet: other processes are at them, or have to be started.
    """

    manifest: Manifest | None
    was_finished: bool = False
    parts_left: int = 0


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
    """Encode a pile of captioned pictures into the folder `out`, or go on with what is there.

    In a script, call it under `if __name__ == "__main__":`, for it starts processes that import the script.

    Args:
        source: the pile.
        weights: where VQGAN and CLIP come from.
        out: a local folder, or one in a bucket (`output_folder.py` tells the difference).
        engine: "local", or "ray" for the machines of a Ray cluster.
        workers: processes that read and decode, by default one a core, 0 for none but this; with Ray, actors, by
            default one a GPU, or two.
        share: which part of the work is this process's. The process that stages the last part of all makes the shards.
        progress: called with "encode" or "finish" and how far it is.
    Raises:
        UserError: `out` is of another run or cannot be written, another process is at it, weights are missing, or
            nothing is kept.
    """
    options, share = options or EncodeOptions(), share or Share()
    if engine not in ENGINES:
        raise UserError(f"--engine is {engine!r}: it must be {' or '.join(ENGINES)}")
    if engine == "ray" and share.count > 1:
        raise UserError(f"--engine ray shares the work itself: leave out what makes this {share.said_by or 'a shard'}")
    folder = open_output(out)
    run = Run(source, weights, options)
    if (found := run.finished(folder)) is not None:
        return Outcome(found, was_finished=True)
    with _locked(folder, share):
        if (found := run.finished(folder)) is not None:  # while we were looking
            return Outcome(found, was_finished=True)
        run.claim(folder)
        mine = range(share.index, len(run.parts), share.count)
        todo = [number for number in missing_parts(folder, len(run.parts)) if number in mine]
        sizes = [run.parts[number].size for number in todo]
        total = None if None in sizes else sum(sizes)
        report = _Counter(Progress(0, 0, len(mine) - len(todo), len(mine), total), progress)
        if engine == "ray":
            from dalle_mini.data.encode.ray_engine import encode_with_ray

            encode_with_ray(run, todo, out, workers, report)
        elif todo:
            run.encode(todo, folder, workers, report)
        left = missing_parts(folder, len(run.parts))
        if left:
            return Outcome(None, parts_left=len(left))
        return _finish_once(run, folder, progress)


class Run:
    """A source, networks and options: what makes a folder's content this and no other."""

    def __init__(self, source: Source, weights: Weights, options: EncodeOptions) -> None:
        self.weights, self.options = weights, options
        self.origin, self.parts = source.origin(), source.parts()  # before the networks, which take seconds to load
        if not self.parts:
            raise UserError(f"{self.origin.get('source', 'the source')}: there are no pictures in it")
        vqgan, ranker = self._models = weights.load(with_clip=options.clip_scores)
        self._networks = None
        config = vqgan.config
        self.vqgan = TokensOf(identity(vqgan), config.n_embed, config.grid**2, config.resolution, weights.vqgan)
        self.clip = None
        if ranker is not None:
            self.clip = {"identity": clip_identity(ranker.clip), "source": weights.clip}
        self.preparation = Preparation(
            config.resolution, options.filters, options.crops, options.seed, options.quick_jpeg
        )
        self.chosen = _as_read(dataclasses.asdict(options))
        if not options.quick_jpeg:
            del self.chosen["quick_jpeg"]  # folders from before there was a choice are of the same run
        identities = {"vqgan": self.vqgan.identity, "clip": self.clip and self.clip["identity"]}
        self._claim = _as_read({"source": _identifying(self.origin), "options": self.chosen, **identities})
        self._names = _hash([(part.name, part.size) for part in self.parts])

    @property
    def id(self) -> str:
        source = {name: value for name, value in self._claim["source"].items() if name != STAMPS}
        return _hash([self._claim | {"source": source}, self._names])

    def __getstate__(self) -> dict[str, Any]:
        """Without the networks: another process loads its own."""
        return self.__dict__ | {"_models": None, "_networks": None}

    def encode(self, numbers: list[int], folder: LocalFolder | RemoteFolder, workers: int | None, report) -> None:
        """Stage these parts, on the devices of this host."""
        if self._networks is None:
            self._networks = Networks(*self._load(), self.options.batch_size)
        chosen = [(number, self.parts[number]) for number in numbers]
        encode_parts(chosen, self.preparation, self._networks, folder, self.id, workers=workers, progress=report)

    def _load(self) -> tuple[VQGAN, ClipRanker | None]:
        vqgan, ranker = self._models or self.weights.load(with_clip=self.options.clip_scores)
        found = [identity(vqgan), ranker and clip_identity(ranker.clip)]
        if found != [self.vqgan.identity, self.clip and self.clip["identity"]]:
            raise UserError(f"{self.weights.vqgan} or CLIP is not the same here as where the run was started")
        return vqgan, ranker

    def plan(self) -> Plan:
        return Plan(
            run=self.id,
            parts=len(self.parts),
            vqgan=self.vqgan,
            clip=self.clip,
            source=self.origin,
            options=self.chosen,
            filters=self.options.filters,
            validation=self.options.validation,
            shard_rows=self.options.shard_rows,
        )

    def finished(self, folder: LocalFolder | RemoteFolder) -> Manifest | None:
        """The folder's manifest where this run has finished it. Raises UserError where another run has."""
        text = folder.read(MANIFEST)
        if text is None:
            return None
        try:
            manifest = Manifest.from_json(text)
        except ParseError as error:
            raise UserError(
                f"{folder}/{MANIFEST}: damaged, or of another version ({error}): name another folder"
            ) from None
        if not manifest.rows:  # of a version that took this for an end
            return None
        found = {"source": _identifying(manifest.source), "options": manifest.options, "vqgan": manifest.vqgan.identity}
        found["clip"] = manifest.clip and manifest.clip["identity"]
        self._compare(
            folder, found, f"{folder} was made of other content than the source has now", "name another folder"
        )
        return manifest

    def claim(self, folder: LocalFolder | RemoteFolder) -> None:
        """Make an unfinished folder this run's, or see that it is."""
        text = folder.read(RUN)
        if text is None:
            strangers = sorted(name for name in folder.names() if name.endswith(".parquet") and name != DROPPED)
            if strangers:
                folder.remove_work()
                raise UserError(f"{folder} holds {strangers[0]}, which no run there has made: name another folder")
            claim = json.dumps(self._claim | {"parts": self._names}, indent=2, ensure_ascii=False) + "\n"
            folder.write(RUN, as_utf8(claim))
            text = folder.read(RUN)  # two of an array may have begun at once, with different options
        try:
            found = convert(parse_json(text), dict[str, Any])
            names = found.pop("parts", None)
        except ParseError as error:
            raise UserError(f"{folder}/{RUN} is damaged ({error}): delete {folder}/{WORK}") from None
        changed, way_out = f"{folder}: the source changed since the run began", f"delete {folder}/{WORK} to begin anew"
        self._compare(folder, found, changed, way_out)
        if names != self._names:
            raise UserError(f"{changed}: {way_out}")

    def _compare(self, folder: LocalFolder | RemoteFolder, found: dict[str, Any], changed: str, way_out: str) -> None:
        old, new = _flat(found), _flat(self._claim)
        differ = {name for name in {*old, *new} if old.get(name) != new.get(name)}
        stamps = f"source.{STAMPS}"
        if stamps in differ and None in (old.get(stamps), new.get(stamps)):  # of a copy elsewhere: nothing to compare
            differ.remove(stamps)
        content = {f"source.{name}" for name in CONTENT}
        if differ and differ <= content:
            why = " (names and sizes are the same, the times of files are not: copy with `cp -a` or `rsync -a`)"
            raise UserError(f"{changed}{why if differ == {stamps} else ''}: {way_out}")
        differences = [
            f"{name} is {_short(old.get(name))} there and {_short(new.get(name))} now"
            for name in sorted(differ, key=lambda name: (name in content, name))
        ]
        if differences:
            more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
            raise UserError(f"{folder} is of another run ({'; '.join(differences[:3])}{more}): name another folder")


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

    def __call__(self, pictures: int, kept: int, parts: int) -> None:
        now = self._now
        added = {"pictures": now.pictures + pictures, "kept": now.kept + kept, "parts_done": now.parts_done + parts}
        self._now = dataclasses.replace(now, **added)
        self._progress("encode", self._now)


def _identifying(origin: dict[str, Any]) -> dict[str, Any]:
    """Without what the source was called: the same files may be called otherwise, here or on another machine."""
    return {name: value for name, value in origin.items() if name != "source"}


def _as_read(value: Any) -> Any:
    """As JSON gives it back: lists for tuples."""
    return json.loads(json.dumps(value))


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    items = [_flat(item, f"{name}.{key}" if name else str(key)) for key, item in value.items()]
    return {key: item for one in items for key, item in one.items()}


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."

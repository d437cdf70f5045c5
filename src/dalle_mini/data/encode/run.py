"""A run of `encode`: its options, what makes its result this and no other, and the claim on its folder."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dalle_mini.data.encode.crops import CENTER, Preparation, crop_count
from dalle_mini.data.encode.encoders import Networks, Weights
from dalle_mini.data.encode.filters import Filters
from dalle_mini.data.encode.finish import Plan
from dalle_mini.data.encode.stage import encode_parts
from dalle_mini.data.sources.example import Source
from dalle_mini.data.sources.fingerprint import CONTENT, STAMPS
from dalle_mini.data.tokens.shards import DROPPED, MANIFEST, Manifest, TokensOf
from dalle_mini.errors import UserError, shown
from dalle_mini.models.fingerprint import clip_fingerprint, fingerprint
from dalle_mini.runtime.files import as_utf8
from dalle_mini.runtime.folders import WORK, LocalFolder, RemoteFolder
from dalle_mini.runtime.hashing import short_hash
from dalle_mini.runtime.parsing import ParseError, convert, parse_json

if TYPE_CHECKING:
    from dalle_mini.generation.ranking import ClipRanker
    from dalle_mini.models.image_tokenizer import ImageTokenizer

RUN = f"{WORK}/run.json"


@dataclass(frozen=True)
class EncodeOptions:
    """The choices that decide, beside source and networks, what is in the shards.

    Attributes:
        filters: which examples are kept.
        crops: "center", or "random:N" for N random crops of each image.
        seed: of the random crops.
        clip_scores: let CLIP judge each crop with its first caption.
        validation: share of the images, by a hash of their keys, that the validation split gets.
        shard_rows: rows of a shard.
        batch_size: images of one call of the VQGAN on one device. On a CPU 16 are quicker than more.
        quick_jpeg: decode JPEG files at 1/2, 1/4 or 1/8 where that is twice as large as is needed. Pixels differ by
            about one level from those of the original's preparation, and some of a hundred tokens.

    Raises:
        UserError: a value makes no sense.
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
            raise UserError("--min-clip-score and --max-clip-score need --clip-scores (for a column, use --where)")


class Run:
    """A source, networks and options, which together decide a folder's content.

    Attributes:
        origin: what the source says of itself (`Source.origin`).
        parts: of the source.
        vqgan: the VQGAN that makes the tokens, as the manifest tells it.
        clip: `identity` and `source` of the CLIP that gives scores, or None.
        preparation: how an example becomes crops.
        chosen: the options, as JSON.

    Raises:
        UserError: the source has no images, or a network cannot be read.
    """

    def __init__(self, source: Source, weights: Weights, options: EncodeOptions) -> None:
        self.weights, self.options = weights, options
        self.origin, self.parts = source.origin(), source.parts()  # before the networks, which take seconds to load
        if not self.parts:
            raise UserError(f"{self.origin.get('source', 'the source')}: there are no images in it")
        vqgan, ranker = self._models = weights.load(with_clip=options.clip_scores)
        self._networks: Networks | None = None
        self.vqgan = TokensOf(fingerprint(vqgan), vqgan.codebook_size, vqgan.grid**2, vqgan.resolution, weights.vqgan)
        self.clip = None
        if ranker is not None:
            self.clip = {"identity": clip_fingerprint(ranker.clip), "source": weights.clip}
        self.preparation = Preparation(
            vqgan.resolution, options.filters, options.crops, options.seed, options.quick_jpeg
        )
        self.chosen = _as_read(dataclasses.asdict(options))
        if not options.quick_jpeg:
            del self.chosen["quick_jpeg"]  # folders from before there was a choice are of the same run
        made_by = {"vqgan": self.vqgan.identity, "clip": self.clip and self.clip["identity"]}
        self._claim = _as_read({"source": _without_name(self.origin), "options": self.chosen, **made_by})
        self._names = _hash([(part.name, part.size) for part in self.parts])

    @property
    def id(self) -> str:
        """A hash of everything that decides what is staged; a staged part carries it."""
        source = {name: value for name, value in self._claim["source"].items() if name != STAMPS}
        return _hash([self._claim | {"source": source}, self._names])

    def __getstate__(self) -> dict[str, Any]:
        """The run without its networks: another process loads its own."""
        return self.__dict__ | {"_models": None, "_networks": None}

    def encode(
        self,
        numbers: list[int],
        folder: LocalFolder | RemoteFolder,
        workers: int | None,
        report: Callable[[int, int, int], None],
    ) -> None:
        """Stage the parts of these numbers on this host's devices; `workers` and `report` as in `encode_parts`."""
        if self._networks is None:
            self._networks = Networks(*self._load(), self.options.batch_size)
        chosen = [(number, self.parts[number]) for number in numbers]
        encode_parts(chosen, self.preparation, self._networks, folder, self.id, workers=workers, progress=report)

    def _load(self) -> tuple[ImageTokenizer, ClipRanker | None]:
        vqgan, ranker = self._models or self.weights.load(with_clip=self.options.clip_scores)
        found = [fingerprint(vqgan), ranker and clip_fingerprint(ranker.clip)]
        if found != [self.vqgan.identity, self.clip and self.clip["identity"]]:
            raise UserError(f"{self.weights.vqgan} or CLIP is not the same here as where the run was started")
        return vqgan, ranker

    def plan(self) -> Plan:
        """The second pass's share of this."""
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
        """The folder's manifest where this run has finished it, else None.

        Raises:
            UserError: another run has finished it, or the manifest is damaged.
        """
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
        found = {
            "source": _without_name(manifest.source),
            "options": manifest.options,
            "vqgan": manifest.vqgan.identity,
            "clip": manifest.clip and manifest.clip["identity"],
        }
        self._compare(
            folder, found, f"{folder} was made of other content than the source has now", "name another folder"
        )
        return manifest

    def claim(self, folder: LocalFolder | RemoteFolder) -> None:
        """Make an unfinished folder this run's, or check that it is.

        Raises:
            UserError: it belongs to another run, or the source has changed.
        """
        text = folder.read(RUN)
        if text is None:
            strangers = sorted(name for name in folder.names() if name.endswith(".parquet") and name != DROPPED)
            if strangers:
                folder.remove_work()
                raise UserError(f"{folder} holds {strangers[0]}, which no run there has made: name another folder")
            claim = json.dumps(self._claim | {"parts": self._names}, indent=2, ensure_ascii=False) + "\n"
            folder.write(RUN, as_utf8(claim))
            text = folder.read(RUN)  # two of an array may have begun at once, with different options
            if text is None:  # another run has ended meanwhile, and tidied up
                raise UserError(f"{folder}/{RUN} is gone: run the same command again")
        try:
            found = convert(parse_json(text), dict[str, Any])
            names = found.pop("parts", None)
        except ParseError as error:
            raise UserError(f"{folder}/{RUN} is damaged ({error}): delete {folder}/{WORK}") from None
        changed, way_out = f"{folder}: the source changed since the run began", f"delete {folder}/{WORK} to start again"
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


def _without_name(origin: dict[str, Any]) -> dict[str, Any]:
    """An origin without the source's name: the same files may be called otherwise, here or on another machine."""
    return {name: value for name, value in origin.items() if name != "source"}


def _as_read(value: Any) -> Any:
    """A value as JSON gives it back, with lists for tuples."""
    return json.loads(json.dumps(value))


def _hash(value: Any) -> str:
    return short_hash(json.dumps(value, sort_keys=True))


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """The leaves of nested dicts, by their dotted names."""
    if not isinstance(value, dict):
        return {name: value}
    items = [_flat(item, f"{name}.{key}" if name else str(key)) for key, item in value.items()]
    return {key: item for one in items for key, item in one.items()}


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."

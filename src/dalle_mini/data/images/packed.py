"""A dataset's images, decoded, resized and cropped once: from then on any of them is read at once, in any order.

    FOLDER/packing.json     which dataset and size the folder is for: another is refused
           000000.u8        the pixels of a part, uint8 [rows, S, S, 3]
           000000.jsonl     what was dropped of the part; then for each row its key and captions

A part is written beside its place and renamed, so a run that is killed goes on with those that are not there. Rows are
in the dataset's own order, whatever process read them.
"""

import contextlib
import dataclasses
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypedDict

import msgspec
import numpy as np

from dalle_mini.addresses import hidden
from dalle_mini.data.encode.crops import Block, Preparation, Rejected, Row
from dalle_mini.data.encode.filters import Filters
from dalle_mini.data.encode.workers import Restart, start_readers
from dalle_mini.data.sources.example import Example, Part, Source, total_size
from dalle_mini.errors import UserError
from dalle_mini.runtime import files
from dalle_mini.runtime.hashing import is_chosen
from dalle_mini.runtime.parsing import check, convert, parse_json, read_object

PACKING = "packing.json"
BATCH = 64  # pictures that a process hands over at a time
FEW = 2048  # pictures, which are packed before other processes would have started
SAY_EVERY = 15  # seconds
SPLITS = ("train", "held out")

logger = logging.getLogger("dalle_mini")


@dataclass(frozen=True)
class Packing:
    """The `Cropper` of packed images.

    Attributes:
        resolution: side of the pictures, pixels: the shortest side is resized to it, and the central square taken.
        min_side, max_aspect: of `Filters`.
        captions: drop what has no caption; otherwise the key stands for one.
    """

    resolution: int
    min_side: int | None = 64
    max_aspect: float | None = 2.0
    captions: bool = True

    def __call__(self, position: int, example: Example) -> Rejected | list[tuple[Row, np.ndarray]]:
        if not self.captions:
            example = dataclasses.replace(example, captions=(*example.captions, example.key, "picture"))
        least = 1 if self.captions else None
        filters = Filters(min_caption=least, max_caption=None, max_aspect=self.max_aspect, min_side=self.min_side)
        return Preparation(self.resolution, filters)(position, example)


def pack(source: Source, folder: Path, packing: Packing, processes: int | None = None) -> None:
    """Pack a dataset into `folder`, or go on with what is there; nothing happens where all of it is.

    Args:
        processes: that decode; by default one a core for more than some thousand pictures, 0 for none but this.

    Raises:
        UserError: the folder is of another dataset or cannot be written, or the dataset holds no usable picture.
    """
    made_from = {"source": source.origin(), **dataclasses.asdict(packing)}
    made_from = hidden(json.loads(json.dumps(made_from, default=str)))
    parts = list(source.parts())
    try:
        _begin(folder, made_from, len(parts))
        files.remove_leftovers(folder)
        missing = [(number, part) for number, part in enumerate(parts) if not _rows_file(folder, number).exists()]
        if missing:
            total = total_size(part for _, part in missing)
            few = total is not None and total <= FEW
            count = (0 if few else os.cpu_count() or 1) if processes is None else processes
            _pack(folder, missing, packing, count)
    except OSError as error:
        raise UserError(f"{folder}: cannot write there ({error.strerror or error})") from error
    dropped: Counter[str] = Counter()
    kept = 0
    for number in range(len(parts)):
        try:
            head, lines = _lines(folder, number)
        except (OSError, ValueError) as error:
            raise UserError(f"{folder}: its packed images are damaged ({error}); delete it to pack again") from None
        dropped += Counter(head.dropped)
        kept += len(lines)
    reasons = "".join(f"; {count} dropped: {reason}" for reason, count in dropped.most_common())
    if not kept:
        raise UserError(f"{made_from['source'].get('source', folder)}: no image of it can be used{reasons}")
    if missing:
        logger.warning("%s: %d images are packed%s", folder, kept, reasons)


def _begin(folder: Path, made_from: dict[str, Any], parts: int) -> None:
    path, wanted = folder / PACKING, {"made_from": made_from, "parts": parts}
    if path.exists():
        try:
            found = read_object(path)
        except UserError as error:
            raise UserError(f"{error}; delete the folder, and it is made again") from None
        if _unnamed(found) != _unnamed(wanted):
            raise UserError(
                f"{folder}: holds the images of another dataset or size than is asked for, or the dataset has "
                "changed; delete it, or name another folder"
            )
        return
    files.write_whole(path, json.dumps(wanted, indent=1) + "\n")


def _unnamed(made: Any) -> Any:
    """A record without the dataset's name: the same files may be called otherwise."""
    try:
        made_from = made["made_from"]
        return {**made, "made_from": {**made_from, "source": {**made_from["source"], "source": None}}}
    except (KeyError, TypeError):
        return made


def _pack(folder: Path, parts: Sequence[tuple[int, Part]], packing: Packing, processes: int) -> None:
    open_parts: dict[int, _Part] = {}
    done, said_at = 0, time.monotonic()
    with contextlib.ExitStack() as stack:
        for read in stack.enter_context(start_readers(parts, packing, BATCH, processes)):
            if read is None:
                continue
            if isinstance(read, Restart):
                if read.number in open_parts:
                    open_parts.pop(read.number).drop()
                continue
            if read.number not in open_parts:
                open_parts[read.number] = _Part(folder, read.number)
                stack.callback(open_parts[read.number].drop)
            if read.block is None:
                open_parts.pop(read.number).finish()
                continue
            open_parts[read.number].add(read.block, packing.captions)
            done += len(read.block.rows)
            read.free()
            if time.monotonic() - said_at > SAY_EVERY:
                said_at = time.monotonic()
                logger.warning("%s: %d images packed so far", folder, done)


class _Dropped(Exception):
    """Ends the writing of a part that is not whole."""


class _Part:
    """A part that is being written."""

    def __init__(self, folder: Path, number: int):
        self.pixels, self.rows = _pixels_file(folder, number), _rows_file(folder, number)
        self._writing = contextlib.ExitStack()
        self.file = self._writing.enter_context(files.writing_whole(self.pixels, sync=False))
        self.lines: list[str] = []
        self.seen, self.dropped = 0, Counter[str]()

    def add(self, block: Block, captions: bool) -> None:
        self.file.write(block.images[: len(block.rows)].tobytes())
        for row in block.rows:
            others = row.other_captions if captions else ()
            self.lines.append(json.dumps([row.key, row.caption, *others], ensure_ascii=False))
        self.seen += block.seen
        self.dropped.update(rejected.reason for rejected in block.rejected)

    def finish(self) -> None:
        """Put the part in place. Its rows come last: a part is whole where they are there."""
        self._writing.close()
        head = json.dumps({"seen": self.seen, "dropped": self.dropped})
        files.write_whole(self.rows, "\n".join([head, *self.lines]) + "\n", sync=False)

    def drop(self) -> None:
        """Remove the pixels written so far; a finished part stays."""
        with contextlib.suppress(_Dropped, OSError), self._writing:  # OSError: bytes not flushed, on a full disk
            raise _Dropped


@dataclass(frozen=True)
class _Head:
    """A part's first line."""

    seen: int
    dropped: dict[str, int]


class _MadeFrom(TypedDict):
    resolution: Annotated[int, msgspec.Meta(ge=1, le=2**14)]


class _Record(TypedDict):
    """`packing.json`."""

    made_from: _MadeFrom
    parts: Annotated[int, msgspec.Meta(ge=0, le=2**31)]


class PackedImages:
    """The pictures of one or both splits of a folder that `pack` made: a map-style source.

    Args:
        split: one of `SPLITS`, or None for all.
        share: of the pictures that are held out, by a hash of their keys: a dataset that grows keeps its split.

    Raises:
        UserError: the folder is not whole or damaged, or the split holds nothing.
    """

    def __init__(self, folder: Path, split: str | None = None, share: float = 0.0):
        self.folder, self.split, self.share = folder, split, share
        decode = msgspec.json.Decoder(Annotated[list[str], msgspec.Meta(min_length=2)]).decode
        try:
            record = check(read_object(folder / PACKING), _Record)
            self._made_from, size = record["made_from"], record["made_from"]["resolution"]
            self._pixels: list[np.ndarray] = []
            rows: list[tuple[int, int, str, str, *tuple[str, ...]]] = []
            for number in range(record["parts"]):
                _, lines = _lines(folder, number)
                shape = (len(lines), size, size, 3)
                path = _pixels_file(folder, number)
                if path.stat().st_size != np.prod(shape):
                    raise ValueError(f"{path.name} does not have the size of {len(lines)} images")
                self._pixels.append(np.memmap(path, np.uint8, "r", shape=shape) if lines else np.empty(shape, np.uint8))
                told = enumerate(map(decode, lines))
                rows += [(number, row, key, caption, *others) for row, (key, caption, *others) in told]
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{folder}: its packed images are damaged ({error}); delete it to pack again") from None
        self.size = size
        held = [is_chosen(key, share) == (split == SPLITS[1]) for _, _, key, *_ in rows]
        self._rows = [row for row, wanted in zip(rows, held, strict=True) if wanted or split is None]
        if not self._rows:
            raise UserError(f"{folder}: none of its {len(rows)} images is {split}: data.held_out is {share}")

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, indices: Iterable[int]) -> tuple[np.ndarray, list[str]]:
        """Images uint8 [n, size, size, 3], and each one's first caption."""
        rows = [self._rows[int(index)] for index in indices]
        images = np.empty((len(rows), self.size, self.size, 3), np.uint8)
        for image, (part, row, *_) in zip(images, rows, strict=True):
            image[:] = self._pixels[part][row]
        return images, [caption for _, _, _, caption, *_ in rows]

    def captions(self, index: int) -> list[str]:
        """All captions of a picture."""
        return list(self._rows[index][3:])

    def origin(self) -> dict[str, Any]:
        """Which pictures these are, for a run's record."""
        return {**self._made_from, "split": self.split, "share": self.share, "pictures": len(self)}


def _pixels_file(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.u8"


def _lines(folder: Path, number: int) -> tuple[_Head, list[bytes]]:
    """A part's first line, and those of its rows. Raises OSError or ValueError where it cannot be read."""
    head, *lines = _rows_file(folder, number).read_bytes().splitlines() or [b""]  # text would end at U+2028, too
    return convert(parse_json(head), _Head), lines


def _rows_file(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.jsonl"

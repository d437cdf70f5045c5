"""Folders of pictures, each with its captions beside it: `a/b.jpg` and `a/b.txt`, a caption a line.

A `b.json` beside it, as img2dataset writes for `--output_format files`, gives columns, and captions where there is no
text file.
"""

from __future__ import annotations

import json
import os
import posixpath
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from dalle_mini.data.sources import captions, files, reasons
from dalle_mini.data.sources.example import Example
from dalle_mini.data.sources.fingerprint import Fingerprint
from dalle_mini.data.sources.rows import Layout, Options, find_captions, json_row
from dalle_mini.runtime.limits import limits

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

PART = 4096  # pictures
TEXTS = ("txt", "json")

Entry = tuple[str, str | None, list[str]]  # name without suffix, the picture's suffix, the texts beside it


class ImageFolder:
    """A folder of pictures, and all folders in it. A part is some thousand of them."""

    sparse_columns = True

    def __init__(self, spec: str, fs: AbstractFileSystem, root: str, options: Options):
        self.spec, self.fs, self.root, self.caption_column = spec, fs, root, options.caption_column
        self.image_root = options.image_root

    def origin(self) -> dict[str, Any]:
        _, fingerprint = self._listed
        return {"kind": "folder", "source": self.spec, "caption_column": self.caption_column} | fingerprint.told()

    def parts(self) -> Sequence[Images]:
        return self._listed[0]

    @cached_property
    def _listed(self) -> tuple[list[Images], Fingerprint]:
        parts: list[Images] = []
        waiting: list[Entry] = []
        fingerprint = Fingerprint()
        for entry in self._entries(fingerprint):
            waiting.append(entry)
            if len(waiting) == PART:
                parts.append(self._part(len(parts), waiting))
                waiting = []
        return ([*parts, self._part(len(parts), waiting)] if waiting else parts), fingerprint

    def _part(self, number: int, entries: list[Entry]) -> Images:
        # Compressed, for all parts of a dataset of millions are in memory at once.
        listing = zlib.compress(json.dumps(entries).encode(), 1)
        name = f"{number:06d}"
        return Images(self.fs, self.root, name, len(entries), listing, self.caption_column, self.image_root)

    def _entries(self, fingerprint: Fingerprint) -> Iterator[Entry]:
        for folder, found in files.walk(self.fs, self.root, sized=True):
            beside: dict[str, tuple[list[files.File], list[files.File]]] = {}
            for file in found:
                kind = files.suffix(file.name)
                if kind in files.IMAGE_SUFFIXES or kind in TEXTS:
                    stem = posixpath.join(folder, files.without_suffix(file.name))
                    beside.setdefault(stem, ([], []))[kind in TEXTS].append(file)
            _join_forms(beside)
            for stem in sorted(beside):
                images, texts = beside[stem]
                if images or any(files.suffix(text.name) == "txt" for text in texts):
                    for file in (*images, *texts):
                        fingerprint.add(posixpath.join(folder, file.name), file)
                    names = [posixpath.join(folder, text.name) for text in texts]
                    endings: list[str | None] = [posixpath.splitext(image.name)[1] for image in images] or [None]
                    for ending in endings:
                        yield stem, ending, names


def _join_forms(beside: dict[str, tuple[list[files.File], list[files.File]]]) -> None:
    """Give a picture without texts those whose name differs only in how accents are composed (`files.existing`)."""
    alone = {
        unicodedata.normalize("NFC", stem): stem
        for stem, (images, _) in beside.items()
        if not images and not stem.isascii()
    }
    for stem, (images, texts) in list(beside.items()) if alone else ():
        other = alone.get(unicodedata.normalize("NFC", stem)) if images and not texts else None
        if other in beside:
            texts += beside.pop(other)[1]


@dataclass(frozen=True)
class Images:
    """Some pictures of a folder, whose names it holds. A key is a picture's path in the folder, without suffix."""

    fs: AbstractFileSystem
    root: str
    name: str
    size: int
    listing: bytes
    caption_column: str | None = None
    image_root: str | None = None

    def examples(self) -> Iterator[Example]:
        entries = json.loads(zlib.decompress(self.listing))
        return files.in_order(self._example, entries, self.fs)

    def _example(self, entry: Entry) -> Example:
        stem, image, texts_beside = entry
        place = image and self._place(stem + image)
        read = partial(self._text, place)
        texts: tuple[str, ...] = ()
        told: dict[str, Any] = {}
        problem = data = None
        try:
            kinds = {files.suffix(name): name for name in texts_beside}
            if "json" in kinds:
                told = fields(read(kinds["json"]))
            layout = Layout(None, *find_captions(told, self.caption_column))
            if "txt" in kinds and self.caption_column in (None, "txt"):
                text = read(kinds["txt"])
                # img2dataset writes one caption, whatever lines it has, and says it again in the JSON
                is_one = told.get("caption") == captions.read_text(text)
                texts = (told["caption"],) if is_one else captions.read_lines(text)
            else:
                texts = layout.captions_of(told)
            told = layout.rest_of(told)
            if place is None:
                raise files.Unreadable(reasons.NO_IMAGE)
            data = files.read(self.fs, place)
            if not data:
                raise files.Unreadable(reasons.EMPTY_FILE)
        except files.Unreadable as error:
            problem = error.reason
        return Example(files.text_key(stem), None if problem else data, texts, told, problem)

    def _text(self, image: str | None, name: str) -> bytes:
        """A text beside a picture. Raises Unreadable where it is a link to a stranger's text."""
        place = self._place(name)
        if files.is_local(self.fs) and os.path.islink(place) and not self._may_link(place, image):
            raise files.Unreadable(reasons.LEAVES_FOLDER)
        return files.read(self.fs, place, limits().text_bytes)

    def _may_link(self, text: str, image: str | None) -> bool:
        """Whether a link leads into the dataset, into `--image-root`, or into the folder that its picture's leads to.

        Else who made the dataset could have any file of this machine encoded as a caption.
        """
        target = os.path.realpath(text)
        roots = [os.path.realpath(root) for root in (self.root, self.image_root) if root is not None]
        is_beside = image is not None and os.path.dirname(target) == os.path.dirname(os.path.realpath(image))
        return is_beside or any(target.startswith(root.rstrip("/") + "/") for root in roots)

    def _place(self, name: str) -> str:
        return posixpath.join(self.root, name)


def fields(data: bytes) -> dict[str, Any]:
    """The fields of a JSON file, or none where it is no JSON object."""
    try:
        told = json_row(data)
    except (ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}

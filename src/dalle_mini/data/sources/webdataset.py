"""WebDataset tars, as img2dataset writes them: `000000.jpg`, `000000.txt` and `000000.json` one after the other.

https://github.com/webdataset/webdataset: neighbours whose names agree up to the first dot of the last name are one
example. The text file is one caption, or the members are that `caption_column` names; without one, the captions are
looked for in the JSON, whose other single values become columns. Nothing is unpacked, so a name that leads out of the
tar leads nowhere: it is counted.
"""

from __future__ import annotations

import gzip
import posixpath
import re
import tarfile
import zlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import IO, TYPE_CHECKING, Any, cast

from dalle_mini.data.sources import captions, files, reasons
from dalle_mini.data.sources.example import Example
from dalle_mini.data.sources.fingerprint import of_archives
from dalle_mini.data.sources.folder import fields
from dalle_mini.data.sources.rows import Layout, Options, find_captions
from dalle_mini.data.sources.tars import Forward, Guarded, Header
from dalle_mini.runtime.limits import limits

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

SUFFIXES = (".tar", ".tar.gz", ".tgz")
BLOCK = tarfile.BLOCKSIZE
MOST_STRETCHES = 1000  # that are damaged, in one tar; then the rest is not looked at
MOST_MEMBERS = 1000  # of one example; further ones are not looked at
_CUT = ("unexpected end of data", "empty file", "truncated header")  # what tarfile says of an early end


Item = tuple[str, str, bytes | files.Unreadable] | str  # (key, ending, content) of a file; the reason of a break


class WebDataset:
    """Tars of captioned pictures. A part is a tar."""

    sparse_columns = True

    def __init__(self, spec: str, fs: AbstractFileSystem, root: str, paths: Sequence[str], options: Options):
        self.spec, self.fs, self.root = spec, fs, root
        self.columns = {"image_column": options.image_column, "caption_column": options.caption_column}
        columns = options.image_column, options.caption_column
        self._parts = [Tar(fs, path, files.relative(root, path), *columns) for path in paths]

    def origin(self) -> dict[str, Any]:
        return {"kind": "webdataset", "source": self.spec, **self.columns} | self._fingerprint

    @cached_property
    def _fingerprint(self) -> dict[str, Any]:
        return of_archives(self.fs, self.root, [part.path for part in self._parts]).told()

    def parts(self) -> Sequence[Tar]:
        return self._parts


@dataclass
class Group:
    """The files of one example, as far as they have been met."""

    key: str
    members: dict[str, bytes] = field(default_factory=dict)  # by what follows the first dot, in small letters
    problem: str | None = None


@dataclass(frozen=True)
class Tar:
    """One tar. A key is the tar's name and its example's, both without suffixes."""

    fs: AbstractFileSystem
    path: str
    name: str
    image_column: str | None = None
    caption_column: str | None = None
    size: int | None = None

    def examples(self) -> Iterator[Example]:
        """Its examples in order, and one with a problem for each place where it makes no sense or ends too early."""
        group, usual = None, {"txt"}
        for item in self._members():
            if isinstance(item, str):  # a break: what comes after it is not of the same example
                if group is not None and group.members.keys() >= usual:
                    yield from self._example(group)
                    group = None
                # else it lacks what the last one had, and is what broke
                key = files.text_key(f"{self._stem}/{group.key if group else item}")
                yield Example(key, None, (), {}, item)
                group = None
                continue
            key, ending, content = item
            if group is None or group.key != key or ending in group.members:
                if group is not None:
                    usual = set(group.members)
                yield from self._example(group)
                group = Group(key)
            if isinstance(content, files.Unreadable):
                group.problem = group.problem or content.reason
                content = b""
            if len(group.members) == MOST_MEMBERS:
                continue
            if self._is_image(ending) and any(map(self._is_image, group.members)):
                content = b""  # the first is taken; memory does not grow with the others
            group.members[ending] = content
        yield from self._example(group)

    @property
    def _stem(self) -> str:
        return next(self.name.removesuffix(ending) for ending in reversed(SUFFIXES) if self.name.endswith(ending))

    @cached_property
    def _limits(self) -> tuple[int, int]:
        """Bytes of a picture and of a text."""
        return limits().picture_bytes, limits().text_bytes

    @cached_property
    def _named(self) -> list[tuple[str, str]]:
        """The captions that `caption_column` names, and the endings of members that are called so."""
        names = re.split("[,+]", self.caption_column or "")
        return [(name, name.lower()) for name in names if name and name.lower() != "json" and not self._is_image(name)]

    @cached_property
    def _texts(self) -> frozenset[str]:
        return frozenset(["txt", "json", *(ending for _, ending in self._named)])

    def _is_image(self, ending: str) -> bool:
        return ending in files.IMAGE_SUFFIXES if self.image_column is None else ending == self.image_column.lower()

    def _example(self, group: Group | None) -> Iterator[Example]:
        if group is None:
            return
        key, members = files.text_key(f"{self._stem}/{group.key}"), group.members
        images = [ending for ending in members if self._is_image(ending)]
        told = fields(members.get("json", b""))
        told |= {name: captions.read_text(members[ending]) for name, ending in self._named if ending in members}
        layout = Layout(None, *find_captions(told, self.caption_column))
        if "txt" in members and self.caption_column is None:
            texts: tuple[str, ...] = (captions.read_text(members["txt"]),)
        else:
            texts = layout.captions_of(told)
        problem = group.problem
        if problem is None and not images:
            problem = reasons.NO_IMAGE
        elif problem is None and not members[images[0]]:
            problem = reasons.EMPTY_FILE
        yield Example(key, None if problem else members[images[0]], texts, layout.rest_of(told), problem)

    def _members(self) -> Iterator[Item]:
        """The files that matter, and a reason at each break, behind which it goes on."""
        try:
            file = files.opened(self.fs, self.path)
            file.seek(1)  # a web server that gives no parts of files cannot
        except files.Unreadable as error:
            yield error.reason
            return
        except Exception:  # every store has exceptions of its own
            yield reasons.CANNOT_READ
            return
        with file:
            file.seek(0)
            unpacked = file if self.name.endswith(".tar") else Forward(gzip.GzipFile(fileobj=file))
            place = 0
            for _ in range(MOST_STRETCHES):
                stop = yield from self._stretch(Guarded(unpacked), place)
                if stop is None:
                    return
                place = stop

    def _stretch(self, file: Guarded, place: int) -> Generator[Item, None, int | None]:
        """The files from `place` on. Returns where to go on, or None."""
        offset = place
        try:
            file.seek(place)
            # With ignore_zeros tarfile looks for the next header where one makes no sense; what it passed over shows
            # as a gap.
            readable = cast("IO[bytes]", file)  # of which tarfile asks no more than `Guarded` has
            tar = tarfile.TarFile(fileobj=readable, ignore_zeros=True, tarinfo=Header)
            while True:
                member = tar.next()
                tar.members = []  # type: ignore[attr-defined]  # undocumented; else it keeps every header it has met
                stop = tar.offset if member is None else member.offset
                if file.odd is not None and offset <= file.odd < stop:
                    yield reasons.DAMAGED
                if member is None:
                    # A whole tar ends with blocks of zeros.
                    if stop <= offset:
                        yield reasons.CUT_SHORT
                    return None
                offset = tar.offset
                file.forget()
                wanted = self._wanted(member)
                if wanted is not None:
                    key, ending, limit = wanted
                    yield (
                        key,
                        ending,
                        limit if isinstance(limit, files.Unreadable) else self._content(tar, member, limit),
                    )
                    file.forget()
        except EOFError:
            yield reasons.CUT_SHORT
        except tarfile.ReadError as error:
            if not str(error).startswith(_CUT):
                yield reasons.DAMAGED
                return offset + BLOCK
            yield reasons.CUT_SHORT
        except OSError as error:
            yield reasons.DAMAGED if isinstance(error, gzip.BadGzipFile) else reasons.CANNOT_READ
        except zlib.error:
            yield reasons.DAMAGED
        except MemoryError:
            raise
        except Exception:  # of a damaged header tarfile raises nearly every type there is
            yield reasons.DAMAGED
            return offset + BLOCK
        return None

    def _wanted(self, member: tarfile.TarInfo) -> tuple[str, str, int | files.Unreadable] | None:
        """(key, ending, bytes that may be read of it or why none) of a file that an example may be made of."""
        folder, base = posixpath.split(member.name)
        stem, _, ending = base.partition(".")
        ending = ending.lower()
        if member.isdir() or not stem:
            return None
        is_image = self._is_image(ending)
        # `photo.v2.jpg` is of the example `photo`, which counts though it may have no picture of its own.
        is_other = not is_image and ending.rpartition(".")[2] in files.IMAGE_SUFFIXES
        is_text = ending in self._texts
        if not is_image and not is_other and not is_text:
            return None
        key = posixpath.join(folder, stem)
        if member.name.startswith("/") or ".." in member.name.split("/"):
            return key, ending, files.Unreadable(reasons.LEAVES_FOLDER)
        if not member.isreg() or member.issparse():  # `tarfile` looks for ever for a place in a map of holes
            return key, ending, files.Unreadable(reasons.NO_FILE)
        limit = self._limits[not is_image] if not is_other else 0
        if member.size > limit and not is_other:
            return key, ending, files.Unreadable(reasons.FILE_TOO_LARGE)
        return key, ending, limit

    def _content(self, tar: tarfile.TarFile, member: tarfile.TarInfo, limit: int) -> bytes:
        if not limit:
            return b""
        tar.fileobj.seek(member.offset_data)  # which `extractfile` does by way of three objects
        content = tar.fileobj.read(min(member.size, limit))
        if len(content) < min(member.size, limit):
            raise tarfile.ReadError("unexpected end of data")
        return content

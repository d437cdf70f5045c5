"""Bounds on a stranger's tar: `tarfile` alone trusts sizes below zero, endless headers, and gzip read backwards."""

from __future__ import annotations

import gzip
import re
import tarfile
from tarfile import InvalidHeaderError, SubsequentHeaderError  # type: ignore[attr-defined]  # missing in typeshed
from typing import IO

from dalle_mini.runtime.limits import limits

KEPT = 1 << 20  # bytes of a compressed file that can be gone back
PIECE = 1 << 20
MOST_RECORDS = 1000  # of one extended header; honest ones have ten
_RECORD = re.compile(rb"(\d{1,9}) ")
_LONG_NUMBER = re.compile(rb"\d{64}")  # of which older versions take the square (CVE-2024-6232)
_HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


class Header(tarfile.TarInfo):
    """A member that is refused where its header leads back, or holds more than names.

    Python before 3.11.14, 3.12.12 and 3.13.6 follows a size below zero back to the same header for ever
    (CVE-2025-8194).
    """

    def _block(self, count: int) -> int:
        if not 0 <= count < 1 << 60:  # no file can be looked through from there on
            raise InvalidHeaderError("a size below zero, or without end")
        return super()._block(count)  # type: ignore[misc]  # undocumented

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _HEADERS and self.size > limits().tar_headers:
            raise InvalidHeaderError("a header of this size")
        return super()._proc_member(tar)  # type: ignore[misc]  # undocumented

    def _proc_pax(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        place = tar.fileobj.tell()
        body = tar.fileobj.read(self._block(self.size))
        tar.fileobj.seek(place)
        if not _are_records(body[: self.size]) or len(tar.pax_headers) > MOST_RECORDS:
            raise InvalidHeaderError("no extended header")
        return super()._proc_pax(tar)  # type: ignore[misc]  # undocumented

    def _proc_gnusparse_10(self, *_) -> None:
        raise SubsequentHeaderError("a map of holes")  # reading one takes the square of its length


def _are_records(body: bytes) -> bool:
    """Whether an extended header is made of records, "LENGTH name=value" and a line's end, one behind the other.

    Older versions take any text for a name, up to the next sign of equality, and keep all of it for each record.
    """
    place = count = 0
    while place < len(body) and body[place]:
        found = _RECORD.match(body, place)
        if found is None or count == MOST_RECORDS:
            return False
        place, record = place + int(found[1]), body[found.end() : place + int(found[1])]
        if b"=" not in record or not record.endswith(b"\n"):
            return False
        count += 1
    return not _LONG_NUMBER.search(body)


class Guarded:
    """A file that is not read in larger pieces than a picture may have, and which knows where it was not zero.

    Attributes:
        odd: where the first block that was read since `forget` and is not all zeros begins, or None.
    """

    def __init__(self, file: IO[bytes] | Forward):
        self._file, self.seek, self.tell = file, file.seek, file.tell
        self.odd: int | None = None
        self._most = limits().picture_bytes

    def read(self, size: int) -> bytes:
        if size > self._most:
            raise tarfile.ReadError("a header of this size")
        data = self._file.read(size)
        if self.odd is None and size == tarfile.BLOCKSIZE and data.strip(b"\0"):
            self.odd = self._file.tell() - len(data)
        return data

    def forget(self) -> None:
        self.odd = None


class Forward:
    """A compressed file that is unpacked once: going back further than `KEPT` bytes raises OSError."""

    def __init__(self, file: gzip.GzipFile):
        self._file, self._kept, self._at, self._end = file, bytearray(), 0, 0  # `_kept` ends at `_end`

    def tell(self) -> int:
        return self._at

    def seek(self, place: int) -> None:
        while self._end < place and self._unpack(min(place - self._end, PIECE)):
            pass
        if place < self._end - len(self._kept):
            raise OSError("too far back in a compressed file")
        self._at = place

    def read(self, size: int) -> bytes:
        while self._end < self._at + size and self._unpack(self._at + size - self._end, keep=self._end - self._at):
            pass
        start = self._at - (self._end - len(self._kept))
        data = bytes(self._kept[start : start + size])
        self._at += len(data)
        return data

    def _unpack(self, size: int, keep: int = 0) -> bool:
        """Some more bytes behind `_end`, of which the last `keep` before stay. Returns whether there were any."""
        data = self._file.read(min(size, PIECE))
        if len(self._kept) > 2 * max(KEPT, keep):
            del self._kept[: len(self._kept) - max(KEPT, keep)]
        self._kept += data
        self._end += len(data)
        return bool(data)

"""Tars that lead `tarfile` back, or take the square of their size: each ends, with what is whole."""

import gzip
import io
import struct
import tarfile
import time

import pytest

from dalle_mini.data.sources import reasons
from dalle_mini.data.sources.tars import KEPT, Forward
from small_datasets import PICTURE, outcome, tar_of


def header(name, size=0, kind=tarfile.REGTYPE, **more):
    """A header whose size is what it says, also one below zero."""
    info = tarfile.TarInfo(name)
    info.type = kind
    data = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    data[124:136] = b"\xff" * 4 + struct.pack(">q", size) if size < 0 else b"%011o\0" % size
    for place, value in more.get("at", {}).items():
        data[place : place + len(value)] = value
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data)
    return bytes(data)


def padded(body):
    return body + bytes(-len(body) % 512)


def pax(body):
    return header("x", len(body), tarfile.XHDTYPE) + padded(body)


def record(name, value):
    size = len(name) + len(value) + 4
    return next(text for n in range(size, size + 9) if len(text := b"%d %s=%s\n" % (n, name, value)) == n)


@pytest.mark.parametrize("name", ["b.bin", "/b.jpg", "b.jpg", "b.txt"])
@pytest.mark.parametrize("size", [-512, -1, -(2**62)])
def test_a_size_below_zero(tmp_path, name, size):
    (tmp_path / "x.tar").write_bytes(header("x") + header(name, size) + tar_of(["c.jpg", "c.txt"]))
    found = outcome(tmp_path / "x.tar")
    assert found[-1] == ("x/c", None) and len(found) <= 3


def test_a_size_below_zero_in_an_extended_header(tmp_path):
    data = header("x") + pax(record(b"size", b"-1024")) + header("b.jpg") + tar_of(["c.jpg", "c.txt"])
    (tmp_path / "x.tar").write_bytes(data)
    assert ("x/c", None) in outcome(tmp_path / "x.tar")


def test_a_size_without_end_costs_one_member(tmp_path):
    data = pax(record(b"size", b"9" * 30)) + header("b.jpg") + tar_of(["c.jpg", "c.txt"])
    (tmp_path / "x.tar").write_bytes(data)
    found = outcome(tmp_path / "x.tar")
    assert ("x/c", None) in found and len(found) < 5


BODIES = {
    "records that overlap": b"2 " * 60_000 + b"=\n",
    "a number without an end": record(b"comment", b"1" * 200_000),
    "no records": b"x" * 200_000,
    "too many records": b"".join(record(b"k%d" % i, b"v") for i in range(20_000)),
    "too large": record(b"comment", b"x" * 400_000),
}


@pytest.mark.parametrize("name", BODIES)
def test_extended_headers_that_take_the_square_of_their_size(tmp_path, name):
    data = b"".join([pax(BODIES[name]), header("a.jpg")] * 3) + tar_of(["c.jpg", "c.txt"])
    (tmp_path / "x.tar").write_bytes(data)
    began = time.process_time()
    found = outcome(tmp_path / "x.tar")
    assert time.process_time() - began < 5
    assert found[-1] == ("x/c", None)


def test_maps_of_holes(tmp_path):
    """`tarfile` looks for a place in an old GNU map for ever where no piece holds it."""
    lost = {386: b"%011o\0%011o\0" % (512, 512), 483: b"%011o\0" % 1024}
    new = b"".join(record(b"GNU.sparse." + name, value) for name, value in ((b"major", b"1"), (b"minor", b"0")))
    data = (
        header("a.jpg", 512, tarfile.GNUTYPE_SPARSE, at=lost)
        + bytes(512)
        + header("a.txt")
        + pax(new)
        + header("b.jpg", 1 << 20)
    )
    (tmp_path / "x.tar").write_bytes(data + b"x" * (1 << 20) + tar_of(["c.jpg", "c.txt"]))
    began = time.process_time()
    found = outcome(tmp_path / "x.tar")
    assert time.process_time() - began < 10
    assert ("x/a", reasons.NO_FILE) in found and found[-1] == ("x/c", None)


def test_gzip_is_unpacked_once(tmp_path, monkeypatch):
    """Gaps and damage between members: to look at each again is to begin anew."""
    gaps = b"".join(bytes(4096) + tar_of([f"{i}.jpg"])[: 512 + len(padded(PICTURE))] for i in range(20))
    damage = b"".join(b"\xff" * 4096 + tar_of([f"d{i}.txt"])[:1024] for i in range(20))
    data = header("big.bin", 4 << 20) + bytes(4 << 20) + gaps + damage + pax(b"no record") + bytes(1024)
    unpacked = 0
    before = gzip.GzipFile.read

    def read(self, size=-1):
        nonlocal unpacked
        piece = before(self, size)
        unpacked += len(piece)
        return piece

    monkeypatch.setattr(gzip.GzipFile, "read", read)
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(data))
    found = outcome(tmp_path / "x.tar.gz")
    assert [key for key, problem in found if problem is None] == [f"x/{i}" for i in range(20)]
    assert unpacked <= 2 * len(data)


def test_members_of_one_example_without_number(tmp_path):
    data = b"".join(header(f"a.{i}.jpg") for i in range(20_000)) + tar_of(["b.jpg", "b.txt"])
    (tmp_path / "x.tar").write_bytes(data)
    began = time.process_time()
    assert outcome(tmp_path / "x.tar")[-1] == ("x/b", None)
    assert time.process_time() - began < 10


def test_forward_reads_as_a_file_does():
    data = bytes(range(256)) * 20_000
    file, plain = Forward(io.BytesIO(data)), io.BytesIO(data)
    for place, size in [(0, 10), (5, 3), (100_000, 700_000), (600_000, 300_000), (5_000_000, 500_000), (len(data), 5)]:
        file.seek(place)
        plain.seek(place)
        assert file.read(size) == plain.read(size) and file.tell() == plain.tell()
    with pytest.raises(OSError, match="too far back"):
        file.seek(len(data) - 3 * KEPT)


@pytest.mark.parametrize("column", ["cap", "CAP", "cap,note"])
def test_a_caption_column_names_a_member(tmp_path, column):
    from dalle_mini.data.sources import open_source

    names = ["0.img", "0.cap", "0.note", "0.json"]
    (tmp_path / "x.tar").write_bytes(tar_of(names, content={"0.img": PICTURE, "0.cap": b"a red apple"}))
    source = open_source(str(tmp_path), image_column="img", caption_column=column)
    (example,) = [example for part in source.parts() for example in part.examples()]
    assert example.image == PICTURE and example.captions[0] == "a red apple"

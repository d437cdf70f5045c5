"""WebDataset tars: what img2dataset writes, and every way in which a tar may be damaged."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest

from dalle_mini.data.sources import open_source, reasons
from dalle_mini.imaging.decoding import decode_image
from dalle_mini.runtime.limits import limits
from small_datasets import PICTURE, examples, outcome, tar_of


def three(kind=tarfile.PAX_FORMAT):
    return tar_of([f"{i:04d}.{ending}" for i in range(3) for ending in ("jpg", "json", "txt")], kind)


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tgz"])
def test_what_img2dataset_writes(tmp_path, kind, suffix):
    fields = {
        "url": "https://x/y.jpg",
        "caption": "of the JSON",
        "key": "0000",
        "width": 112,
        "exif": "{}",
        "list": [1],
    }
    long = "a" * 90 + "/" + "b" * 90 if kind != tarfile.USTAR_FORMAT else "c"
    data = tar_of(
        ["0000.jpg", "0000.json", "0000.txt", f"{long}.JPG", f"{long}.txt"],
        kind,
        {"0000.json": json.dumps(fields).encode(), "0000.txt": b"two\nlines"},
    )
    (tmp_path / "00000_stats.json").write_text("{}")
    (tmp_path / "00000.parquet").write_bytes(b"PAR1")
    (tmp_path / f"00000{suffix}").write_bytes(data if suffix == ".tar" else gzip.compress(data))
    source = open_source(str(tmp_path))
    first, second = examples(source)
    assert (first.key, first.image, first.captions, first.problem) == ("00000/0000", PICTURE, ("two\nlines",), None)
    assert first.columns == {"url": "https://x/y.jpg", "key": "0000", "width": 112, "exif": "{}"}
    assert (second.key, second.captions) == (f"00000/{long}", (f"{long}.txt",))
    assert source.origin() == open_source(str(tmp_path)).origin()
    assert [part.name for part in source.parts()] == [f"00000{suffix}"]


def test_a_folder_that_img2dataset_wrote():
    """By img2dataset 1.47 itself, of four addresses: one was gone, one led to no picture."""
    source = open_source(str(Path(__file__).parents[2] / "golden" / "img2dataset"))
    first, second = examples(source)
    assert (first.key, first.captions) == ("00000/000000000", ("a first\ncaption",))
    assert (second.key, second.captions) == ("00000/000000003", ("a last &amp; good one",))
    assert [example.columns["similarity"] for example in (first, second)] == [0.3, 0.2]
    assert decode_image(first.image).size == (first.columns["width"], first.columns["height"])


def test_captions_of_the_json(tmp_path):
    told = json.dumps({"title": "A dog", "description": "It barks", "caption": None}).encode()
    (tmp_path / "x.tar").write_bytes(tar_of(["a.jpg", "a.json", "b.jpg"], content={"a.json": told}))
    assert [e.captions for e in examples(open_source(str(tmp_path)))] == [(), ()]
    joined = examples(open_source(str(tmp_path), caption_column="title+description"))
    assert [e.captions for e in joined] == [("A dog. It barks",), ()]


def test_a_picture_of_another_ending(tmp_path):
    (tmp_path / "x.tar").write_bytes(tar_of(["a.jpg", "a.left.png", "a.txt"], content={"a.left.png": b"left"}))
    assert [e.image for e in examples(open_source(str(tmp_path)))] == [PICTURE]
    assert [e.image for e in examples(open_source(str(tmp_path), image_column="left.png"))] == [b"left"]


def test_of_several_pictures_the_first_is_taken(tmp_path):
    (tmp_path / "x.tar").write_bytes(tar_of(["a.jpg", "a.png", "a.txt"], content={"a.png": b"second"}))
    (example,) = examples(open_source(str(tmp_path)))
    assert (example.image, example.captions, example.problem) == (PICTURE, ("a.txt",), None)


def test_names_and_neighbours(tmp_path):
    names = ["./d/a.jpg", "./d/a.txt", "b.jpg", "c.txt", "b.txt", "photo.v2.jpg", "readme.md", "._b.jpg", "e.cls"]
    (tmp_path / "x.tar").write_bytes(tar_of(names))
    assert outcome(tmp_path / "x.tar") == [
        ("x/./d/a", None),
        ("x/b", None),
        ("x/c", reasons.NO_IMAGE),
        ("x/b", reasons.NO_IMAGE),  # its text came too late
        ("x/photo", reasons.NO_IMAGE),  # the name ends at the first dot, as WebDataset says
    ]


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_cut_anywhere_gives_all_that_is_whole(tmp_path, kind):
    whole = three(kind)
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        ends = [member.offset_data + member.size for member in tar if member.name.endswith("txt")]
    last = -(-ends[-1] // 512) * 512 + 512  # the first block of zeros, with which a tar ends
    path = tmp_path / "x.tar"
    for cut in [0, 1, 100, 511, 512, 513, *range(1000, last, 487), *ends, last - 1, last, last + 100]:
        path.write_bytes(whole[:cut])
        found = outcome(path)
        kept = [f"x/{i:04d}" for i, end in enumerate(ends) if end <= cut]
        assert [key for key, problem in found if problem is None] == kept, cut
        assert [problem for _, problem in found if problem] == [reasons.CUT_SHORT] * (cut < last), cut


def test_gzip_cut_in_the_middle(tmp_path):
    data = gzip.compress(three())
    (tmp_path / "x.tar.gz").write_bytes(data[: len(data) * 2 // 3])
    found = outcome(tmp_path / "x.tar.gz")
    assert found[-1][1] == reasons.CUT_SHORT
    assert [problem for _, problem in found[:-1]] == [None] * (len(found) - 1)
    (tmp_path / "x.tar.gz").write_bytes(data[:100] + b"\xff" * 50 + data[150:])
    assert outcome(tmp_path / "x.tar.gz")[-1][1] in (reasons.DAMAGED, reasons.CUT_SHORT)
    (tmp_path / "x.tar.gz").write_bytes(b"no gzip")
    assert outcome(tmp_path / "x.tar.gz") == [("x/archive damaged", reasons.DAMAGED)]


def test_reading_goes_on_behind_a_damaged_header(tmp_path):
    whole = three()
    place = whole.index(b"0001.jpg")
    (tmp_path / "x.tar").write_bytes(whole[:place] + b"\xff" * 512 + whole[place + 512 :])
    assert outcome(tmp_path / "x.tar") == [
        ("x/0000", None),
        ("x/archive damaged", reasons.DAMAGED),
        ("x/0001", reasons.NO_IMAGE),
        ("x/0002", None),
    ]


def test_two_tars_in_one_file(tmp_path):
    (tmp_path / "x.tar").write_bytes(three() + tar_of(["b.jpg", "b.txt"]))
    assert [key for key, _ in outcome(tmp_path / "x.tar")] == ["x/0000", "x/0001", "x/0002", "x/b"]


def test_headers_that_claim_too_much(tmp_path):
    huge = tarfile.TarInfo("huge.jpg")
    huge.size = limits().picture_bytes + 1
    extended = tarfile.TarInfo("extended")
    extended.type, extended.size = tarfile.XHDTYPE, 2**40
    text = tarfile.TarInfo("long.txt")
    text.size = limits().text_bytes + 1
    (tmp_path / "a.tar").write_bytes(tar_of(["a.jpg", "a.txt"])[: 512 * 8] + huge.tobuf())
    (tmp_path / "b.tar").write_bytes(extended.tobuf(tarfile.GNU_FORMAT) + tar_of(["b.jpg", "b.txt"]))
    data = tar_of(["c.jpg"])
    start = 512 + (len(PICTURE) + 511) // 512 * 512
    room = bytes((limits().text_bytes + 512) // 512 * 512)
    (tmp_path / "c.tar").write_bytes(data[:start] + text.tobuf() + room + tar_of(["d.jpg", "d.txt"]))
    assert outcome(tmp_path / "a.tar") == [("a/a", None), ("a/huge", reasons.CUT_SHORT)]
    assert ("b/b", None) in outcome(tmp_path / "b.tar")
    assert ("b/archive damaged", reasons.DAMAGED) in outcome(tmp_path / "b.tar")
    assert outcome(tmp_path / "c.tar") == [("c/c", None), ("c/long", reasons.FILE_TOO_LARGE), ("c/d", None)]


@pytest.mark.parametrize("seed", range(20))
def test_random_damage_never_raises(tmp_path, seed):
    import random

    chance = random.Random(seed)
    data = bytearray(three(chance.choice([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])))
    for _ in range(chance.randrange(1, 30)):
        place = chance.randrange(len(data))
        if chance.random() < 0.5:  # where headers are
            place = place // 512 * 512 + chance.randrange(160)
        data[place % len(data)] = chance.randrange(256)
    (tmp_path / "x.tar").write_bytes(data)
    for _, problem in outcome(tmp_path / "x.tar"):
        assert problem is None or problem in reasons.REASONS


def test_a_tar_that_is_gone_is_counted(tmp_path):
    (tmp_path / "0.tar").write_bytes(three())
    found = outcome(f"{tmp_path}/{{0..1}}.tar")
    assert [problem for _, problem in found] == [None] * 3 + [reasons.CANNOT_READ]


def test_tars_of_any_file_system():
    import fsspec

    fsspec.filesystem("memory").pipe("/tars/a/0.tar", three())
    source = open_source("memory://tars/*/*.tar")
    assert next(example.key for part in source.parts() for example in part.examples()) == "0/0000"
    source = open_source("memory://tars")
    assert next(example.key for part in source.parts() for example in part.examples()) == "a/0/0000"


def test_tars_of_a_web_server(tmp_path):
    """One that gives parts of files is read from; one that only pours them out is counted."""
    import threading
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    class Handler(SimpleHTTPRequestHandler):
        parts = True

        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, *_):
            pass

        def do_GET(self):
            data = (tmp_path / self.path.lstrip("/")).read_bytes()
            start, stop = 0, len(data)
            if self.parts and self.headers.get("Range"):
                start, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
                start, stop = int(start), min(int(last) + 1 if last else stop, stop)
            self.send_response(206 if self.parts and self.headers.get("Range") else 200)
            if self.parts:
                self.send_header("Accept-Ranges", "bytes")
                self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
                self.send_header("Content-Length", str(stop - start))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data[start:stop])

        do_HEAD = do_GET

    for name in ("0.tar", "1.tar"):
        (tmp_path / name).write_bytes(three())
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}"
        assert outcome(f"{url}/0.tar") == [(f"0/{i:04d}", None) for i in range(3)]
        Handler.parts = False
        assert [problem for _, problem in outcome(f"{url}/1.tar")] == [reasons.CANNOT_READ]
    finally:
        server.shutdown()
        server.server_close()

"""Everything that is ever wrong with a dataset: counted by reason, nothing else lost, no crash, bounded memory."""

import io
import subprocess
import sys
import tarfile
from collections import Counter

import numpy as np
import pytest

import bad_dataset
from dalle_mini.data.encode.filters import Filters, image_problem, keep_captions
from dalle_mini.data.sources import open_source, reasons
from dalle_mini.imaging.decoding import decode_image
from dalle_mini.imaging.problems import BadImage

MAKERS = {"folder": bad_dataset.make_folder, "tars": bad_dataset.make_tars, "parquet": bad_dataset.make_parquet}


def become(source, filters):
    """(captions of each key that is kept, how many are dropped for each reason): the stages as encoding runs them."""
    kept, dropped = {}, Counter()
    for part in source.parts():
        for example in part.examples():
            captions, reason = keep_captions(example, filters)
            if reason is None:
                try:
                    image = decode_image(example.image, filters.max_pixels, lambda w, h: image_problem(w, h, filters))
                    assert image.mode == "RGB"
                except BadImage as error:
                    reason = error.reason
            if reason is None and example.key in kept:
                reason = reasons.DUPLICATE_KEY  # which is found over the whole dataset
            if reason is None:
                kept[example.key] = captions
            else:
                dropped[reason] += 1
    return kept, dropped


@pytest.mark.parametrize("kind", MAKERS)
def test_everything_is_kept_or_counted(tmp_path, kind):
    dataset = MAKERS[kind](tmp_path / "dataset")
    kept, dropped = become(open_source(dataset.source), Filters())
    assert dropped == dataset.dropped
    assert kept == dataset.kept
    assert kept == become(open_source(dataset.source), Filters())[0]


PEAK = """
import resource, sys
from dalle_mini.imaging.decoding import decode_image
from dalle_mini.imaging.problems import BadImage
from dalle_mini.data.sources import open_source

def read(spec):
    seen = bytes_ = 0
    for part in open_source(spec).parts():
        for example in part.examples():
            seen += 1
            bytes_ += len(example.image or b"")
            try:
                decode_image(example.image or b"")
            except BadImage:
                pass
    return seen, bytes_

read(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(*read(sys.argv[2]), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def peak(small, large):
    """(examples, bytes of their pictures, by how many bytes memory grew) of reading a dataset after a small one."""
    done = subprocess.run([sys.executable, "-c", PEAK, str(small), str(large)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return tuple(map(int, done.stdout.split()))


BLOB = 8 << 20  # bytes of a large picture


@pytest.mark.parametrize("kind", ["folder", "tar", "parquet"])
def test_memory_does_not_grow_with_the_dataset(tmp_path, kind):
    """Two hundred MB of large files, and one that is said to have 4 GB."""
    (small, large), count = (tmp_path / "small", tmp_path / "large"), 24
    noise = np.random.default_rng(0).bytes(BLOB)
    if kind == "folder":
        for folder in (small, large):
            folder.mkdir()
        (small / "a.png").write_bytes(bad_dataset.bomb())
        for number in range(count):
            (large / f"{number:02d}.jpg").write_bytes(noise)
        with open(large / "hole.jpg", "wb") as file:
            file.truncate(4 << 30)
    elif kind == "tar":
        small, large = (tmp_path / f"{name}.tar" for name in ("small", "large"))
        with tarfile.open(small, "w") as tar:
            bad_dataset.put(tar, "a.png", bad_dataset.bomb())
        with tarfile.open(large, "w") as tar:
            for number in range(count):
                bad_dataset.put(tar, f"{number:02d}.jpg", noise)
            for number in range(count):  # of one example, which takes none of them
                bad_dataset.put(tar, f"many.{number:02d}.jpg", noise)
            hole = tarfile.TarInfo("hole.jpg")
            hole.size = 4 << 30
            place = tar.offset
        with open(large, "r+b") as file:
            file.seek(place)
            file.write(hole.tobuf())
            file.truncate(place + 512 + hole.size + 1024)
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        small, large = (tmp_path / f"{name}.parquet" for name in ("small", "large"))
        pq.write_table(pa.table({"image": [bad_dataset.bomb()], "text": ["x"]}), small)
        schema = pa.schema([("image", pa.binary()), ("text", pa.string())])
        rows = pa.table({"image": [noise] * count, "text": ["x"] * count}, schema)  # one row group
        pq.write_table(rows, large, use_dictionary=False, compression="none", data_page_size=1 << 20)
    seen, read, grown = peak(small, large)
    assert (seen, read) == (count + {"folder": 1, "tar": 2, "parquet": 0}[kind], count * BLOB)
    assert grown < 8 * BLOB


def test_a_picture_at_the_limit_fits_in_memory():
    """67 million pixels of one colour, in a file of some kB: decoded, and no more than that."""
    from PIL import Image

    Image.new("L", (8192, 8192)).save(file := io.BytesIO(), "PNG", compress_level=1)
    assert decode_image(file.getvalue()).size == (8192, 8192)
    Image.new("1", (8192, 8193)).save(file := io.BytesIO(), "PNG")
    with pytest.raises(BadImage, match="too many pixels"):
        decode_image(file.getvalue())

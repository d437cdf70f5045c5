"""A dataset with everything that is ever wrong with pictures and captions, as a folder, a tar and Parquet.

Each `make_...` writes one into a folder and tells what must become of it with the default `Filters`. One fixture for
all stages: sources and filters give these reasons, and encoding must list the same.
"""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from dalle_mini.data.sources import reasons


@dataclass(frozen=True)
class Item:
    """A picture with its captions' file, and the reason for which it must be dropped, or None."""

    name: str
    suffix: str
    image: bytes | None
    text: bytes | None
    reason: str | None = None
    caption: str | None = None  # what is left of the text, where that is not the text itself


@dataclass
class Dataset:
    """A bad dataset, and what must become of it.

    Attributes:
        source: what to give to `open_source`.
        kept: the captions of each key that must be kept.
        dropped: how many examples must be dropped for each reason; what has no key of its own is counted too.
    """

    source: str
    kept: dict[str, tuple[str, ...]] = field(default_factory=dict)
    dropped: Counter = field(default_factory=Counter)

    @property
    def seen(self) -> int:
        return len(self.kept) + self.dropped.total()

    def add(self, key: str, item: Item) -> None:
        if item.reason:
            self.dropped[item.reason] += 1
        else:
            text = item.caption if item.caption is not None else item.text.decode()
            self.kept[key] = tuple(line for line in text.split("\n") if line)


def photo(seed: int, width: int = 112, height: int = 96) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 7, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def packed(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    image.save(file := io.BytesIO(), kind, **options)
    return file.getvalue()


def bomb(side: int = 30_000) -> bytes:
    """A PNG of some hundred bytes whose header promises side x side pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(100_000)))
        + chunk(b"IEND", b"")
    )


def items() -> list[Item]:
    """In an order in which the good ones lie between the bad ones."""
    whole = packed(photo(0))
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was turned: show rotated by 90 degrees
    clear = photo(3).quantize(16)
    frames = [photo(seed) for seed in (4, 5, 6)]
    return [
        Item("a_good", ".jpg", whole, b"a good picture"),
        Item("b_truncated", ".jpg", whole[: len(whole) // 2], b"a truncated picture", reasons.IMAGE_DAMAGED),
        Item("c_empty", ".jpg", b"", b"an empty file", reasons.EMPTY_FILE),
        Item("d_cmyk", ".jpg", packed(photo(1).convert("CMYK")), b"a picture for print"),
        Item("e_deep", ".png", packed(deep(), "PNG"), b"a picture of 16 bits"),
        Item("f_palette", ".png", packed(clear, "PNG", transparency=0), b"a palette with transparency"),
        Item(
            "g_animated",
            ".gif",
            packed(frames[0], "GIF", save_all=True, append_images=frames[1:]),
            b"an animated picture",
        ),
        Item("h_turned", ".jpg", packed(photo(7), exif=turned), b"a turned picture"),
        Item("i_one_pixel", ".png", packed(photo(8, 1, 1), "PNG"), b"a single pixel", reasons.IMAGE_TOO_SMALL),
        Item("j_bomb", ".png", bomb(), b"a decompression bomb", reasons.TOO_MANY_PIXELS),
        Item("k_svg", ".jpg", b'<svg xmlns="http://www.w3.org/2000/svg"/>', b"a drawing", reasons.NOT_AN_IMAGE),
        Item("l_no_caption", ".jpg", packed(photo(9)), None, reasons.NO_CAPTION),
        Item("m_empty_caption", ".jpg", packed(photo(10)), b" \n\n", reasons.NO_CAPTION),
        Item("n_long_caption", ".jpg", packed(photo(11)), b"so much to tell " * 6400, reasons.CAPTION_TOO_LONG),
        Item("o_latin_1", ".jpg", packed(photo(12)), "a café in Köln".encode("latin-1"), None, "a café in Köln"),
        Item("p_utf_16", ".jpg", packed(photo(13)), "a café in Köln".encode("utf-16"), None, "a café in Köln"),
        Item("q_nul_bytes", ".jpg", packed(photo(14)), b"a \x00nul\x00 byte", None, "a nul byte"),
        Item("r_no_picture", ".jpg", None, b"a lost picture", reasons.NO_IMAGE),
        Item("s_panorama", ".jpg", packed(photo(15, 300, 100)), b"a wide view", reasons.ASPECT_RATIO),
        Item("z_good", ".webp", packed(photo(16), "WEBP"), b"another good picture"),
    ]


def deep() -> Image.Image:
    gray = np.asarray(photo(2).convert("L")).astype(np.uint16)
    return Image.fromarray(gray << 8 | gray)


def make_folder(root: Path) -> Dataset:
    """Pictures in folders, captions beside them. Two pictures share the name `twice`."""
    root.mkdir(parents=True)
    dataset = Dataset(str(root))
    for item in [*items(), Item("several", ".jpg", packed(photo(20)), b"one caption\r\n\r\nanother one\n", None,
                                "one caption\nanother one")]:  # fmt: skip
        folder = root / ("deeper/down" if item.name > "m" else ".")
        folder.mkdir(parents=True, exist_ok=True)
        if item.image is not None:
            (folder / (item.name + item.suffix)).write_bytes(item.image)
        if item.text is not None:
            (folder / f"{item.name}.txt").write_bytes(item.text)
        dataset.add(("deeper/down/" if item.name > "m" else "") + item.name, item)
    for suffix, seed in ((".jpg", 21), (".png", 22)):
        (root / f"twice{suffix}").write_bytes(packed(photo(seed), "PNG"))
    (root / "twice.txt").write_bytes(b"twice the name")
    dataset.kept["twice"] = ("twice the name",)
    dataset.dropped[reasons.DUPLICATE_KEY] += 1
    (root / "folder.jpg").mkdir()  # a folder that is called like a picture: it is looked into, and holds nothing
    (root / "to_a_pipe.jpg").symlink_to("/dev/zero")
    (root / "to_a_pipe.txt").write_bytes(b"a device")
    dataset.dropped[reasons.NO_FILE] += 1
    (root / "to_nowhere.jpg").symlink_to(root / "nowhere.jpg")
    (root / "to_nowhere.txt").write_bytes(b"a broken link")
    dataset.dropped[reasons.CANNOT_READ] += 1
    (root / ".hidden.jpg").write_bytes(b"")
    return dataset


def make_tars(root: Path) -> Dataset:
    """`00000.tar` has all of `items` and paths that leave it; the next is cut in the middle, then one is whole."""
    root.mkdir(parents=True)
    dataset = Dataset(str(root))
    with tarfile.open(root / "00000.tar", "w") as tar:
        for item in items():
            put(tar, item.name + item.suffix, item.image)
            put(tar, f"{item.name}.json", b'{"width": 112}' if item.name < "d" else None)
            put(tar, f"{item.name}.txt", item.text)
            dataset.add(f"00000/{item.name}", item)
        for seed in (21, 22):
            put(tar, "twice.jpg", packed(photo(seed)))
            put(tar, "twice.txt", b"twice the name")
        dataset.kept["00000/twice"] = ("twice the name",)
        dataset.dropped[reasons.DUPLICATE_KEY] += 1
        for name in ("../outside", "/etc/outside", "in/../../outside"):
            put(tar, f"{name}.jpg", packed(photo(23)))
            put(tar, f"{name}.txt", b"a path that leaves")
            dataset.dropped[reasons.LEAVES_FOLDER] += 1
        for name, kind in (("soft", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE), ("pipe", tarfile.FIFOTYPE)):
            link = tarfile.TarInfo(f"{name}.jpg")
            link.type, link.linkname = kind, "/etc/passwd"
            tar.addfile(link)
            put(tar, f"{name}.txt", b"a link")
            dataset.dropped[reasons.NO_FILE] += 1
        device = tarfile.TarInfo("device.jpg")
        device.type, device.devmajor, device.devminor = tarfile.CHRTYPE, 1, 5
        tar.addfile(device)
        dataset.dropped[reasons.NO_FILE] += 1
        put(tar, "last.jpg", packed(photo(24)))
        put(tar, "last.txt", b"the last one")
        dataset.kept["00000/last"] = ("the last one",)

    with tarfile.open(root / "00001.tar", "w") as tar:
        for name in ("one", "two", "three"):
            if name == "three":
                place = tar.offset
            put(tar, f"{name}.jpg", packed(photo(30, 200, 200)))
            put(tar, f"{name}.txt", f"number {name}".encode())
    whole = (root / "00001.tar").read_bytes()
    (root / "00001.tar").write_bytes(whole[: place + 512 + 1000])  # in the middle of the third picture
    dataset.kept |= {"00001/one": ("number one",), "00001/two": ("number two",)}
    dataset.dropped[reasons.CUT_SHORT] += 1

    with tarfile.open(root / "00002.tar", "w") as tar:
        put(tar, "fine.jpg", packed(photo(31)))
        put(tar, "fine.txt", b"a fine picture")
    dataset.kept["00002/fine"] = ("a fine picture",)

    (root / "00003.tar").write_bytes(b"this is no tar at all" * 100)
    dataset.dropped[reasons.DAMAGED] += 1
    return dataset


def put(tar: tarfile.TarFile, name: str, content: bytes | None) -> None:
    if content is not None:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))


def make_parquet(root: Path) -> Dataset:
    """`a.parquet` has all of `items`, in row groups of which the middle one is damaged; `b.parquet` is no Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    root.mkdir(parents=True)
    dataset = Dataset(str(root))
    rows = []
    for item in items():
        text = item.text
        if item.name == "o_latin_1":  # in a table a wrong encoding has become wrong text
            text = "a café in Köln".encode().decode("cp1252").encode()
        elif item.name == "p_utf_16":
            text = "a café in Köln".encode()
        caption = None if text is None else text.decode()
        rows.append({"key": item.name, "image": {"bytes": item.image, "path": None}, "caption": caption})
        dataset.add(item.name, item)
    (root / "beside.jpg").write_bytes(packed(photo(20)))
    for key, path, reason in (
        ("by_path", "beside.jpg", None),
        ("leaves", "../outside.jpg", reasons.LEAVES_FOLDER),
        ("absolute", "/etc/passwd", reasons.LEAVES_FOLDER),
        ("other_place", "s3://bucket/x.jpg", reasons.LEAVES_FOLDER),
        ("gone", "gone.jpg", reasons.CANNOT_READ),
    ):
        rows.append({"key": key, "image": {"bytes": None, "path": path}, "caption": "a picture by its path"})
        dataset.add(key, Item(key, ".jpg", None, b"a picture by its path", reason))
    for seed in (21, 22):
        picture = {"bytes": packed(photo(seed)), "path": None}
        rows.append({"key": "twice", "image": picture, "caption": "twice the name"})
    dataset.kept["twice"] = ("twice the name",)
    dataset.dropped[reasons.DUPLICATE_KEY] += 1
    damaged = [
        {"key": f"damaged{i}", "image": {"bytes": packed(photo(40 + i)), "path": None}, "caption": f"damaged {i}"}
        for i in range(4)
    ]
    dataset.dropped[reasons.DAMAGED] += len(damaged)
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("key", pa.string()), ("image", image), ("caption", pa.string())])
    # The damaged row group lies between the others.
    table = pa.Table.from_pylist([*rows[:10], *damaged, *rows[10:]], schema)
    path = root / "a.parquet"
    options = {"compression": "none", "use_dictionary": False, "write_page_checksum": True}
    with pq.ParquetWriter(path, schema, **options) as writer:
        for start, stop in ((0, 10), (10, 14), (14, len(table))):
            writer.write_table(table.slice(start, stop - start))
    with pq.ParquetFile(path) as file:
        column = file.metadata.row_group(1).column(1)
    with path.open("r+b") as file:
        file.seek(column.data_page_offset + column.total_compressed_size // 2)
        file.write(b"\xff" * 64)  # the page's checksum is no longer right

    (root / "b.parquet").write_bytes(b"PAR1 this is no Parquet PAR1")
    dataset.dropped[reasons.DAMAGED] += 1
    return dataset

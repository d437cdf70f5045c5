"""Damage with a sense of structure: a valid file in, a plausible broken one out. Everything depends on the `Random`."""

from __future__ import annotations

import copy
import gzip
import io
import json
import struct
import tarfile
import zipfile
import zlib
from random import Random
from typing import Any

NUMBERS = (0, 1, -1, 2, 3, 7, 127, 255, 256, 1023, 2**15, 2**16, 2**31 - 1, 2**31, 2**32, 2**53, 2**63, 2**64, 10**18)
NUMBERS += (-(2**31), -(2**63), 10**400, 0.5, -0.0, 1e-300, 1e308, float("inf"), float("nan"))
TEXTS = (
    "",
    " ",
    "a",
    "\0",
    "\n",
    "\x1b[31m",
    "../../x",
    "/etc/passwd",
    "..",
    "C:\\x",
    "é",
    "e\u0301",
    "\ud800",
    "\u202e",
)
TEXTS += (
    "🐌",
    "<script>alert(1)</script>",
    "'\"`",
    "a" * 10_000,
    "1" * 5_000,
    "&amp;" * 2_000,
    "[" * 500,
    "%s%n",
    "null",
)
TEXTS += ("hf://a/b", "file:///etc/passwd", "https://user:secret@host/x", "2020-13-45", "float32", "vqgan", "-", "0x10")


def deep(random: Random) -> Any:
    value: Any = 0
    for _ in range(random.choice((10, 70, 900))):
        value = [value] if random.random() < 0.5 else {"a": value}
    return value


def odd(random: Random) -> Any:
    """A value of any type that JSON has."""
    kind = random.randrange(9)
    if kind == 0:
        return None
    if kind == 1:
        return random.random() < 0.5
    if kind in (2, 3):
        return random.choice(NUMBERS)
    if kind in (4, 5):
        return random.choice(TEXTS)
    if kind == 6:
        return [random.choice(NUMBERS) for _ in range(random.choice((0, 1, 2, 3, 50)))]
    if kind == 7:
        return {random.choice(TEXTS): random.choice(TEXTS) for _ in range(random.choice((0, 1, 3)))}
    return deep(random)


def value(random: Random, found: Any) -> Any:
    """A JSON value with one to three of its places changed: another value, type, name, order or number of items."""
    found = copy.deepcopy(found)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        holder: list[Any] = [found]
        places = [(holder, 0), *_places(found)]
        parent, key = random.choice(places)
        _change(random, parent, key)
        found = holder[0]
    return found


def _places(root: Any, limit: int = 3000) -> list[tuple[Any, Any]]:
    places, waiting = [], [root]
    while waiting and len(places) < limit:
        one = waiting.pop()
        items = one.items() if isinstance(one, dict) else enumerate(one) if isinstance(one, list) else ()
        for key, inner in items:
            places.append((one, key))
            if isinstance(inner, dict | list):
                waiting.append(inner)
    return places


def _change(random: Random, parent: Any, key: Any) -> None:
    try:
        old = parent[key]
    except (KeyError, IndexError):  # an earlier change took it away
        return
    kind = random.randrange(8)
    if kind == 0 and isinstance(parent, dict):
        del parent[key]
    elif kind == 1 and isinstance(parent, dict):
        parent[random.choice(TEXTS)] = parent.pop(key)
    elif kind == 2 and isinstance(old, list) and old:
        parent[key] = old * random.choice((2, 100)) if len(old) < 1000 else old[: len(old) // 2]
    elif kind == 3 and isinstance(old, int | float) and not isinstance(old, bool):
        parent[key] = random.choice((old + 1, old - 1, -old, old * 2, old * 1000, str(old), float(old)))
    elif kind == 4 and isinstance(old, str):
        parent[key] = random.choice((old.upper(), old[:-1], old + random.choice(TEXTS), old * 3, [old]))
    else:
        parent[key] = odd(random)


def json_text(random: Random, data: bytes) -> bytes:
    if random.random() < 0.15:
        return octets(random, data)
    text = json.dumps(value(random, json.loads(data)))
    if random.random() < 0.1:
        text = text.replace(": ", random.choice((": " + "[" * 50_000, ": 1" + "0" * 6_000 + ",", ":: ", ": NaN, ")), 1)
    return text.encode("utf-8", random.choice(("surrogatepass", "replace")))


def json_lines(random: Random, data: bytes) -> bytes:
    lines = data.splitlines()
    number = random.randrange(len(lines))
    if random.random() < 0.2:
        lines.insert(number, random.choice((b"", b"[]", b"null", b"{", b"\xff\xfe", b'"' + b"a" * 100_000 + b'"')))
    else:
        lines[number] = json_text(random, lines[number]).replace(b"\n", b" ")
    return b"\n".join(lines) + random.choice((b"\n", b"", b"\r\n"))


def yaml_text(random: Random, data: bytes) -> bytes:
    import yaml

    kind = random.randrange(6)
    if kind == 0:
        return octets(random, data)
    if kind == 1:
        lines = data.decode().splitlines()
        at = random.randrange(len(lines))
        tail = (
            "!!int x",
            "!!bool x",
            "!!binary x",
            "2020-13-45",
            "*a",
            "&a [*a]",
            "!!python/name:os.system",
            "[" * 3000,
        )
        lines[at] = (
            f"{lines[at].split(':')[0]}: {random.choice((*tail, _aliases(random), '1_000', '0o17', '.inf', '1:60'))}"
        )
        return "\n".join(lines).encode()
    changed = value(random, yaml.safe_load(data))
    try:
        return yaml.safe_dump(changed, allow_unicode=True).encode("utf-8", "surrogatepass")
    except (yaml.YAMLError, RecursionError):
        return json.dumps(changed).encode()


def _aliases(random: Random) -> str:
    text = "&a0 [x]"
    for depth in range(1, random.choice((2, 6, 12))):
        text = f"&a{depth} [{text}{f', *a{depth - 1}' * 9}]"
    return text


def octets(random: Random, data: bytes) -> bytes:
    """Bytes flipped, cut, repeated, inserted, or numbers among them overwritten."""
    found = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 8))):
        at = random.randrange(len(found) + 1)
        kind = random.randrange(7)
        if kind == 0 and at < len(found):
            found[at] ^= 1 << random.randrange(8)
        elif kind == 1:
            del found[at:]
        elif kind == 2:
            del found[at : at + random.choice((1, 2, 4, 100))]
        elif kind == 3:
            found[at:at] = random.choice((b"\0", b"\xff" * 4, b"\n", b"\0" * 600, random.randbytes(16)))
        elif kind == 4:
            found[at:at] = found[max(0, at - 64) : at]
        elif kind == 5:
            form = random.choice(("<I", ">I", "<Q", ">H", "<H"))
            number = struct.pack(form, random.choice((0, 1, 2**15, 2**16 - 1)) * random.choice((1, -1)) % 2**16)
            found[at : at + len(number)] = number if random.random() < 0.5 else b"\xff" * len(number)
        elif at < len(found):
            found[at] = random.choice((0, 0xFF, 0x7F, 0x80, 0x5B, 0x7B))
    return bytes(found)


def text(random: Random, data: bytes) -> bytes:
    """Lines of text with odd ones among them."""
    if random.random() < 0.3:
        return octets(random, data)
    lines = data.split(b"\n")
    for _ in range(random.choice((1, 3))):
        at = random.randrange(len(lines) + 1)
        line = random.choice(TEXTS).encode("utf-8", "surrogatepass")
        lines[at:at] = [random.choice((line, line * 3, b'"', b'",' * 50, b"\t" * 40, lines[at - 1]))]
    return random.choice((b"\n", b"\n", b"\r\n", b"\r")).join(lines)


def safetensors(random: Random, data: bytes) -> bytes:
    if random.random() < 0.3:
        return octets(random, data)
    length = int.from_bytes(data[:8], "little")
    header = json_text(random, data[8 : 8 + length])
    stated = random.choice((len(header), len(header), len(header), len(header) + 1, 2**63, 0))
    return stated.to_bytes(8, "little") + header + data[8 + length :]


def archive(random: Random, data: bytes, inner=octets) -> bytes:
    """A zip file with a member changed, or its own bytes."""
    if random.random() < 0.4:
        return octets(random, data)
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w", random.choice((0, 8))) as new:
        names = old.namelist()
        chosen = random.choice(names)
        for name in names:
            content = old.read(name)
            if name == chosen:
                content = inner(random, content) if random.random() < 0.9 else bytes(5 << 20)
                name = random.choice((name, name, name, "../" + name, name * 2))
            new.writestr(name, content)
    return buffer.getvalue()


_OPCODES = [bytes([code]) for code in (*b"(.012FIJKLMNRSTUVXQ]abcdeghjlopqrstuw}", *range(0x80, 0x99))]


def pickled(random: Random, data: bytes) -> bytes:
    """A pickle with instructions put in: tuples of tuples, memos read again, calls of what was built."""
    if random.random() < 0.4:
        return octets(random, data)
    at = random.randrange(2, len(data))
    some = b"".join(random.choice(_OPCODES) for _ in range(random.choice((1, 3, 10))))
    doubled = b")" + b"2\x86" * random.choice((5, 30, 60))
    repeated = b"K\1q\7" + b"h\7" * random.choice((10, 3000)) + b"t"
    number = b"\x8b" + struct.pack("<i", 60_000) + b"\xff" * 59_999 + b"\x7f"
    added = random.choice((some, doubled, doubled + b"R", repeated, number, b"cos\nsystem\n", b"(" * 2000, b"2" * 5000))
    return data[:at] + added + data[at:]


def torch_zip(random: Random, data: bytes) -> bytes:
    return archive(random, data, pickled)


def png(random: Random, data: bytes) -> bytes:
    """Chunks changed, repeated, left out, put in; checksums right more often than not."""
    chunks, at = [], 8
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        chunks.append([data[at + 4 : at + 8], data[at + 8 : at + 8 + length]])
        at += 12 + length
    for _ in range(random.choice((1, 1, 2))):
        number, kind = random.randrange(len(chunks)), random.randrange(5)
        if kind == 0:
            chunks.insert(number, list(chunks[number]))
        elif kind == 1 and len(chunks) > 1:
            del chunks[number]
        elif kind == 2:
            name = random.choice(
                (b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf", b"tRNS", b"PLTE", b"acTL", b"fcTL", b"gAMA")
            )
            bomb = b"k\0\0" + zlib.compress(bytes(random.choice((10, 3 << 20, 30 << 20))))
            chunks.insert(random.choice((1, number)), [name, random.choice((bomb, b"", b"k\0v", random.randbytes(30)))])
        elif kind == 3 and chunks[number][0] == b"IHDR":
            sides = [random.choice((0, 1, 16, 5000, 20_000, 2**31 - 1)) for _ in range(2)]
            kinds = [random.choice((1, 2, 4, 8, 16)), random.choice((0, 2, 3, 4, 6)), 0, 0, random.choice((0, 1))]
            chunks[number][1] = struct.pack(">IIBBBBB", *sides, *kinds)
        else:
            chunks[number][1] = octets(random, chunks[number][1])
    out = data[:8]
    for name, content in chunks:
        right = zlib.crc32(name + content)
        out += struct.pack(">I", len(content)) + name + content
        out += struct.pack(">I", right if random.random() < 0.9 else 1)
    return out


def jpeg(random: Random, data: bytes) -> bytes:
    """Segments put in, repeated and changed: EXIF, profiles, scans, tables and sizes."""
    if random.random() < 0.4:
        return octets(random, data)
    segment = lambda mark, content: b"\xff" + bytes([mark]) + struct.pack(">H", len(content) + 2) + content  # noqa: E731
    scan = data.rindex(b"\xff\xda")
    exif = b"Exif\0\0" + random.choice((b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08", b"junk", b"")) + random.randbytes(40)
    added = random.choice(
        (
            segment(0xE1, exif),
            segment(0xE2, b"ICC_PROFILE\0\1\1" + random.randbytes(60)),
            segment(0xFE, bytes(60_000)),
            segment(0xED, b"Photoshop 3.0\0" + random.randbytes(60)),
            segment(0xEE, b"Adobe" + random.randbytes(7)),
            data[scan:-2] * random.choice((2, 300)),
            segment(0xC2, struct.pack(">BHHB", 8, random.choice((0, 1, 8000, 65_535)), 8000, 1) + b"\1\x11\0"),
        )
    )
    at = random.choice((2, scan, len(data) - 2))
    return data[:at] + added + data[at:]


def tar(random: Random, data: bytes) -> bytes:
    """Headers with odd names, sizes, kinds and checksums."""
    found = bytearray(data)
    headers = [at for at in range(0, len(found) - 511, 512) if found[at + 257 : at + 262] == b"ustar"]
    if not headers or random.random() < 0.25:
        return octets(random, data)
    at = random.choice(headers)
    kind = random.randrange(5)
    if kind == 0:
        size = random.choice(
            (b"\xff" * 4 + struct.pack(">q", -512), b"\x80" + bytes(3) + b"\x7f" * 8, b"77777777777\0")
        )
        found[at + 124 : at + 136] = size
    elif kind == 1:
        found[at + 156 : at + 157] = random.choice(
            (b"0", b"1", b"2", b"3", b"5", b"6", b"7", b"x", b"g", b"L", b"K", b"S", b"\0")
        )
    elif kind == 2:
        name = random.choice(("../../x.jpg", "/x.jpg", "a" * 100, "é.jpg", ".jpg", "a.b.c.jpg", "x.txt", "x.json"))
        found[at : at + 100] = name.encode()[:100].ljust(100, b"\0")
    elif kind == 3:
        block = tarfile.TarInfo("PaxHeader").tobuf()
        found[at:at] = (
            block[:156]
            + b"x"
            + block[157:]
            + random.choice((b"30 path=a\n", b"-9 size=1\n", b"25 size=-512\n")).ljust(512, b"\0")
        )
    else:
        found[at:at] = bytes(512 * random.choice((1, 2, 5)))
    if random.random() < 0.85 and at + 512 <= len(found):
        found[at + 148 : at + 156] = b" " * 8
        found[at + 148 : at + 156] = b"%06o\0 " % sum(found[at : at + 512])
    return bytes(found)


def tar_gz(random: Random, data: bytes) -> bytes:
    if random.random() < 0.4:
        return octets(random, data)
    return gzip.compress(tar(random, gzip.decompress(data)), 1)


def parquet(random: Random, data: bytes) -> bytes:
    """Bytes of the pages or of the footer; or a table of odd columns."""
    if random.random() < 0.5:
        return octets(random, data)
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(data))
    names = table.column_names
    chosen, rows = random.choice(names), table.num_rows
    column = random.choice(
        (
            lambda: pa.array([2**31 - 1] * rows, pa.int32()).cast(pa.date32()),
            lambda: pa.array([2**62] * rows, pa.timestamp("us", "Nowhere/Land")),
            lambda: pa.array([2**62] * rows, pa.duration("ns")),
            lambda: pa.array([random.randbytes(20)] * rows, pa.binary()),
            lambda: pa.array([[1, 2]] * rows),
            lambda: pa.array([{"bytes": b"x", "path": random.choice(TEXTS[:10])}] * rows),
            lambda: pa.array([float("nan")] * rows),
            lambda: pa.array([None] * rows),
            lambda: pa.array([random.choice(TEXTS).encode("utf-8", "replace").decode()] * rows).dictionary_encode(),
            lambda: pa.array([b"\xff\xfe"] * rows, pa.binary()).view(pa.utf8()),
            lambda: pa.array([b"x" * 200_000] * rows).dictionary_encode(),
            lambda: pa.array([None if i % 2 else "a" for i in range(rows)]),
        )
    )()
    if random.random() < 0.2:
        table = table.drop_columns([chosen])
    elif random.random() < 0.2:
        table = table.append_column(chosen, column)
    else:
        table = table.set_column(names.index(chosen), chosen, column)
    buffer = io.BytesIO()
    pq.write_table(table, buffer, store_schema=random.random() < 0.5, row_group_size=random.choice((1, 4, 1000)))
    return buffer.getvalue()

"""Torch checkpoints written without torch, one pickle instruction after the other, in the order of `torch.save`."""

import struct
import zipfile
from pathlib import Path

import numpy as np

STORAGES = {
    "float64": "DoubleStorage", "float32": "FloatStorage", "float16": "HalfStorage", "bfloat16": "BFloat16Storage",
    "int64": "LongStorage", "int32": "IntStorage", "int16": "ShortStorage", "int8": "CharStorage",
    "uint8": "ByteStorage", "bool": "BoolStorage",
}  # fmt: skip
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


class Code(bytes):
    """Instructions that leave one object on the stack."""


def name(module: str, attribute: str) -> Code:
    return Code(f"c{module}\n{attribute}\n".encode())


def call(function: Code, *arguments) -> Code:
    return Code(function + instructions(arguments) + b"R")


def tensor(key: str, storage: str, size: int, offset: int, shape: tuple, strides: tuple) -> Code:
    """A tensor as torch writes it, whether it makes sense or not. `size`, `offset` and `strides` count values."""
    described = Code(instructions(("storage", name("torch", storage), key, "cpu", size)) + b"Q")
    hooks = call(name("collections", "OrderedDict"))
    return call(name("torch._utils", "_rebuild_tensor_v2"), described, offset, shape, strides, False, hooks)


def instructions(value: object) -> bytes:
    if isinstance(value, Code):
        return value
    if isinstance(value, str):
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
    if isinstance(value, bool) or value is None:
        return {True: b"\x88", False: b"\x89", None: b"N"}[value]
    if isinstance(value, int):
        return b"L%dL\n" % value
    if isinstance(value, tuple | list):
        start, end = (b"(", b"t") if isinstance(value, tuple) else (b"](", b"e")
        return start + b"".join(map(instructions, value)) + end
    if isinstance(value, dict):
        return b"}(" + b"".join(instructions(item) for pair in value.items() for item in pair) + b"u"
    raise TypeError(value)


def program(value: object) -> bytes:
    return b"\x80\x02" + instructions(value) + b"."


def save(path: Path, content: object, *, legacy: bool = False) -> Path:
    """Write a checkpoint. Arrays in `content`, at any depth of its dictionaries, become tensors."""
    arrays: list[np.ndarray] = []

    def with_tensors(value: object) -> object:
        if isinstance(value, dict):
            return {key: with_tensors(item) for key, item in value.items()}
        if not isinstance(value, np.ndarray):
            return value
        arrays.append(value)
        strides = tuple(stride // value.itemsize for stride in np.empty(value.shape, value.dtype).strides)
        return tensor(str(len(arrays) - 1), STORAGES[value.dtype.name], value.size, 0, value.shape, strides)

    content = program(with_tensors(content))
    if legacy:
        system = {"protocol_version": PROTOCOL, "little_endian": True}
        magic = b"\x80\x02\x8a\x0a" + MAGIC.to_bytes(10, "little") + b"."
        keys = [str(i) for i in range(len(arrays))]
        values = [struct.pack("<q", array.size) + array.tobytes() for array in arrays]
        path.write_bytes(b"".join([magic, program(PROTOCOL), program(system), content, program(keys), *values]))
    else:
        save_zip(path, content, {str(i): array.tobytes() for i, array in enumerate(arrays)})
    return path


def save_zip(path: Path, content: bytes, storages: dict[str, bytes], **more: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        for entry, data in more.items():
            archive.writestr(f"archive/{entry}", data)
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key}", data)
    return path

"""Reading torch checkpoints (`pytorch_model.bin`, `*.ckpt`) without torch, and without running what is in them.

`torch.save` writes a pickle that describes the tensors, and their values beside it: since torch 1.6 in a zip archive
(`data.pkl`, and one uncompressed `data/<key>` for each storage), before that all in a row in one file. The pickle is
read by the machine of `torch_pickle`, so the callbacks and hyper-parameters of a training checkpoint do no harm.
"""

import io
import math
import os
import struct
import zipfile
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np

from dalle_mini.errors import UserError, listed
from dalle_mini.runtime import files
from dalle_mini.runtime.limits import Exceeded, check, limits
from dalle_mini.weights.formats.tensors import END, PIECE_BYTES, Tensor, check_shape
from dalle_mini.weights.formats.torch_pickle import Global, Machine, Unmade, View

ZIP_MAGIC = b"PK\x03\x04"
LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the number that older files start with, pickled
# Raised by zipfile and the pickle machine on bytes that make no sense.
DAMAGE = (ValueError, LookupError, TypeError, ArithmeticError, RuntimeError, EOFError, struct.error, zipfile.BadZipFile)
SAVE_AGAIN = "save it again with a newer torch: torch.save(torch.load(old), new)"


class Place(NamedTuple):
    """Where the file has a storage's values, in bytes."""

    start: int
    length: int


def read_torch_file(path: str | Path) -> dict[str, Tensor]:
    """Open a checkpoint: the tensors of its `state_dict`, or of the dictionary that it is, by name.

    Values are read when a tensor is asked for them; what else the file holds is passed over.

    Raises:
        UserError: the file is cut short, damaged, compressed or no torch checkpoint, or a tensor's description does
            not go with the values that the file has; the message names the file and the tensor.
    """
    path = Path(path)
    try:
        with _Stream(path) as stream:
            size = stream.size
            start = stream.read(32)
            stream.seek(0)
            if start.startswith(ZIP_MAGIC):
                content, places = _read_zip(path, stream)
            elif LEGACY_MAGIC in start:
                content, places = _read_legacy(path, stream)
            else:
                kind = "a plain pickle, which is never run" if start[:1] == b"\x80" else "no torch checkpoint"
                raise UserError(f"{path} is {kind}: save the weights as safetensors or with torch.save(state_dict)")
        return _state_dict(path, size, content, places)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"cannot read {path}: {files.reason(error)}") from None
    except Exceeded as error:
        raise UserError(f"{path}: {error}") from None
    except DAMAGE as error:
        reason = " ".join(str(error)[:1000].split())[:100]
        raise UserError(f"{path} is cut short or damaged ({reason}): download or copy it again") from None


class _Stream(io.BufferedReader):
    """A file that gives at most `pickle_bytes` in one reading, whatever a damaged directory asks for."""

    def __init__(self, path: Path):
        super().__init__(cast(io.BufferedReader, files.open_regular(path)).detach())
        self.size = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1) -> bytes:
        rest = max(0, self.size - self.tell())
        count = rest if size is None or size < 0 else min(size, rest)
        check("pickle_bytes", count, "it asks for more than {} bytes at once where it describes its tensors")
        return super().read(count)


def _state_dict(path: Path, size: int, content: object, places: dict[str, Place]) -> dict[str, Tensor]:
    state = content.get("state_dict", content) if isinstance(content, dict) else {}
    tensors: dict[str, Tensor] = {}
    for name, value in state.items() if isinstance(state, dict) else ():
        check("tensor_name", len(name), "a tensor's name has more than {} characters")
        check("tensors", len(tensors) + 1, "it has more than {} tensors")
        if isinstance(value, View):
            tensors[name] = _tensor(path, size, name, value, places)
        elif isinstance(value, Unmade) and isinstance(value.maker, Global) and "_rebuild" in value.maker.name:
            raise UserError(f"{path}: tensor {name} is of a kind that cannot be read ({value.maker.name:.60})")
    if not tensors:
        found = listed(content) if isinstance(content, dict) else "an object of another kind"
        raise UserError(
            f"{path} holds no tensors by name, nor does a state_dict in it, so it is no checkpoint of a model; it has: "
            f"{found or 'nothing'}"
        )
    return tensors


def _read_zip(path: Path, stream: _Stream) -> tuple[object, dict[str, Place]]:
    with zipfile.ZipFile(stream) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        pickles = [name for name in entries if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise UserError(f"{path} is a zip archive but no torch checkpoint: it has {len(pickles)} entries data.pkl")
        prefix = pickles[0].removesuffix("data.pkl")
        for name, entry in entries.items():
            if entry.compress_type != zipfile.ZIP_STORED:
                raise UserError(f"{path}: the entry {name} is compressed; {SAVE_AGAIN}")
        check("pickle_bytes", entries[pickles[0]].file_size, f"the entry {pickles[0]} is larger than {{}} bytes")
        if f"{prefix}byteorder" in entries and archive.read(f"{prefix}byteorder") != b"little":
            raise UserError(f"{path} is not little-endian: save it again on an ordinary machine")
        machine = Machine()
        content = machine.run(io.BytesIO(archive.read(pickles[0])))
    places = {}
    for key in machine.storages:
        values = entries.get(f"{prefix}data/{key}")
        if values is not None:
            # local header: 30 bytes, the last four of which are the lengths of the name and of the padding behind it
            stream.seek(values.header_offset)
            magic, name_length, extra_length = struct.unpack("<4s22xHH", stream.read(30))
            if magic != ZIP_MAGIC:
                raise ValueError(f"{values.filename} is not where the directory says")
            places[key] = Place(values.header_offset + 30 + name_length + extra_length, values.file_size)
    return content, places


def _read_legacy(path: Path, stream: _Stream) -> tuple[object, dict[str, Place]]:
    """[magic number] [protocol version] [system] [content] [keys of storages], then each one's size and values."""
    head = io.BytesIO(stream.read(limits().pickle_bytes))
    machine = Machine()
    try:
        _, _, system, content, keys = (machine.run(head) for _ in range(5))
    except DAMAGE:
        if not head.read(1):  # all of it was read
            check("pickle_bytes", stream.size, "the description of its tensors has more than {} bytes")
        raise
    if not (isinstance(system, dict) and system.get("little_endian") is True):
        raise UserError(f"{path} is not little-endian: save it again on an ordinary machine")
    if not (isinstance(keys, list) and all(isinstance(key, str) for key in keys)):
        raise ValueError("it does not name its storages")
    places, position = {}, head.tell()
    for key in keys:
        storage = machine.storages[key]
        stream.seek(position)
        if len(count := stream.read(8)) < 8:
            break  # cut here: the tensors that have no place are named when they are looked up
        if int.from_bytes(count, "little") != storage.size:
            raise ValueError(f"storage {key} has another size than its description")
        places[key] = Place(position + 8, storage.size * storage.dtype.itemsize)
        position += 8 + places[key].length
    return content, places


def _tensor(path: Path, file_size: int, name: str, view: View, places: dict[str, Place]) -> Tensor:
    storage, offset, shape, strides = view
    try:
        check_shape(shape, storage.dtype)
        numbers = (storage.size, offset, *strides)
        if len(shape) != len(strides) or any(type(n) is not int or not 0 <= n < END for n in numbers):
            raise ValueError("size, offset or strides are not numbers from 0 to 2**62")
    except ValueError as error:
        raise UserError(f"{path} is damaged: tensor {name} has no proper shape ({error})") from None
    place, itemsize = places.get(storage.key, Place(0, 0)), storage.dtype.itemsize
    if storage.size * itemsize > min(place.length, file_size - place.start):
        raise UserError(
            f"{path} is cut short or damaged: it lacks values of tensor {name}, whose storage {storage.key} should "
            f"have {storage.size} values; download or copy it again"
        )
    # Counting values as well stops a stride of 0 from blowing up one value to any size.
    if offset + _span(shape, strides) > storage.size or math.prod(shape) > storage.size:
        raise UserError(
            f"{path} is damaged: tensor {name} of shape {list(shape)} reaches beyond the {storage.size} values of its "
            "storage; download or copy it again"
        )
    steps = strides or (1,)  # a scalar is read as one row

    def rows(start: int, stop: int) -> np.ndarray:
        part = (stop - start, *shape[1:])
        spread = _span(part, steps) * itemsize > max(PIECE_BYTES, 2 * math.prod(part) * itemsize)
        if spread and stop - start > 1:  # its values lie far apart: not all that is between them at once
            return np.concatenate([rows(row, row + 1).copy() for row in range(start, stop)])
        first = place.start + (offset + start * steps[0]) * itemsize
        values = _read(path, name, first, _span(part, steps) * itemsize).view(storage.dtype)
        return np.lib.stride_tricks.as_strided(values, part, [step * itemsize for step in steps], writeable=False)

    return Tensor(shape, storage.dtype, rows)


def _span(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Values from the first to the last one of a tensor, both included."""
    if 0 in shape:
        return 0
    return 1 + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))


def _read(path: Path, name: str, start: int, length: int) -> np.ndarray:
    try:
        with files.open_regular(path) as stream:
            stream.seek(start)
            data = np.fromfile(stream, np.uint8, length)
    except OSError as error:
        raise UserError(f"cannot read tensor {name} of {path}: {files.reason(error)}") from None
    if len(data) < length:
        raise UserError(f"{path} ends inside tensor {name}: it has become shorter since it was opened")
    return data

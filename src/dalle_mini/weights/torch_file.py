"""Reading torch checkpoints (`pytorch_model.bin`, `*.ckpt`) without torch, and without running what is in them.

`torch.save` writes a pickle that describes the tensors, and their values beside it: since torch 1.6 in a zip archive
(`data.pkl`, and one uncompressed `data/<key>` for each storage), before that all in a row in one file. A pickle is a
program for a stack machine, and its instructions import and call functions. The machine here has the same instructions
but imports and calls nothing: it knows by name the few functions that make tensors, and where any other
would be called it leaves a placeholder. So the callbacks and hyper-parameters of a training checkpoint do no harm.
"""

import io
import math
import pickletools
import struct
import zipfile
from pathlib import Path
from typing import BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from dalle_mini.errors import UserError
from dalle_mini.weights.tensors import Tensor

DTYPES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}

MAX_PICKLE_BYTES = 64 << 20  # a tensor's description takes about 100 bytes
ZIP_MAGIC = b"PK\x03\x04"
LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the number that older files start with, pickled
# What zipfile and the pickle machine raise on bytes that make no sense.
DAMAGE = (ValueError, LookupError, TypeError, ArithmeticError, RuntimeError, EOFError, struct.error, zipfile.BadZipFile)
SAVE_AGAIN = "save it again with a newer torch: torch.save(torch.load(old), new)"


class Global(NamedTuple):
    """A class or function that a pickle names. It is never imported."""

    module: str
    name: str


class Storage(NamedTuple):
    """A run of values in the file. `size` counts them, not bytes."""

    key: str
    dtype: np.dtype
    size: int


class View(NamedTuple):
    """A tensor: some values of a storage. Offset and strides count values."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Unmade(NamedTuple):
    """Stands where a pickle wants an object made by a class or function that is not one of ours."""

    maker: object


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
        size = path.stat().st_size
        with path.open("rb") as stream:
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
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except DAMAGE as error:
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"{path} is cut short or damaged ({reason}): download or copy it again") from None


def _state_dict(path: Path, size: int, content: object, places: dict[str, Place]) -> dict[str, Tensor]:
    state = content.get("state_dict", content) if isinstance(content, dict) else {}
    tensors = {}
    for name, value in state.items() if isinstance(state, dict) else ():
        if isinstance(value, View):
            tensors[name] = _tensor(path, size, name, value, places)
        elif isinstance(value, Unmade) and isinstance(value.maker, Global) and "_rebuild" in str(value.maker.name):
            raise UserError(f"{path}: tensor {name} is of a kind that cannot be read ({value.maker.name})")
    if not tensors:
        found = ", ".join(list(content)[:5]) if isinstance(content, dict) else "an object of another kind"
        raise UserError(
            f"{path} holds no tensors by name, nor does a state_dict in it, so it is no checkpoint of a model; it has: "
            f"{found or 'nothing'}"
        )
    return tensors


def _read_zip(path: Path, stream: BinaryIO) -> tuple[object, dict[str, Place]]:
    with zipfile.ZipFile(stream) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        pickles = [name for name in entries if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise UserError(f"{path} is a zip archive but no torch checkpoint: it has {len(pickles)} entries data.pkl")
        prefix = pickles[0].removesuffix("data.pkl")
        for name, entry in entries.items():
            if entry.compress_type != zipfile.ZIP_STORED:
                raise UserError(f"{path}: the entry {name} is compressed; {SAVE_AGAIN}")
        for name, largest in ((pickles[0], MAX_PICKLE_BYTES), (f"{prefix}byteorder", 16)):
            if name in entries and entries[name].file_size > largest:
                raise UserError(f"{path}: the entry {name} is larger than {largest} bytes")
        if f"{prefix}byteorder" in entries and archive.read(f"{prefix}byteorder") != b"little":
            raise UserError(f"{path} is not little-endian: save it again on an ordinary machine")
        machine = Machine()
        content = machine.run(io.BytesIO(archive.read(pickles[0])))
    places = {}
    for key in machine.storages:
        entry = entries.get(f"{prefix}data/{key}")
        if entry is not None:
            # local header: 30 bytes, the last four of which are the lengths of the name and of the padding behind it
            stream.seek(entry.header_offset)
            magic, name_length, extra_length = struct.unpack("<4s22xHH", stream.read(30))
            if magic != ZIP_MAGIC:
                raise ValueError(f"{entry.filename} is not where the directory says")
            places[key] = Place(entry.header_offset + 30 + name_length + extra_length, entry.file_size)
    return content, places


def _read_legacy(path: Path, stream: BinaryIO) -> tuple[object, dict[str, Place]]:
    """[magic number] [protocol version] [system] [content] [keys of storages], then each one's size and values."""
    head = io.BytesIO(stream.read(MAX_PICKLE_BYTES))
    machine = Machine()
    _, _, system, content, keys = (machine.run(head) for _ in range(5))
    if not (isinstance(system, dict) and system.get("little_endian") is True):
        raise UserError(f"{path} is not little-endian: save it again on an ordinary machine")
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
    numbers = (storage.size, offset, *shape, *strides)
    if len(shape) != len(strides) or any(type(number) is not int or number < 0 for number in numbers):
        raise UserError(f"{path} is damaged: tensor {name} has no proper shape")
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
        with path.open("rb") as stream:
            stream.seek(start)
            data = np.fromfile(stream, np.uint8, length)
    except OSError as error:
        raise UserError(f"cannot read tensor {name} of {path}: {error.strerror or error}") from None
    if len(data) < length:
        raise UserError(f"{path} ends inside tensor {name}: it has become shorter since it was opened")
    return data


class Machine:
    """The pickle machine, with data structures of text, numbers and tensors, and placeholders for all other objects.

    Attributes:
        storages: by key, those of which the pickles spoke so far.
    """

    def __init__(self):
        self.storages: dict[str, Storage] = {}

    def run(self, stream: BinaryIO) -> object:
        """Read one pickle to its end and return what it describes.

        Raises:
            ValueError, LookupError, TypeError: it is not a pickle, or not a whole one.
        """
        stack, below_marks, memo = [], [], {}

        def push(value: object) -> None:
            stack.append(value)

        def pop_to_mark() -> list:
            nonlocal stack
            items, stack = stack, below_marks.pop()
            return items

        for opcode, argument, _ in pickletools.genops(stream):
            match opcode.name:
                case "STOP":
                    return stack.pop()
                case "PROTO" | "FRAME" | "READONLY_BUFFER":
                    pass
                case "MARK":
                    below_marks.append(stack)
                    stack = []
                case "POP":
                    stack.pop() if stack else pop_to_mark()
                case "POP_MARK":
                    pop_to_mark()
                case "DUP":
                    push(stack[-1])
                case "PUT" | "BINPUT" | "LONG_BINPUT":
                    memo[argument] = stack[-1]
                case "MEMOIZE":
                    memo[len(memo)] = stack[-1]
                case "GET" | "BINGET" | "LONG_BINGET":
                    push(memo[argument])

                case "NONE":
                    push(None)
                case "NEWTRUE" | "NEWFALSE":
                    push(opcode.name == "NEWTRUE")
                case "EMPTY_TUPLE":
                    push(())
                case "TUPLE":
                    push(tuple(pop_to_mark()))
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    count = int(opcode.name[-1])
                    stack[-count:] = [tuple(stack[-count:])]
                case "EMPTY_LIST":
                    push([])
                case "LIST":
                    push(pop_to_mark())
                case "APPEND":
                    _extend(stack[-2], [stack.pop()])
                case "APPENDS" | "ADDITEMS":
                    items = pop_to_mark()
                    _extend(stack[-1], items)
                case "EMPTY_DICT":
                    push({})
                case "DICT":
                    items = pop_to_mark()
                    push({})
                    _set_items(stack[-1], items)
                case "SETITEM":
                    value, key = stack.pop(), stack.pop()
                    _set_items(stack[-1], [key, value])
                case "SETITEMS":
                    items = pop_to_mark()
                    _set_items(stack[-1], items)

                case "GLOBAL":
                    push(Global(*argument.split(" ", 1)))
                case "STACK_GLOBAL":
                    name, module = stack.pop(), stack.pop()
                    push(Global(module, name))
                case "PERSID":
                    push(Unmade(argument))
                case "BINPERSID":
                    push(self._storage(stack.pop()))
                case "REDUCE":
                    arguments, function = stack.pop(), stack.pop()
                    push(_call(function, arguments))
                case "BUILD":
                    stack.pop()  # attributes, and no object of ours has any
                case "NEWOBJ":
                    stack[-2:] = [Unmade(stack[-2])]
                case "NEWOBJ_EX":
                    stack[-3:] = [Unmade(stack[-3])]
                case "OBJ":
                    push(Unmade(pop_to_mark()[0]))
                case "INST":
                    pop_to_mark()
                    push(Unmade(argument))
                case "EMPTY_SET" | "NEXT_BUFFER" | "EXT1" | "EXT2" | "EXT4":
                    push(Unmade(opcode.name))
                case "FROZENSET":
                    pop_to_mark()
                    push(Unmade(opcode.name))
                case _:  # what is left are the literals: text, bytes and numbers
                    push(argument)
        raise ValueError("it ends too early")

    def _storage(self, description: object) -> Storage | Unmade:
        # Older files have a sixth item: None, unless the storage is itself a part of another.
        match description:
            case ("storage", Global(_, kind), str(key), _, int(size), *part) if kind in DTYPES and not any(part):
                return self.storages.setdefault(key, Storage(key, DTYPES[kind], size))
        return Unmade(description)


def _call(function: object, arguments: object) -> object:
    match function, arguments:
        case Global("collections", "OrderedDict"), ():
            return {}
        case (
            Global("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2"),
            (Storage() as storage, offset, tuple(shape), tuple(strides), *_),
        ):
            return View(storage, offset, shape, strides)
        case Global("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state"), (tensor, *_):
            return tensor
    return Unmade(function)


def _extend(target: object, items: list) -> None:
    if isinstance(target, list):
        target += items


def _set_items(target: object, items: list) -> None:
    """Only under names: other keys occur beside the weights, where they do not matter."""
    if isinstance(target, dict):
        target |= {key: value for key, value in zip(items[::2], items[1::2], strict=True) if isinstance(key, str)}

"""The pickle machine of torch checkpoints: it makes text, numbers and tensors' descriptions, and runs nothing.

A pickle is a program for a stack machine, and its instructions import and call functions. The machine here has the same
instructions but imports and calls nothing: it knows by name the few functions that make tensors, and where any other
would be called it leaves a placeholder.
"""

import pickletools
from typing import BinaryIO, NamedTuple, cast

import ml_dtypes
import numpy as np

from dalle_mini.runtime.limits import check, limits

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


class Stack:
    """The machine's memory: values, those set aside at each mark, and those that are remembered under a number."""

    def __init__(self):
        self.values: list = []
        self.memo: dict[int, object] = {}
        self._below_marks: list[list] = []

    def mark(self) -> None:
        self._below_marks.append(self.values)
        self.values = []

    def pop_to_mark(self) -> list:
        items, self.values = self.values, self._below_marks.pop()
        return items


class Machine:
    """The pickle machine, with data structures of text, numbers and tensors, and placeholders for all other objects.

    Attributes:
        storages: by key, those of which the pickles spoke so far.
    """

    def __init__(self):
        self.storages: dict[str, Storage] = {}
        self._steps = 0

    def run(self, stream: BinaryIO) -> object:
        """Read one pickle to its end and return what it describes.

        Raises:
            ValueError, LookupError, TypeError: it is not a pickle, or not a whole one.
        """
        stack = Stack()
        most = limits().pickle_steps
        for opcode, argument, _ in pickletools.genops(stream):
            self._steps += 1
            if self._steps > most:
                check("pickle_steps", self._steps, "its pickle has more than {} instructions")
            name = opcode.name
            if name == "STOP":
                return stack.values.pop()
            if not (_move(stack, name, argument) or _collect(stack, name) or self._make(stack, name, argument)):
                stack.values.append(argument)  # the other instructions are literals: text, bytes and numbers
        raise ValueError("it ends too early")

    def _make(self, stack: Stack, name: str, argument) -> bool:
        """Run an instruction that imports or makes an object. False where it is another."""
        values = stack.values
        match name:
            case "GLOBAL":
                values.append(Global(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                function, module = values.pop(), values.pop()
                is_text = isinstance(function, str) and isinstance(module, str)  # a tuple may be of 2**40 leaves
                values.append(Global(module, function) if is_text else Unmade(None))
            case "PERSID":
                values.append(Unmade(argument))
            case "BINPERSID":
                values.append(self._storage(values.pop()))
            case "REDUCE":
                arguments, function = values.pop(), values.pop()
                values.append(_call(function, arguments))
            case "BUILD":
                values.pop()  # attributes, and no object of ours has any
            case "NEWOBJ":
                values[-2:] = [Unmade(values[-2])]
            case "NEWOBJ_EX":
                values[-3:] = [Unmade(values[-3])]
            case "OBJ":
                kind = stack.pop_to_mark()[0]
                stack.values.append(Unmade(kind))
            case "INST":
                stack.pop_to_mark()
                stack.values.append(Unmade(argument))
            case "EMPTY_SET" | "NEXT_BUFFER" | "EXT1" | "EXT2" | "EXT4":
                values.append(Unmade(name))
            case "FROZENSET":
                stack.pop_to_mark()
                stack.values.append(Unmade(name))
            case _:
                return False
        return True

    def _storage(self, description: object) -> Storage | Unmade:
        # Older files have a sixth item: None, unless the storage is itself a part of another.
        match description:
            case ("storage", Global(_, kind), str(key), _, int(size), *part) if kind in DTYPES and not any(part):
                return self.storages.setdefault(key, Storage(key, DTYPES[kind], size))
        return Unmade(description)


def _move(stack: Stack, name: str, argument) -> bool:
    """Run an instruction that moves values and makes none. False where it is another."""
    values = stack.values
    match name:
        case "PROTO" | "FRAME" | "READONLY_BUFFER":
            pass
        case "MARK":
            stack.mark()
        case "POP":
            values.pop() if values else stack.pop_to_mark()
        case "POP_MARK":
            stack.pop_to_mark()
        case "DUP":
            values.append(values[-1])
        case "PUT" | "BINPUT" | "LONG_BINPUT":
            stack.memo[argument] = values[-1]
        case "MEMOIZE":
            stack.memo[len(stack.memo)] = values[-1]
        case "GET" | "BINGET" | "LONG_BINGET":
            values.append(stack.memo[argument])
        case _:
            return False
    return True


def _collect(stack: Stack, name: str) -> bool:
    """Run an instruction that makes a constant, a tuple, a list or a dict, or fills one. False where it is another."""
    values = stack.values
    match name:
        case "NONE":
            values.append(None)
        case "NEWTRUE" | "NEWFALSE":
            values.append(name == "NEWTRUE")
        case "EMPTY_TUPLE":
            values.append(())
        case "TUPLE":
            items = stack.pop_to_mark()
            stack.values.append(tuple(items))
        case "TUPLE1" | "TUPLE2" | "TUPLE3":
            count = int(name[-1])
            values[-count:] = [tuple(values[-count:])]
        case "EMPTY_LIST":
            values.append([])
        case "LIST":
            items = stack.pop_to_mark()
            stack.values.append(items)
        case "APPEND":
            _extend(values[-2], [values.pop()])
        case "APPENDS" | "ADDITEMS":
            items = stack.pop_to_mark()
            _extend(stack.values[-1], items)
        case "EMPTY_DICT":
            values.append({})
        case "DICT":
            items = stack.pop_to_mark()
            stack.values.append({})
            _set_items(stack.values[-1], items)
        case "SETITEM":
            value, key = values.pop(), values.pop()
            _set_items(values[-1], [key, value])
        case "SETITEMS":
            items = stack.pop_to_mark()
            _set_items(stack.values[-1], items)
        case _:
            return False
    return True


def _call(function: object, arguments: object) -> object:
    match function, arguments:
        case Global("collections", "OrderedDict"), ():
            return {}
        case (
            Global("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2"),
            (Storage() as storage, offset, tuple(shape), tuple(strides), *_),
        ):
            return View(storage, cast(int, offset), shape, strides)  # the reader of the file checks the numbers
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

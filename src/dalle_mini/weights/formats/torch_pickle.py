"""The pickle machine of torch checkpoints: it makes text, numbers and tensors' descriptions, and runs nothing.

A pickle is a program for a stack machine, and its instructions import and call functions. The machine here has the same
instructions but imports and calls nothing: it knows by name the few functions that make tensors, and where any other
would be called it leaves a placeholder.
"""

import pickletools
from typing import BinaryIO, NamedTuple

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
        stack, below_marks, memo = [], [], {}

        def push(value: object) -> None:
            stack.append(value)

        def pop_to_mark() -> list:
            nonlocal stack
            items, stack = stack, below_marks.pop()
            return items

        most = limits().pickle_steps
        for opcode, argument, _ in pickletools.genops(stream):
            self._steps += 1
            if self._steps > most:
                check("pickle_steps", self._steps, "its pickle has more than {} instructions")
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
                    is_text = isinstance(name, str) and isinstance(module, str)  # a tuple may be of 2**40 leaves
                    push(Global(module, name) if is_text else Unmade(None))
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

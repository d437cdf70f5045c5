"""Reads JSON and YAML of strangers within limits of bytes, depth and numbers, and checks it against a schema.

A schema is a dataclass, or any type that `msgspec.convert` takes. msgspec names the field that is wrong, and imports in
a fiftieth of a second.
"""

import errno
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from dalle_mini.errors import UserError
from dalle_mini.runtime import files
from dalle_mini.runtime.limits import exceeded, limits

T = TypeVar("T")

MAX_INTEGER = 10**36  # every float holds it; a tokenizer's model_max_length is 10**30 where it has none

LONGEST_NUMBER = 100  # characters, in YAML


class ParseError(ValueError):
    """Text that is not what it should be: one line, without the file's name."""


def parse_json(data: bytes | str, *, unique: bool = False) -> Any:
    """The value of a JSON text.

    Args:
        unique: refuse an object with a name that occurs twice; otherwise the last one counts.

    Raises:
        ParseError: the text is no JSON, is nested too deep, or holds a giant number.
    """
    try:
        value = json.loads(data, parse_int=_integer, object_pairs_hook=_unique if unique else None)
    except RecursionError:
        raise ParseError(f"it is nested more than {limits().json_depth} deep") from None
    except ParseError:
        raise
    except ValueError as error:
        raise ParseError(f"not valid JSON: {files.reason(error)}") from None
    check_depth(value)
    return value


def read_json(path: str | os.PathLike, limit: str = "json_bytes") -> Any:
    """The value of a JSON file. Raises UserError, naming the file, where it cannot be read or is none.

    `limit` is the name of the limit of its bytes.
    """
    return _blaming(path, parse_json, read_bytes(path, limit))


def read_object(path: str | os.PathLike, limit: str = "json_bytes") -> dict[str, Any]:
    """As `read_json`, and the value must be an object with named fields."""
    value = read_json(path, limit)
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a JSON {type(value).__name__}, not an object with named fields")
    return value


def convert(value: Any, schema: type[T], *, strict: bool = True) -> T:
    """`value` as the schema's type. Raises ParseError, naming the field, where a value is of another type."""
    import msgspec

    try:
        return msgspec.convert(value, schema, strict=strict)
    except (msgspec.ValidationError, ValueError, OverflowError) as error:
        raise ParseError(files.reason(error).replace("`", "")) from None


def check(value: T, schema: Any) -> T:
    """`value` itself, including the fields that the schema lacks. Raises as `convert`."""
    convert(value, schema)
    return value


def json_lines(path: str | os.PathLike, schema: type[T]) -> Iterator[tuple[T, bytes]]:
    """(value, line) for each line that is JSON of the schema. Other lines, as a kill leaves them, are skipped.

    A million lines take a second or two. Raises OSError where the file cannot be read, or is no file, and UserError
    where a line is longer than a JSON file may be.
    """
    import msgspec

    decode, most = msgspec.json.Decoder(schema).decode, limits().json_bytes
    with files.open_regular(path) as file:
        while line := file.readline(most + 1):
            if len(line) > most:
                raise UserError(f"{path}: a line of more than {files.in_units(most)} ({exceeded('json_bytes')})")
            try:
                yield decode(line), line
            except (ValueError, OverflowError, RecursionError, msgspec.DecodeError):
                continue


def read_record(path: str | os.PathLike, schema: type[T]) -> T:
    """A JSON file as the schema's type. Raises UserError, naming the file and the field."""
    return _blaming(path, convert, read_json(path), schema)


def read_yaml(path: str | os.PathLike) -> Any:
    """The value of a YAML file. Raises UserError, naming the file, where it cannot be read or is none."""
    return _blaming(path, parse_yaml, read_bytes(path, "yaml_bytes"))


def read_bytes(path: str | os.PathLike, limit: str) -> bytes:
    """A file's bytes, as many as the limit of that name allows. Raises UserError, naming the file."""
    try:
        return files.read_bytes(path, getattr(limits(), limit))
    except (OSError, ValueError) as error:  # ValueError: a name with a zero in it
        way_out = f"; {exceeded(limit)}" if getattr(error, "errno", None) == errno.EFBIG else ""
        raise UserError(f"{path} cannot be read ({files.reason(error)}{way_out})") from None


def parse_yaml(text: bytes | str) -> Any:
    """The value of a YAML text of plain types.

    Raises:
        ParseError: the text is no YAML, is nested too deep, is too large once its aliases are written out, or holds a
            value that Python cannot make, such as the date 2020-13-45.
    """
    import yaml

    loader = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_size(node)
        value = loader.construct_document(node)
    except RecursionError:
        raise ParseError(f"it is nested more than {limits().json_depth} deep") from None
    except ParseError:
        raise
    except Exception as error:  # the constructors of dates, numbers and tags raise nearly every type there is
        raise ParseError(f"not plain YAML: {' '.join(str(error).split())[:200] or type(error).__name__}") from None
    finally:
        if loader is not None:
            loader.dispose()
    check_depth(value)
    _check_integers(value)
    return value


def check_depth(value: Any) -> None:
    """Raises ParseError where lists and objects lie deeper inside one another than the limit allows."""
    level, depth = [value], 0
    while level := [one for one in level if isinstance(one, dict | list | tuple)]:
        depth += 1
        if depth > limits().json_depth:
            raise ParseError(f"it is nested more than {limits().json_depth} deep")
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]


def _check_integers(value: Any) -> None:
    """Raises ParseError for a number as YAML can write it and JSON's reader refuses it: 0xffff..., 1:59:59:..."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, int) and abs(one) > MAX_INTEGER:
            raise ParseError("it holds a number that is too large")
        waiting += (
            [*one, *one.values()] if isinstance(one, dict) else one if isinstance(one, list | tuple | set) else []
        )


def _check_size(root: Any) -> None:
    """Raises ParseError where a YAML node has too much in it, each alias written out, or contains itself."""
    sizes: dict[int, int] = {}  # 0 while a node's children are counted
    waiting = [(root, False)]
    while waiting:
        node, counted = waiting.pop()
        if not counted and id(node) in sizes:
            if sizes[id(node)] == 0:
                raise ParseError("an alias stands for something that contains it")
            continue
        if isinstance(node.value, str) and len(node.value) > LONGEST_NUMBER and node.tag.endswith((":int", ":float")):
            raise ParseError(f"a number has {len(node.value)} digits")  # of 1:59:59:... Python's cost grows as a square
        children = node.value if isinstance(node.value, list) else []
        children = [child for one in children for child in (one if isinstance(one, tuple) else (one,))]
        if counted:
            text = len(node.value) // 100 if isinstance(node.value, str) else 0
            sizes[id(node)] = total = 1 + text + sum(sizes[id(child)] for child in children)
            if total > limits().yaml_nodes:
                raise ParseError(f"it holds more than {limits().yaml_nodes} values once its aliases are written out")
        else:
            sizes[id(node)] = 0
            waiting += [(node, True), *((child, False) for child in children)]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        [(name, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ParseError(f"the name {name:.200} occurs twice")
    return values


def _integer(text: str) -> int:
    if len(text) > 38 or abs(number := int(text)) > MAX_INTEGER:
        raise ParseError(f"the number {text[:20]}... of {len(text)} digits is too large")
    return number


def _blaming(path: str | os.PathLike, parse, *arguments):
    try:
        return parse(*arguments)
    except ParseError as error:
        raise UserError(f"{Path(path)}: {error}") from None

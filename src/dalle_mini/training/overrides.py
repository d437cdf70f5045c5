"""`key=value` overrides for dataclass configs, nested keys with dots."""

from __future__ import annotations

import dataclasses
import difflib
import json
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from dalle_mini.errors import UserError

T = TypeVar("T")


def override(config: T, assignments: list[str]) -> T:
    """`config` with each `a.b=value` applied; values are JSON (1e-3, true, null, [1, 2]) or else strings.

    Raises UserError for a key that is not there (naming the nearest) or a value of the wrong type.
    """
    for assignment in assignments:
        path, separator, text = assignment.partition("=")
        if not separator:
            raise UserError(f"{assignment!r}: overrides are written key=value")
        config = _replace(config, path.split("."), text, path)
    return config


def _replace(config: Any, keys: list[str], text: str, path: str) -> Any:
    name = keys[0]
    types = {field.name: get_type_hints(type(config))[field.name] for field in dataclasses.fields(config)}
    if name not in types:
        near = difflib.get_close_matches(name, types, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(types)}"
        raise UserError(f"{path}: no such setting; {hint}")
    if len(keys) == 1:
        return dataclasses.replace(config, **{name: _value(text, types[name], path)})
    inner = getattr(config, name)
    if not dataclasses.is_dataclass(inner):
        raise UserError(f"{path}: {name} has no settings of its own")
    return dataclasses.replace(config, **{name: _replace(inner, keys[1:], text, path)})


def _value(text: str, wanted: Any, path: str) -> Any:
    kinds = get_args(wanted) if isinstance(wanted, UnionType) else (wanted,)
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    if str in kinds and type(value) not in kinds:
        return text  # a folder may be called 2024
    if float in kinds and type(value) is int:
        value = float(value)
    for kind in kinds:
        if get_origin(kind) is tuple and type(value) is list:
            if all(type(item) is get_args(kind)[0] for item in value):
                return tuple(value)
        elif type(value) is kind:
            return value
    raise UserError(f"{path}: {value!r} is not of type {' or '.join(map(_type_name, kinds))}")


def _type_name(kind: Any) -> str:
    if get_origin(kind) is tuple:
        return f"list of {get_args(kind)[0].__name__}"
    return "null" if kind is NoneType else kind.__name__

"""`key=value` overrides for dataclass configs, nested keys with dots."""

from __future__ import annotations

import dataclasses
import difflib
import json
from typing import Any, TypeVar

from dalle_mini.errors import UserError

T = TypeVar("T")


def override(config: T, assignments: list[str]) -> T:
    """`config` with each `a.b=value` applied; values are JSON (1e-3, true, [1, 2]) or else strings.

    Raises UserError for a key that is not there (naming the nearest) or a value of the wrong type.
    """
    for assignment in assignments:
        path, separator, text = assignment.partition("=")
        if not separator:
            raise UserError(f"{assignment!r}: overrides are written key=value")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        config = _replace(config, path.split("."), value, path)
    return config


def _replace(config: Any, keys: list[str], value: Any, path: str) -> Any:
    names = [f.name for f in dataclasses.fields(config)]
    if keys[0] not in names:
        near = difflib.get_close_matches(keys[0], names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(names)}"
        raise UserError(f"{path}: no such setting; {hint}")
    old = getattr(config, keys[0])
    if len(keys) > 1:
        if not dataclasses.is_dataclass(old):
            raise UserError(f"{path}: {keys[0]} has no settings of its own")
        value = _replace(old, keys[1:], value, path)
    elif isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    elif isinstance(old, tuple) and isinstance(value, list):
        value = tuple(value)
    elif old is not None and type(value) is not type(old):
        raise UserError(f"{path}: {value!r} is not of type {type(old).__name__}")
    return dataclasses.replace(config, **{keys[0]: value})

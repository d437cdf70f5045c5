"""Settings from a YAML file and `key=value` overrides, as nested dataclasses."""

import contextlib
import dataclasses
import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from dalle_mini.errors import UserError, shown
from dalle_mini.runtime import parsing
from dalle_mini.runtime.paths import resolve_setting

T = TypeVar("T")

DEEPEST = 16  # sections in one another


def build(kind: type[T], values: Mapping[str, Any], assignments: Sequence[str] = (), base: T | None = None) -> T:
    """The dataclass `kind` from a file's values and `a.b=value` overrides; other values are those of `base`.

    Raises:
        UserError: there is no such key (the message names the nearest), or its value has the wrong type.
    """
    return _build(kind, _merged(values, _nested(assignments)), base)


def read(path: str | os.PathLike) -> dict[str, Any]:
    """The mapping that a YAML file holds. Raises UserError where it is missing or holds none."""
    values = parsing.read_yaml(path)
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UserError(f"{path}: it must hold names and values, such as `loop: {{steps: 1000}}`")
    return values


def override(config: T, assignments: Sequence[str]) -> T:
    """`config` with each `a.b=value` applied.

    Values are JSON (1e-3, true, null, [1, 2]) or else strings, and names in a list need no quotes. Raises as `build`.
    """
    return _build(type(config), _nested(assignments), config)


def _nested(assignments: Sequence[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for assignment in assignments:
        path, separator, text = assignment.partition("=")
        if not separator:
            raise UserError(f"{shown(assignment)}: overrides are written key=value")
        if path.count(".") > DEEPEST:
            raise UserError(f"{path:.60}...: no such setting; none has more than {DEEPEST} points in its name")
        inner: Any = text
        for key in reversed(path.split(".")):
            inner = {key: inner}
        values = _merged(values, inner)
    return values


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    both = {
        key: _merged(old[key], new[key])
        for key in old.keys() & new.keys()
        if isinstance(old[key], Mapping) and isinstance(new[key], Mapping)
    }
    return {**old, **new, **both}


def _build(kind: Any, values: Mapping[str, Any], base: Any = None, prefix: str = "") -> Any:
    """A `kind` with these values; others are those of `base`, or the defaults."""
    fields, hints = {field.name: field for field in dataclasses.fields(kind)}, get_type_hints(kind)
    types = {name: hints[name] for name in fields}
    found = {}
    for name, value in values.items():
        if not isinstance(name, str):
            raise UserError(f"{prefix}{shown(name)}: no such setting; names are text")
        path = prefix + name
        if name not in types:
            near = _nearest(name, kind)
            hint = f"did you mean {near}?" if near else f"known are {', '.join(types)}"
            raise UserError(f"{path}: no such setting; {hint}")
        inner = next((wanted for wanted in _kinds(types[name]) if dataclasses.is_dataclass(wanted)), None)
        if inner is not None and isinstance(value, Mapping):
            found[name] = _build(inner, value, getattr(base, name, None), path + ".")
        elif isinstance(value, Mapping):
            raise UserError(f"{path}.{next(iter(value), '')}: {name} has no settings of its own")
        else:
            value = _value(value, types[name], path)
            try:
                found[name] = resolve_setting(fields[name], value)
            except UserError as error:
                raise UserError(f"{path}: {error}") from None
    try:
        return kind(**found) if base is None else dataclasses.replace(base, **found)
    except UserError as error:
        raise UserError(_with_path(str(error), prefix.removesuffix("."))) from None


def _with_path(message: str, section: str) -> str:
    """The message of a dataclass, which knows its own section at best, with the whole path of the section."""
    outer, _, name = section.rpartition(".")
    if outer and message.startswith(f"{name}."):
        return f"{outer}.{message}"
    return message.replace("config:", f"{section}:", 1) if section and message.startswith("config:") else message


def _nearest(name: str, kind: Any) -> str | None:
    """The setting of `kind` that may be meant: one of its own, or one further in, with the path to it."""
    name = name[:100]  # the search for the nearest takes time by the product of the lengths
    own = [field.name for field in dataclasses.fields(kind)]
    inner = {path.rpartition(".")[2]: path for path in reversed(list(_inner(kind)))}  # the first of a name
    if name in inner:
        return inner[name]
    near = difflib.get_close_matches(name, own, n=1)
    further = [] if near else difflib.get_close_matches(name, inner, n=1, cutoff=0.8)
    return near[0] if near else inner[further[0]] if further else None


def _inner(kind: Any, prefix: str = "") -> Iterator[str]:
    """The paths of all settings below those of `kind` itself, outer ones first."""
    types = get_type_hints(kind)
    sections = {}
    for field in dataclasses.fields(kind):
        inner = next((one for one in _kinds(types[field.name]) if dataclasses.is_dataclass(one)), None)
        if inner is not None:
            sections[f"{prefix}{field.name}."] = inner
    for path, inner in sections.items():
        yield from (path + field.name for field in dataclasses.fields(inner))
    for path, inner in sections.items():
        yield from _inner(inner, path)


def _value(value: Any, wanted: Any, path: str) -> Any:
    """`value`, from a file or an override's text, as one of the wanted types."""
    kinds = _kinds(wanted)
    if isinstance(value, str) and str in kinds and not (value == "null" and NoneType in kinds):
        return value  # a folder may be called 2024
    if isinstance(value, str):
        try:
            value = parsing.parse_json(value)
        except parsing.ParseError:
            if tuple[str, ...] in kinds:
                value = _names(value)
    if float in kinds:
        value = _as_float(value)
    for kind in kinds:
        if get_origin(kind) is tuple and isinstance(value, list | tuple):
            item = get_args(kind)[0]
            items = tuple(_as_float(one) if item is float else one for one in value)
            if all(type(one) is item for one in items):
                return items
        elif type(value) is kind:
            return value
    raise UserError(f"{path}: {shown(value)} is not of type {' or '.join(map(_type_name, kinds))}")


def _as_float(value: Any) -> Any:
    return float(value) if type(value) is int and abs(value) <= parsing.MAX_INTEGER else value


def _names(text: str) -> Any:
    """One name, or, between brackets, several as a file would have them: [tokens, more-tokens]."""
    if text.startswith("["):
        with contextlib.suppress(parsing.ParseError):
            return parsing.parse_yaml(text)
    return (text,)


def _kinds(wanted: Any) -> tuple[Any, ...]:
    return get_args(wanted) if isinstance(wanted, UnionType) else (wanted,)


def _type_name(kind: Any) -> str:
    if get_origin(kind) is tuple:
        return f"list of {get_args(kind)[0].__name__}"
    return "null" if kind is NoneType else kind.__name__

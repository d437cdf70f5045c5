"""Addresses as they may be shown and kept: without what lets others in.

`http://user:password@host/x.tar?X-Amz-Signature=...` opens what it names to whoever reads it. So manifests, records,
pages and messages get it without its user and without the values of its query.
"""

import re
from typing import Any

HIDDEN = "***"

# Each takes a time that grows as the text does: also of a megabyte of letters, or of question marks.
_ADDRESS = re.compile(r"://(?:[^\s/?#]*@)?[^\s'\"<>]*")  # a password may hold quotes
_USER = re.compile(r"(?<=://)(?!\*\*\*@)[^/?#]*@")
_VALUE = re.compile(r"(?<=[?&#])([^=&#?]+)=([^&#]*)")
_SENTENCE = ":;,.)]"  # goes on behind an address


def without_secrets(text: str) -> str:
    """A text in which each address is without user, password and values of its query."""
    return _ADDRESS.sub(_hidden, text) if "://" in text else text


def hidden(value: Any) -> Any:
    """Plain JSON, in which all text is `without_secrets`."""
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, dict):
        return {hidden(name): hidden(one) for name, one in value.items()}
    return [hidden(one) for one in value] if isinstance(value, list | tuple) else value


def hides(value: Any) -> bool:
    """Whether plain JSON holds an address of which a secret was left out."""
    if isinstance(value, dict | list | tuple):
        return any(map(hides, value.values() if isinstance(value, dict) else value))
    return isinstance(value, str) and bool(re.search(r"://\*\*\*@|[?&#][^=&#?]+=\*\*\*", value))


def _hidden(found: re.Match[str]) -> str:
    return _VALUE.sub(_without_value, _USER.sub(f"{HIDDEN}@", found[0]))


def _without_value(found: re.Match[str]) -> str:
    name, value = found.groups()
    return f"{name}={HIDDEN}{value[len(value.rstrip(_SENTENCE)) :]}"

"""The base of the networks' configs: they are read from published files and checked, field by field."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Self, get_type_hints

from dalle_mini.errors import UserError, shown
from dalle_mini.runtime.limits import exceeded, limits

LARGEST = 1e6  # of numbers with a fraction, far beyond use
MOST_ITEMS = 64  # of a list


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# The values that JSON may hold for a field of each type, and their name in an error message.
TYPES = {
    bool: (lambda value: isinstance(value, bool), "true or false"),
    bool | None: (lambda value: value is None or isinstance(value, bool), "true, false or null"),
    int: (_is_int, "a whole number"),
    int | None: (lambda value: value is None or _is_int(value), "a whole number or null"),
    float: (lambda value: isinstance(value, float) or _is_int(value), "a number"),
    float | None: (lambda value: value is None or isinstance(value, float) or _is_int(value), "a number or null"),
    str: (lambda value: isinstance(value, str), "a string"),
    tuple[int, ...]: (
        lambda value: isinstance(value, list | tuple) and all(map(_is_int, value)),
        "a list of whole numbers",
    ),
}


@dataclass(frozen=True)
class Config:
    """The base of the configs. It reads a published `config.json`, whose many foreign keys are passed over.

    Attributes:
        model_type: what a file of this kind says it is; some published ones say nothing.
        positive: fields of which every number must be more than 0.
        limited: by field, the limit of `runtime.limits` for whole numbers in it; for other fields it is `model_rows`.
    """

    model_type: ClassVar[str]
    positive: ClassVar[tuple[str, ...]]
    limited: ClassVar[dict[str, str]] = {}

    def __post_init__(self):
        for name in self.positive:
            value = getattr(self, name)
            numbers = value if isinstance(value, tuple) else () if value is None else (value,)
            if value == () or not all(0 < number < math.inf for number in numbers):
                raise UserError(f"config: {name} must be more than 0, not {shown(value)}")
        for name in (field.name for field in dataclasses.fields(self)):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) > MOST_ITEMS:
                raise UserError(f"config: {name} has {len(value)} items, more than {MOST_ITEMS}")
            for number in value if isinstance(value, tuple) else (value,):
                self._check_size(name, number)

    def _check_size(self, name: str, number: Any) -> None:
        """Check a number against sizes that no honest model has; other values may be anything.

        Raises:
            UserError: the number is larger.
        """
        if isinstance(number, float) and not abs(number) <= LARGEST:
            raise UserError(f"config: {name} must be at most {LARGEST:g}, not {number:g}")
        limit = self.limited.get(name, "model_rows")
        most = getattr(limits(), limit)
        if _is_int(number) and abs(number) > most:
            raise UserError(f"config: {name} must be at most {most}, not {shown(number)} ({exceeded(limit)})")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Read the fields that we know.

        Raises:
            UserError: the value of one has the wrong type, the values do not go together, or it is another model's.
        """
        kind = values.get("model_type")
        if kind not in (None, "", cls.model_type):
            raise UserError(f"config.json: model_type={shown(kind)} is another kind of model than {cls.model_type!r}")
        types = get_type_hints(cls)
        known = {f.name: values[f.name] for f in dataclasses.fields(cls) if f.name in values}
        for name, value in known.items():
            check, wanted = TYPES[types[name]]
            if not check(value):
                raise UserError(f"config.json: {name} must be {wanted}, not {shown(value)}")
        return cls(**known)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

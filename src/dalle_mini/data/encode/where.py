"""`--where "clip_score > 0.28 and watermark < 0.5"`: a condition on a row's columns, parsed and never executed.

Names are columns. There are numbers, 'strings', True and False; `< <= > >= == != in` and `not in` (also chained:
`0.2 < clip_score < 0.4`), lists after `in`, `and or not`, brackets and `+ - * /`. Nothing can be called. A column whose
name is no plain word goes between backticks, as in SQL: `clip-score`.
"""

import ast
import keyword
import math
import operator
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from dalle_mini.errors import UserError, listed

LONGEST = 10_000  # characters
EXAMPLE = "`clip-score`"
_QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|`([^`\n]+)`""")
_COMPARISONS = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.In: lambda value, values: value in values,
    ast.NotIn: lambda value, values: value not in values,
}
_ARITHMETIC = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


@lru_cache(maxsize=64)
def parse(expression: str) -> ast.expr:
    """The condition's tree. Raises UserError where it is no condition, or does more than one may."""
    if len(expression) > LONGEST:
        raise UserError(f"--where has {len(expression)} characters: at most {LONGEST}")
    plain, quoted = _unquoted(expression.strip())
    try:
        tree = ast.parse(plain, mode="eval").body
        _check(tree, expression, plain)
    except SyntaxError as error:
        hint = f"a column whose name is no plain word goes between backticks, such as {EXAMPLE}"
        raise UserError(f"--where {expression!r:.200}: {error.msg} at character {error.offset} ({hint})") from None
    except (ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"--where {expression!r:.200}: cannot be read ({error or type(error).__name__})") from None
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            node.id = quoted.get(node.id, node.id)
    return tree


def _unquoted(expression: str) -> tuple[str, dict[str, str]]:
    """The expression with a stand-in, as long, for each name between backticks; and what they stand for."""
    quoted: dict[str, str] = {}

    def stand_in(match: re.Match) -> str:
        if match[1] is None:  # a text, in which a backtick is one
            return match[0]
        word = f"ǀ{len(quoted)}".ljust(len(match[0]), "ǀ")  # a letter of Khoekhoe
        quoted[word] = match[1]
        return word

    return _QUOTED.sub(stand_in, expression), quoted


def columns(expression: str) -> tuple[str, ...]:
    """The columns that a condition speaks of, sorted. Raises as `parse`."""
    return tuple(sorted({node.id for node in ast.walk(parse(expression)) if isinstance(node, ast.Name)}))


def check_columns(expression: str, known: Iterable[str]) -> None:
    """Raises UserError, naming the columns there are, where the condition speaks of one that is not known."""
    known = sorted(known)
    for name in columns(expression):
        if name not in known:
            there = f"the columns are {listed(known, 30)}" if known else "it has no columns at all"
            if any(not one.isidentifier() or keyword.iskeyword(one) for one in known):
                there += f" (write one that is no plain word between backticks, such as {EXAMPLE})"
            raise UserError(f"--where: the source has no column {name!r}; {there}")


def holds(expression: str, row: Mapping[str, Any]) -> bool | None:
    """Whether the condition is true of a row; None where it cannot be said.

    That is where any column in it is missing, None or NaN, where two types do not compare, or a number is divided by
    zero: then the row is not known to meet the condition.
    """
    tree = parse(expression)
    for name in columns(expression):
        value = row.get(name)
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return None
    try:
        return bool(_value(tree, row))
    except (TypeError, ArithmeticError):
        return None


def _check(node: ast.AST, expression: str, plain: str) -> None:
    match node:
        case ast.BoolOp(values=inner):
            pass
        case ast.Compare(left=left, ops=ops, comparators=rest):
            inner = [left, *rest]
            for op, right in zip(ops, rest, strict=True):
                if type(op) not in _COMPARISONS:
                    raise UserError(f"--where {expression!r:.200}: `is` is not known here; write == or !=")
                if isinstance(op, (ast.In, ast.NotIn)) and not isinstance(right, (ast.List, ast.Tuple, ast.Set)):
                    raise UserError(f"--where {expression!r:.200}: a list such as ['a', 'b'] must follow `in`")
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.UAdd(), operand=operand):
            inner = [operand]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            inner = [left, right]
        case ast.List(elts=inner) | ast.Tuple(elts=inner) | ast.Set(elts=inner):
            pass
        case ast.Name():
            inner = []
        case ast.Constant(value=bool() | int() | float() | str()):
            inner = []
        case _:
            part = ast.get_source_segment(plain, node)
            part = expression.strip()[plain.find(part) :][: len(part)] if part else type(node).__name__
            raise UserError(
                f"--where: {part!r:.80} is not allowed; write comparisons of columns, such as "
                "clip_score > 0.28 and watermark < 0.5"
            )
    for child in inner:
        _check(child, expression, plain)


def _value(node: ast.expr, row: Mapping[str, Any]) -> Any:
    match node:
        case ast.BoolOp(op=ast.And(), values=values):
            return all(_value(value, row) for value in values)
        case ast.BoolOp(values=values):
            return any(_value(value, row) for value in values)
        case ast.Compare(left=left, ops=ops, comparators=rest):
            left = _value(left, row)
            for op, right in zip(ops, rest, strict=True):
                right = _value(right, row)
                if not _COMPARISONS[type(op)](left, right):
                    return False
                left = right
            return True
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return not _value(operand, row)
        case ast.UnaryOp(op=op, operand=operand):
            return -_number(_value(operand, row)) if isinstance(op, ast.USub) else _number(_value(operand, row))
        case ast.BinOp(left=left, op=op, right=right):
            return _ARITHMETIC[type(op)](_number(_value(left, row)), _number(_value(right, row)))
        case ast.List(elts=values) | ast.Tuple(elts=values) | ast.Set(elts=values):
            return [_value(value, row) for value in values]
        case ast.Name(id=name):
            return row[name]
    assert isinstance(node, ast.Constant)  # `_check` lets nothing else through
    return node.value


def _number(value: Any) -> int | float:
    """Numbers only: a string times a number could be of any size, and big whole numbers take any time."""
    if not isinstance(value, (int, float)):
        raise TypeError
    return float(value) if abs(value) > 2**63 else value

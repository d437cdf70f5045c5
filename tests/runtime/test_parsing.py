import dataclasses

import pytest

from dalle_mini.errors import UserError
from dalle_mini.runtime import limits, parsing


def aliases(depth: int) -> str:
    return (
        "&a0 [x]" if depth == 0 else f"&a{depth} [{aliases(depth - 1)}" + f",*a{depth - 1}" * 9 + "]"
    )  # 10**depth values once it is written out


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[" * 50_000, "nested"),
        ("[" * 65 + "]" * 65, "nested more than 64 deep"),
        ('{"a": 1' + "0" * 400 + "}", "401 digits"),
        ('{"a": ' + "9" * 5000 + "}", "5000 digits"),
        ("{", "not valid JSON"),
        (b"\xff", "not valid JSON"),
        ("[" * 50_000 + "]" * 50_000, "nested"),
    ],
)
def test_json_that_is_refused(text, why):
    with pytest.raises(parsing.ParseError, match=why):
        parsing.parse_json(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[" * 2000, "nested"),
        (aliases(10), "100000 values"),
        ("d: 2020-13-45", "not plain YAML"),
        ("d: !!int x", "not plain YAML"),
        ("d: !!bool x", "not plain YAML"),
        ("d: !!python/object/apply:os.system [ls]", "not plain YAML"),
        ("&a [*a]", "contains it"),
        ("a: &a {b: {c: *a}}", "contains it"),
        ("a: [", "not plain YAML"),
        ("a: 1" + ":59" * 50_000, "a number has 150001 digits"),
        ("a: 0x" + "f" * 90, "a number that is too large"),
        ("{0x" + "f" * 90 + ": 1}", "a number that is too large"),
        ("a: &a " + "x" * 100_000 + "\nb: [" + "*a," * 5000 + "]", "more than 100000 values"),
        ("\x00", "not plain YAML"),
    ],
)
def test_yaml_that_is_refused(text, why):
    with pytest.raises(parsing.ParseError, match=why):
        parsing.parse_yaml(text)


def test_honest_texts_are_read():
    assert parsing.parse_json('{"a": [1, 2.5, null, -18446744073709551616]}') == {"a": [1, 2.5, None, -(2**64)]}
    assert parsing.parse_yaml("") is None
    assert parsing.parse_yaml("base: &b {x: 1}\nother: {<<: *b, y: 2}")["other"] == {"x": 1, "y": 2}


@dataclasses.dataclass
class Shard:
    file: str
    rows: int


def test_records_name_file_and_field(tmp_path):
    path = tmp_path / "record.json"
    path.write_text('{"file": "a", "rows": "4"}')
    with pytest.raises(UserError, match=r"record.json: Expected int, got str - at \$.rows"):
        parsing.read_record(path, Shard)
    path.write_text("[]")
    with pytest.raises(UserError, match=r"record.json holds a JSON list, not an object"):
        parsing.read_object(path)
    with pytest.raises(UserError, match="cannot be read"):
        parsing.read_json(tmp_path / "missing")


def test_limits_are_raised_by_who_trusts_a_file(monkeypatch):
    deep = "[" * 100 + "]" * 100
    monkeypatch.setenv(limits.VARIABLE, "")
    limits.raise_limits(json_depth=100)
    assert parsing.parse_json(deep)
    for wrong in ("json_dept=1", "json_depth=many", "json_depth=0", "json_depth"):
        monkeypatch.setenv(limits.VARIABLE, wrong)
        with pytest.raises(UserError, match=f"{limits.VARIABLE}: .*json_dept"):
            limits.limits()

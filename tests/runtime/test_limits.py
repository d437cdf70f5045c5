import dataclasses
from pathlib import Path

from dalle_mini.runtime.limits import Limits

DOCS = Path(__file__).parents[2] / "docs" / "limits.md"


def row(field: dataclasses.Field) -> str:
    return f"| `{field.name}` | {field.default:,} | {field.metadata['guards']} |"


def test_the_docs_hold_every_limit():
    text = DOCS.read_text("utf-8")
    missing = [row(field) for field in dataclasses.fields(Limits) if row(field) not in text]
    assert not missing, f"put into {DOCS.name}:\n" + "\n".join(missing)
    named = [line for line in text.splitlines() if line.startswith("| `")]
    assert len(named) == len(dataclasses.fields(Limits))

import json

import pyarrow
import pyarrow.parquet
import pytest

from dalle_mini import UserError
from dalle_mini.prompts import Entry, read_prompts

ROWS = [{"prompt": "a red apple", "id": "one", "guidance": 3.0}, {"prompt": "ein grüner Apfel", "id": "b-2", "seed": 7}]


def written(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_every_format_says_the_same(tmp_path):
    wanted = [Entry("one", "a red apple", {"guidance": 3.0}), Entry("b-2", "ein grüner Apfel", {"seed": 7})]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)
    table = "id,prompt,guidance,seed,note\none,a red apple,3,,x\n\nb-2,ein grüner Apfel,,7,\n"
    assert read_prompts(written(tmp_path, "p.jsonl", lines)) == wanted
    assert read_prompts(written(tmp_path, "p.csv", table)) == wanted
    assert read_prompts(written(tmp_path, "p.tsv", table.replace(",", "\t"))) == wanted
    assert read_prompts(written(tmp_path, "bom.csv", table.encode("utf-8-sig"))) == wanted
    assert read_prompts(written(tmp_path, "wide.csv", table.encode("utf-16"))) == wanted
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "p.parquet")
    columns = pyarrow.Table.from_pylist(ROWS, pyarrow.schema([("prompt", "string"), ("id", "string")]))
    assert [entry.id for entry in read_prompts(tmp_path / "p.parquet")] == ["one", "b-2"]
    pyarrow.parquet.write_table(columns, tmp_path / "p.parquet")
    assert [entry.prompt for entry in read_prompts(tmp_path / "p.parquet")] == ["a red apple", "ein grüner Apfel"]


def test_text_is_a_prompt_a_line_and_blank_ones_are_passed_over(tmp_path):
    entries = read_prompts(written(tmp_path, "p.txt", "a boat\r\n\n  \n a snail \n" * 6))
    assert [entry.prompt for entry in entries] == ["a boat", "a snail"] * 6
    assert [entry.id for entry in entries][:3] == ["01", "02", "03"]


def test_quoted_fields_may_hold_anything(tmp_path):
    (entry,) = read_prompts(written(tmp_path, "p.csv", 'prompt\n"a ""red"" apple,\nand more"\n'))
    assert entry.prompt == 'a "red" apple,\nand more'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.md", "a", "prompts are read from .txt"),
        ("p.txt", "\n \n", "there is no prompt in it"),
        ("p.txt", b"a boat\nein Apfel\nein gr\xfcner Apfel\n", "line 3 is not UTF-8"),
        ("p.txt", b"a\0b", "zero bytes"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": ', "line 2 is no JSON"),
        ("p.jsonl", '{"caption": "a"}', 'line 1 is no object with a "prompt"'),
        ("p.csv", "caption,id\na,1\n", "no column named prompt, but 'caption', 'id'"),
        ("p.csv", "prompt,prompt\na,1\n", "two columns of one name"),
        ("p.csv", "prompt\na red apple, on a table\n", "line 2 has more fields"),
        ("p.csv", "prompt,id\na,x\nb,y\nc,X\n", "line 2 and line 4 have the same id, 'X'"),
        ("p.parquet", "no parquet", "no Parquet file"),
    ],
)
def test_files_that_make_no_sense_are_refused(tmp_path, name, content, message):
    path = written(tmp_path, name, content)
    with pytest.raises(UserError, match=message) as error:
        read_prompts(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        read_prompts(tmp_path / "p.txt")


def test_what_is_wrong_with_a_row_is_kept_with_it(tmp_path):
    rows = [
        {"prompt": " "},
        {"prompt": 3},
        {"prompt": "a", "id": "../b"},
        {"prompt": "a", "seed": "x"},
        {"prompt": "a"},
    ]
    entries = read_prompts(written(tmp_path, "p.jsonl", "\n".join(map(json.dumps, rows))))
    wanted = ["blank", "no text", "no name of a folder", "seed is 'x'"]
    for number, (entry, text) in enumerate(zip(entries[:4], wanted, strict=True), 1):
        assert f"line {number}" in entry.error and text in entry.error
    assert entries[4] == Entry("5", "a", {})

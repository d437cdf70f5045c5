import json
import os

import pyarrow
import pyarrow.parquet
import pytest

from dalle_mini import UserError
from dalle_mini.results.prompts import Entry, read_prompts
from dalle_mini.runtime import limits

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
    assert [entry.id for entry in entries][:3] == ["000001", "000002", "000003"]


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
        ("p.csv", "", "no column named prompt: it is empty"),
        ("p.csv", "prompt,guidence\na,1\n", "column named 'guidence': call it 'guidance'"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": "a", "ID": 3}', "line 2 has a column named 'ID': call it 'id'"),
        ("p.jsonl", '{"prompt": ' + "[" * 100_000, "line 1 is no JSON"),
        ("p.parquet", "no parquet", "no Parquet file"),
    ],
)
def test_files_that_make_no_sense_are_refused(tmp_path, name, content, message):
    path = written(tmp_path, name, content)
    with pytest.raises(UserError, match=message) as error:
        read_prompts(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_damaged_text_of_a_parquet_file_is_refused(tmp_path):
    buffers = [None, pyarrow.py_buffer(b"\0\0\0\0\2\0\0\0"), pyarrow.py_buffer(b"\xe9\xff")]
    column = pyarrow.Array.from_buffers(pyarrow.string(), 1, buffers)
    pyarrow.parquet.write_table(pyarrow.table({"prompt": column}), tmp_path / "p.parquet")
    with pytest.raises(UserError, match=r"p\.parquet: column prompt cannot be read"):
        read_prompts(tmp_path / "p.parquet")


def test_whole_numbers_may_be_held_as_floats(tmp_path):
    wanted = [Entry("7", "a", {"seed": 3}), Entry("000002", "b", {"top_k": 5})]
    lines = '{"prompt": "a", "id": 7.0, "seed": 3.0}\n{"prompt": "b", "id": null, "seed": null, "top_k": 5.0}'
    assert read_prompts(written(tmp_path, "p.jsonl", lines)) == wanted
    assert read_prompts(written(tmp_path, "p.csv", "prompt,id,seed,top_k\na,7,3.0,\nb,,,5.0\n")) == wanted
    columns = {"prompt": ["a", "b"], "id": [7.0, None], "seed": [3.0, None], "top_k": [None, 5.0]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "p.parquet")
    assert read_prompts(tmp_path / "p.parquet") == wanted
    (entry,) = read_prompts(written(tmp_path, "p.jsonl", '{"prompt": "a", "seed": 3.5}'))
    assert entry.options == {"seed": 3.5}  # which is refused as that prompt's setting


def test_a_number_that_is_anothers_id_is_not_taken(tmp_path):
    lines = '{"prompt": "a", "id": "000002"}\n{"prompt": "b"}\n{"prompt": "c", "id": "000002_"}'
    assert [entry.id for entry in read_prompts(written(tmp_path, "p.jsonl", lines))] == [
        "000002",
        "000002__",
        "000002_",
    ]


def test_text_is_split_at_newlines_alone(tmp_path):
    entries = read_prompts(written(tmp_path, "p.txt", "a red\u2028apple\r\na boat\ra snail\n"))
    assert [entry.prompt for entry in entries] == ["a red\u2028apple", "a boat", "a snail"]


def test_unknown_columns_are_ignored(tmp_path):
    (entry,) = read_prompts(written(tmp_path, "p.csv", "prompt,idx,prompt_id,note,,author\na,1,2,3,4,5\n"))
    assert entry == Entry("000001", "a", {})


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        read_prompts(tmp_path / "p.txt")


def test_what_is_wrong_with_a_row_is_kept_with_it(tmp_path):
    rows = [
        {"prompt": " "},
        {"prompt": 3},
        {"prompt": "a", "id": "../b"},
        {"prompt": "a", "seed": "x"},
        {"prompt": "a \ud800"},
        {"prompt": "a"},
    ]
    entries = read_prompts(written(tmp_path, "p.jsonl", "\n".join(map(json.dumps, rows))))
    wanted = ["blank", "no text", "no name of a folder", "seed is 'x'", "not valid UTF-8"]
    for number, (entry, text) in enumerate(zip(entries[:5], wanted, strict=True), 1):
        assert f"line {number}" in entry.error and text in entry.error
    assert entries[5] == Entry("000006", "a", {})


@pytest.mark.parametrize(
    ("name", "column", "message"),
    [
        ("seed", pyarrow.array([2**31 - 1], pyarrow.int32()).cast(pyarrow.date32()), "column seed holds date32"),
        ("seed", pyarrow.array([1], pyarrow.timestamp("us", tz="UTC+3")), "column seed holds timestamp"),
        ("guidance", pyarrow.array([b"x"]), "column guidance holds binary: a number"),
        ("negative_prompt", pyarrow.array([1]), "column negative_prompt holds int64: text"),
    ],
)
def test_columns_of_parquet_that_can_be_no_option(tmp_path, name, column, message):
    table = pyarrow.table(
        {"prompt": ["a"], name: column, "taken": pyarrow.array([10**7], pyarrow.int32()).cast("date32")}
    )
    pyarrow.parquet.write_table(table, tmp_path / "p.parquet")
    with pytest.raises(UserError, match=rf"p\.parquet: {message}"):
        read_prompts(tmp_path / "p.parquet")
    pyarrow.parquet.write_table(table.drop_columns(name), tmp_path / "p.parquet")
    assert read_prompts(tmp_path / "p.parquet") == [Entry("000001", "a", {})]  # unasked columns do not matter


@pytest.mark.parametrize("kind", ["dictionary", "zeros"])
def test_a_small_parquet_file_of_gigabytes_of_prompts(tmp_path, monkeypatch, kind):
    monkeypatch.setenv(limits.VARIABLE, "prompts_bytes=1000000 parquet_chunk=1000000")
    texts = pyarrow.array(["x" * 100_000] * 100)
    options = {"use_dictionary": kind == "dictionary", "compression": "zstd"}
    pyarrow.parquet.write_table(pyarrow.table({"prompt": texts}), tmp_path / "p.parquet", **options)
    with pytest.raises(UserError, match=r"its prompts are (larger than 976\.6 KiB|out of all proportion)"):
        read_prompts(tmp_path / "p.parquet")


@pytest.mark.parametrize("name", ["p.txt", "p.csv", "p.jsonl", "p.parquet"])
def test_a_pipe_or_a_giant_of_prompts(tmp_path, monkeypatch, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match="it is a pipe or a device"):
        read_prompts(tmp_path / name)
    (tmp_path / name).unlink()
    monkeypatch.setenv(limits.VARIABLE, "prompts_bytes=1000")
    (tmp_path / name).write_bytes(b"x" * 2000)
    with pytest.raises(UserError, match="no Parquet" if name == "p.parquet" else "larger than 1000 bytes"):
        read_prompts(tmp_path / name)


def test_a_parquet_file_whose_name_is_not_utf8(tmp_path):
    with open(os.fsencode(tmp_path) + b"/caf\xe9.parquet", "wb") as file:
        pyarrow.parquet.write_table(pyarrow.table({"prompt": ["a"]}), file)
    assert read_prompts(tmp_path / os.fsdecode(b"caf\xe9.parquet")) == [Entry("000001", "a", {})]

"""Folders that a metadata.csv, .tsv or .jsonl lists: columns, several captions, what is wrong with rows."""

import json
import os
import time
import unicodedata

import pytest

from dalle_mini.data.sources import metadata, open_source, reasons
from dalle_mini.errors import UserError
from dalle_mini.runtime.limits import limits
from small_datasets import PICTURE, examples


@pytest.fixture
def dataset(tmp_path):
    for name in ("a.jpg", "b.jpg", "sub/c.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(PICTURE)
    return tmp_path


def test_csv(dataset):
    (dataset / "metadata.csv").write_text(
        "\ufefffile_name,text,clip_score,nsfw,license,note\n"
        'a.jpg,"a dog,\nand a cat",0.25,false,by,\n'
        "sub/c.jpg,2009,3,True,,1_000\n"
    )
    first, second = examples(open_source(str(dataset)))
    assert (first.key, first.captions, first.image) == ("a", ("a dog,\nand a cat",), PICTURE)
    assert first.columns == {"clip_score": 0.25, "nsfw": False, "license": "by", "note": None}
    assert (second.key, second.captions) == ("sub/c", ("2009",))
    assert second.columns == {"clip_score": 3, "nsfw": True, "license": None, "note": "1_000"}


def test_jsonl_and_tsv_of_several_folders(dataset):
    (dataset / "metadata.tsv").write_text('file_name\tcaption\na.jpg\ta dog, "of course"\nb.jpg\ta cat\n')
    rows = [{"file_name": "c.jpg", "caption": ["a bird", "a wing"], "width": 3}, {"file_name": "d.jpg"}]
    (dataset / "sub" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = examples(open_source(str(dataset)))
    assert [(e.key, e.captions, e.problem) for e in found] == [
        ("a", ('a dog, "of course"',), None),
        ("b", ("a cat",), None),
        ("sub/c", ("a bird", "a wing"), None),
        ("sub/d", (), reasons.CANNOT_READ),
    ]
    assert found[2].columns == {"width": 3}


def test_rows_of_one_picture_are_its_captions(dataset, monkeypatch):
    monkeypatch.setattr(metadata, "PART", 3)
    rows = ["a.jpg,one", "a.jpg,two", "b.jpg,three", "b.jpg,four", "b.jpg,five", "sub/c.jpg,six", "a.jpg,late"]
    (dataset / "metadata.csv").write_text("file_name,caption\n" + "\n".join(rows))
    source = open_source(str(dataset))
    found = examples(source)
    assert [(e.key, e.captions, e.problem) for e in found] == [
        ("a", ("one", "two"), None),
        ("b", ("three", "four", "five"), None),
        ("sub/c", ("six",), None),
        ("a", ("late",), None),  # in another part; over the dataset encoding sees that the key is not new
    ]
    assert [part.size for part in source.parts()] == [2, 2]
    assert source.origin() == open_source(str(dataset)).origin()


def test_parts_begin_where_rows_do(dataset, monkeypatch):
    monkeypatch.setattr(metadata, "PART", 2)
    captions = ['"two\nlines"', "caf\u00e9", '"a ""quote"""', "plain", '"a\n\nb"', "x"]
    rows = "\r\n".join(f"{i}.jpg,{caption}" for i, caption in enumerate(captions))
    (dataset / "metadata.csv").write_text("file_name,caption\r\n" + rows, newline="")
    source = open_source(str(dataset))
    assert len(source.parts()) == 3
    told = ["two\nlines", "café", 'a "quote"', "plain", "a\n\nb", "x"]
    assert [example.captions for example in examples(source)] == [(caption,) for caption in told]
    assert [e.key for e in source.parts()[1].examples()] == ["2", "3"]


def test_rows_that_are_wrong_are_counted_and_the_others_kept(dataset, tmp_path):
    (dataset / "metadata.csv").write_bytes(
        b"file_name,caption,score\n"
        b'a.jpg,"never closed,1\n'
        b"b.jpg,caf\xe9 \x00au lait,2\n"
        b"sub/c.jpg,one,3,too many,values\n"
        b"../outside.jpg,leaves,4\n"
        b"/etc/passwd,absolute,5\n"
        b",no name,6\n"
        b"a.jpg," + b"x" * (limits().text_bytes + 5) + b",7\n"
        b"sub/c.jpg," + b"so long " * 150_000 + b",8\n"
        b"sub/c.jpg,the last,9\n"
    )
    found = examples(open_source(str(dataset)))
    assert [(e.problem, e.captions[:1]) for e in found] == [
        (None, ("never closed,1\n",)),
        (None, ("café \x00au lait",)),
        (reasons.ROW_DAMAGED, ()),
        (reasons.LEAVES_FOLDER, ("leaves",)),
        (reasons.LEAVES_FOLDER, ("absolute",)),
        (reasons.NO_IMAGE, ("no name",)),
        (reasons.FILE_TOO_LARGE, ()),
        (reasons.FILE_TOO_LARGE, ()),
        (None, ("the last",)),
    ]
    assert [found[i].key for i in (0, 1, 8)] == ["a", "b", "sub/c"]
    assert len({e.key for e in found}) == len(found)


def test_json_lines_that_are_wrong(dataset):
    lines = ['{"file_name": "a.jpg", "caption": "\\ud83d half"}', "{", "[1]", "", '{"file_name": "b.jpg"}']
    (dataset / "metadata.jsonl").write_text("\n".join(lines))
    assert [(e.problem, e.captions) for e in examples(open_source(str(dataset)))] == [
        (None, ("\ud83d half",)),
        (reasons.ROW_DAMAGED, ()),
        (reasons.ROW_DAMAGED, ()),
        (None, ()),
    ]


def test_the_first_rows_together_tell_the_columns_of_json_lines(dataset):
    rows = ["{", {"file_name": "a.jpg"}, {"file_name": "b.jpg", "text": "a cat"}]
    (dataset / "metadata.jsonl").write_text("\n".join(row if row == "{" else json.dumps(row) for row in rows))
    _, first, second = examples(open_source(str(dataset)))
    assert (first.captions, second.captions) == ((), ("a cat",))


@pytest.mark.parametrize(("name", "sign"), [("metadata.csv", ","), ("metadata.tsv", "\t")])
def test_usual_mistakes_of_tables(dataset, monkeypatch, name, sign):
    """Blank lines, spaces around names, trailing commas and commas in captions without quotes, in two parts."""
    monkeypatch.setattr(metadata, "PART", 3)
    rows = [" file_name , text ,", "a.jpg,a dog,", "", 'b.jpg,"two\nlines",,', "c.jpg,a cat, and a dog", "d.jpg,x,y,z"]
    (dataset / name).write_text("\n" + "\n".join(rows).replace(",", sign))
    found = examples(open_source(str(dataset)))
    assert [(e.key, e.captions, e.problem) for e in found] == [
        ("a", ("a dog",), None),
        ("b", ("two\nlines",), None),
        (f"{name}:7", (), reasons.ROW_DAMAGED),
        (f"{name}:8", (), reasons.ROW_DAMAGED),
    ]
    kind = {",": "comma", "\t": "tab"}[sign]
    assert found[2].detail == f"3 values for 2 columns: a {kind} in a caption needs quotes around it"
    assert found[3].detail.startswith("4 values")


def test_image_root_is_where_paths_lead(dataset, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    lines = [{"path": str(dataset / "a.jpg"), "title": "A dog", "description": "It barks"}, {"path": "../etc/passwd"}]
    (elsewhere / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    first, second = examples(open_source(str(elsewhere), image_root=str(dataset)))
    assert (first.image, first.captions) == (PICTURE, ("A dog. It barks",))
    assert second.problem == reasons.LEAVES_FOLDER
    closed = examples(open_source(str(elsewhere)))
    assert [example.problem for example in closed] == [reasons.LEAVES_FOLDER] * 2


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b"file_name,label\na.jpg,1\n", {}, r"--caption-column: file_name, label"),
        (b"file_name,caption\na.jpg,x\n", {"caption_column": "text"}, "--caption-column is 'text'; the columns are"),
        (b"file_name,caption\na.jpg,x\n", {"image_column": "x"}, "--image-column is 'x'; the columns are"),
        (b"name,caption\na.jpg,x\n", {}, "--image-column: name, caption"),
        ("file_name,caption\n".encode("utf-16"), {}, "UTF-16; save it as UTF-8"),
        (b"file_name,caption\ra.jpg,x\r", {}, "its lines end in CR alone; save it with line ends of LF"),
        (b"", {}, "is empty: its first line must name the columns"),
        (b"\n,,\n", {}, "is empty: its first line must name the columns"),
        (b"file_name,text,text\na.jpg,1,2\n", {}, "two of its columns are called 'text': rename one"),
        (b"file_name;text\na.jpg;x\n", {}, "commas must separate its columns, not ';': it begins with file_name;text"),
    ],
)
def test_columns_that_are_not_clear(dataset, content, options, message):
    (dataset / "metadata.csv").write_bytes(content)
    with pytest.raises(UserError, match=rf"metadata\.csv.*{message}"):
        open_source(str(dataset), **options)


def test_an_image_root_that_is_no_folder(dataset, tmp_path):
    (dataset / "metadata.csv").write_text("file_name,caption\na.jpg,x\n")
    for root in (str(tmp_path / "nowhere"), str(dataset / "a.jpg")):
        with pytest.raises(UserError, match=rf"--image-root is '{root}': there is no such folder"):
            open_source(str(dataset), image_root=root)


def test_json_lines_without_any(dataset):
    (dataset / "metadata.jsonl").write_text("[]\n\n")
    with pytest.raises(UserError, match=r"metadata\.jsonl: there is no row in it"):
        open_source(str(dataset))


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_that_are_composed_otherwise_than_on_disk(tmp_path, form):
    """As a Mac writes names of files, and a spreadsheet those in a table."""
    other = "NFC" if form == "NFD" else "NFD"
    folder = tmp_path / unicodedata.normalize(form, "Fotos für uns")
    folder.mkdir()
    (folder / unicodedata.normalize(form, "café.jpg")).write_bytes(PICTURE)
    name = unicodedata.normalize(other, "Fotos für uns/café.jpg")
    (tmp_path / "metadata.csv").write_text(f"file_name,text\n{name},a cup\n", "utf-8")
    (example,) = examples(open_source(str(tmp_path)))
    assert (example.problem, example.image) == (None, PICTURE)
    before = open_source(str(tmp_path)).origin()
    (folder / unicodedata.normalize(form, "café.jpg")).write_bytes(PICTURE + b"more")
    assert open_source(str(tmp_path)).origin() != before


def test_a_long_number_is_looked_through_once(tmp_path):
    (tmp_path / "a.jpg").write_bytes(PICTURE)
    row = {"file_name": "a.jpg", "text": "one", "code": "1" * 500_000 + "x"}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row))
    began = time.process_time()
    (example,) = examples(open_source(str(tmp_path)))
    assert example.columns["code"] == row["code"] and time.process_time() - began < 10


@pytest.mark.parametrize("name", ["metadata.csv", "a.tar", "b.tar.gz", "c.parquet"])
def test_a_pipe_in_the_place_of_a_table_or_an_archive(tmp_path, name):
    os.mkfifo(tmp_path / name)
    try:
        found = [example.problem for part in open_source(str(tmp_path)).parts() for example in part.examples()]
    except UserError as error:
        assert reasons.NO_FILE in str(error)
    else:
        assert found == [reasons.NO_FILE]


def test_a_caption_of_a_novel_and_a_line_of_commas(dataset):
    """csv's own limit of a field is an eighth of a row's; trailing commas once took the square of their number."""
    (dataset / "metadata.csv").write_text(f"file_name,text\na.png,{'word ' * 100_000}\nb.png,b{',' * 400_000}\n")
    before = time.process_time()
    novel, commas = examples(open_source(str(dataset)))
    assert time.process_time() - before < 5
    assert len(novel.captions[0]) == 500_000 and commas.captions == ("b",)

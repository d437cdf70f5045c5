"""Folders of pictures with texts beside them: several captions, columns, keys, parts, links, any file system."""

import os
import unicodedata

import pytest

from dalle_mini.data.sources import files, folder, open_source, reasons
from dalle_mini.errors import UserError
from dalle_mini.runtime.limits import limits
from small_datasets import PICTURE, examples


def fill(root, names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(PICTURE if files.suffix(name) in files.IMAGE_SUFFIXES else name.encode())


def test_captions_columns_and_keys(tmp_path):
    fill(tmp_path, ["b/2.JPG", "b/2.txt", "a.png", "a-b.png", "a.txt", "notes.md", "c.d.jpg", "c.d.txt", "e.jpg"])
    (tmp_path / "a.json").write_text('{"clip_score": 0.3, "exif": {"x": 1}, "caption": "not this one"}')
    (tmp_path / "e.json").write_text('{"caption": "of the JSON"}')
    (tmp_path / "a.txt").write_text("one\n two \n")
    found = {example.key: example for example in examples(open_source(str(tmp_path)))}
    assert list(found) == ["a", "a-b", "c.d", "e", "b/2"]
    assert found["a"].captions == ("one", " two ")
    assert found["a"].columns == {"clip_score": 0.3}
    assert found["a-b"].captions == ()
    assert found["e"].captions == ("of the JSON",)
    assert found["b/2"].captions == ("b/2.txt",)
    assert all(example.image == PICTURE and example.problem is None for example in found.values())
    told = {example.key: example for example in examples(open_source(str(tmp_path), caption_column="caption"))}
    assert told["a"].captions == ("not this one",)


def test_one_caption_of_two_lines_as_img2dataset_writes_files(tmp_path):
    fill(tmp_path, ["0.jpg"])
    (tmp_path / "0.txt").write_text("a dog\nand a cat")
    (tmp_path / "0.json").write_text('{"caption": "a dog\\nand a cat", "key": "0"}')
    assert examples(open_source(str(tmp_path)))[0].captions == ("a dog\nand a cat",)


def test_parts_are_the_same_however_often_they_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "PART", 3)
    fill(tmp_path, [f"{i % 2}/{i}.{end}" for i in range(10) for end in ("jpg", "txt")])
    source, again = open_source(str(tmp_path)), open_source(str(tmp_path))
    assert [part.size for part in source.parts()] == [3, 3, 3, 1]
    assert [part.name for part in source.parts()] == ["000000", "000001", "000002", "000003"]
    assert source.parts() == again.parts()
    assert source.origin() == again.origin()
    keys = [example.key for example in examples(source)]
    assert keys == [f"0/{i}" for i in (0, 2, 4, 6, 8)] + [f"1/{i}" for i in (1, 3, 5, 7, 9)]
    assert [e.key for e in source.parts()[1].examples()] == [e.key for e in source.parts()[1].examples()] == keys[3:6]
    fill(tmp_path, ["another.jpg"])
    assert open_source(str(tmp_path)).origin() != source.origin()


def test_a_broken_file_does_not_take_a_good_one_of_its_name_with_it(tmp_path):
    """Which of two with one key counts is decided over the whole dataset, among those that are kept."""
    fill(tmp_path, ["a.jpg", "a.png", "a.txt"])
    (tmp_path / "a.jpg").write_bytes(b"")
    assert [(example.key, example.problem) for example in examples(open_source(str(tmp_path)))] == [
        ("a", reasons.EMPTY_FILE),
        ("a", None),
    ]


def test_large_files_are_not_read(tmp_path, monkeypatch):
    fill(tmp_path, ["a.jpg", "a.txt", "b.jpg", "b.txt"])
    with open(tmp_path / "a.jpg", "wb") as file:
        file.truncate(limits().picture_bytes + 1)
    with open(tmp_path / "b.txt", "wb") as file:
        file.truncate(limits().text_bytes + 1)
    first, second = examples(open_source(str(tmp_path)))
    assert (first.problem, first.image, first.captions) == (reasons.FILE_TOO_LARGE, None, ("a.txt",))
    assert (second.problem, second.image) == (reasons.FILE_TOO_LARGE, None)


def test_links_to_folders_are_followed_but_not_in_a_circle(tmp_path):
    fill(tmp_path / "disk", ["x.jpg", "x.txt"])
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "data").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "round").symlink_to(tmp_path / "dataset")
    keys = [example.key for example in examples(open_source(str(tmp_path / "dataset")))]
    assert keys == ["data/x"]


def test_a_pipe_is_no_picture(tmp_path):
    fill(tmp_path, ["a.jpg", "b.txt"])
    os.mkfifo(tmp_path / "b.jpg")
    assert [example.problem for example in examples(open_source(str(tmp_path)))] == [None, reasons.NO_FILE]


def test_names_that_are_no_text(tmp_path):
    fill(tmp_path, ["a.jpg"])
    name = os.fsencode(tmp_path) + b"/caf\xe9.jpg"
    with open(name, "wb") as file:
        file.write(PICTURE)
    keys = [example.key for example in examples(open_source(str(tmp_path)))]
    assert keys == ["a", "caf\\udce9"]
    "".join(keys).encode()


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_any_file_system(tmp_path, scheme):
    import fsspec

    if scheme == "memory":
        fs, root = fsspec.filesystem("memory"), f"/{tmp_path.name}"
        for name, data in (("a.jpg", PICTURE), ("a.txt", b"one\ntwo"), ("b/c.jpg", b""), ("b/c.txt", b"three")):
            fs.pipe(f"{root}/{name}", data)
        url = f"memory:/{root}"
    else:
        fill(tmp_path, ["a.jpg", "b/c.txt"])
        (tmp_path / "a.txt").write_bytes(b"one\ntwo")
        (tmp_path / "b/c.jpg").write_bytes(b"")
        url = tmp_path.as_uri()
    first, second = (example for part in open_source(url).parts() for example in part.examples())
    assert (first.key, first.captions, first.image) == ("a", ("one", "two"), PICTURE)
    assert (second.key, second.problem) == ("b/c", reasons.EMPTY_FILE)


def test_a_split_is_a_folder(tmp_path):
    fill(tmp_path, ["train/a.jpg", "test/b.jpg"])
    assert [example.key for example in examples(open_source(str(tmp_path), split="train"))] == ["a"]
    with pytest.raises(UserError, match="--split is 'all', and there is no such folder"):
        open_source(str(tmp_path), split="all")


def test_a_link_to_itself_costs_one_picture(tmp_path):
    fill(tmp_path, ["a.jpg", "a.txt", "b.txt", "c/d.jpg"])
    (tmp_path / "b.jpg").symlink_to("b.jpg")
    (tmp_path / "c/e.jpg").symlink_to("f.jpg")
    (tmp_path / "c/f.jpg").symlink_to("e.jpg")
    found = [(example.key, example.problem) for example in examples(open_source(str(tmp_path)))]
    gone = reasons.CANNOT_READ
    assert found == [("a", None), ("b", gone), ("c/d", None), ("c/e", gone), ("c/f", gone)]


def test_links_that_form_a_lattice(tmp_path, caplog):
    """Twenty folders with two links each to the next would be a million paths."""
    for level in range(20):
        fill(tmp_path / f"{level:02d}", ["x.jpg"])
        for side in "ab":
            (tmp_path / f"{level:02d}" / side).symlink_to(tmp_path / f"{level + 1:02d}")
    fill(tmp_path / "20", ["x.jpg"])
    found = examples(open_source(str(tmp_path / "00")))
    assert 20 < len(found) <= 21 * files.MOST_VISITS and all(example.problem is None for example in found)
    assert "links lead there in more than 16 ways" in caplog.text


@pytest.mark.parametrize("ending", [".txt", ".json"])
def test_captions_are_no_links_to_what_else_is_here(tmp_path, ending):
    fill(tmp_path / "dataset", ["a.jpg", "b.jpg", "texts/b" + ending])
    (tmp_path / "secret").write_text('{"caption": "my password"}')
    (tmp_path / "dataset" / f"a{ending}").symlink_to(tmp_path / "secret")
    (tmp_path / "dataset" / f"b{ending}").symlink_to("texts/b" + ending)
    found = {example.key: example for example in examples(open_source(str(tmp_path / "dataset")))}
    assert (found["a"].problem, found["a"].captions) == (reasons.LEAVES_FOLDER, ())
    assert found["b"].problem is None
    (allowed, *_) = examples(open_source(str(tmp_path / "dataset"), image_root=str(tmp_path)))
    assert allowed.problem is None and "my password" in allowed.captions[0]


def test_links_to_pictures_and_their_captions_elsewhere(tmp_path):
    """As the Hub's cache has them, and farms of links that people make."""
    fill(tmp_path / "blobs", ["1.jpg", "2.txt"])
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "a.jpg").symlink_to(tmp_path / "blobs" / "1.jpg")
    (tmp_path / "dataset" / "a.txt").symlink_to(tmp_path / "blobs" / "2.txt")
    (example,) = examples(open_source(str(tmp_path / "dataset")))
    assert (example.problem, example.captions) == (None, ("2.txt",))


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_caption_whose_name_is_composed_otherwise(tmp_path, form):
    other = "NFC" if form == "NFD" else "NFD"
    name = unicodedata.normalize(form, "café")
    fill(tmp_path, [f"{name}.jpg", "b.jpg"])
    (tmp_path / f"{unicodedata.normalize(other, 'café')}.txt").write_text("a cup")
    found = {example.key: example for example in examples(open_source(str(tmp_path)))}
    assert found[name].captions == ("a cup",) and len(found) == 2


def test_a_number_of_any_length_in_json(tmp_path):
    fill(tmp_path, ["a.jpg"])
    (tmp_path / "a.json").write_text('{"caption": "a dog", "n": %s, "m": 7}' % ("9" * 5000))
    (example,) = examples(open_source(str(tmp_path)))
    assert example.captions == ("a dog",) and example.columns == {"n": float("inf"), "m": 7}


def test_folders_too_deep_for_any_path_are_passed_over(tmp_path, caplog):
    deep = os.open(tmp_path, os.O_RDONLY)
    for _ in range(20):  # 255 bytes each: a path has 4096
        os.mkdir("n" * 255, dir_fd=deep)
        outer, deep = deep, os.open("n" * 255, os.O_RDONLY, dir_fd=deep)
        os.close(outer)
    os.close(deep)
    fill(tmp_path, ["a.png"])
    assert [example.key for example in examples(open_source(str(tmp_path)))] == ["a"]
    assert "too deep" in caplog.text

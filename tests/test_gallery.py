"""tools/inference/gallery.py: mistakes are one line, before anything is drawn."""

import importlib.util
from pathlib import Path

import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[1] / "tools" / "inference" / "gallery.py"


@pytest.fixture(scope="module")
def gallery():
    spec = importlib.util.spec_from_file_location("gallery", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: out"),
        (["."], "is a folder: name the PNG to write"),
        (["file/grid.png"], "file/grid.png: cannot be written"),
        (["/proc/nowhere/grid.png"], "/proc/nowhere/grid.png: cannot be written"),
        (["x" * 300], "cannot be written (File name too long): name another place"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_drawn(gallery, arguments, message, tmp_path, monkeypatch, capsys):
    def load(model):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(gallery.DalleMini, "from_pretrained", load)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert gallery.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_gallery(gallery, golden_bundle, tmp_path):
    out = tmp_path / "new" / "grid.png"
    assert gallery.main([str(out), "a red apple", "--model", str(golden_bundle)]) == 0
    assert Image.open(out).width > gallery.SIDE
    assert [path.name for path in out.parent.iterdir()] == ["grid.png"]

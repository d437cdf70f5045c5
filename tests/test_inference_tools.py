"""tools/inference: the scripts' mistakes are one line, before anything is drawn; the notebook runs."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

TOOLS = Path(__file__).parents[1] / "tools" / "inference"


@pytest.fixture
def gallery(monkeypatch):
    monkeypatch.syspath_prepend(TOOLS)
    return importlib.import_module("gallery")


@pytest.fixture
def batch(monkeypatch):
    pytest.importorskip("pyarrow")
    monkeypatch.syspath_prepend(TOOLS)
    return importlib.import_module("batch")


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


def test_a_batch_and_its_best(batch, golden_bundle, tmp_path, capsys):
    prompts = tmp_path / "prompts.csv"
    prompts.write_text("id,prompt,seed\na,a red apple,1\nb,a snail,2\nc,a boat,x\n")
    arguments = [str(prompts), str(tmp_path / "drawn"), "--model", str(golden_bundle), "--candidates", "2"]
    assert batch.main([*arguments, "--best", "1"]) == 0
    sheet = Image.open(tmp_path / "drawn" / batch.SHEET)
    assert "2 drawn, 0 were there, 1 failed" in capsys.readouterr().out
    assert batch.main([*arguments, "--best", "5"]) == 0
    assert "0 drawn, 2 were there, 1 failed" in capsys.readouterr().out
    assert Image.open(tmp_path / "drawn" / batch.SHEET).size == sheet.size
    assert batch.main([str(tmp_path / "none.csv"), str(tmp_path / "x")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.slow
def test_the_notebook_runs():
    cells = json.loads((TOOLS / "pipeline.ipynb").read_text("utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})

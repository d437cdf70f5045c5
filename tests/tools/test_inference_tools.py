"""tools/inference: the scripts' mistakes are one line, before anything is drawn; the notebook runs."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from dalle_mini.generation.engine import Result
from dalle_mini.results.write import write_result
from dalle_mini.settings import GenerationSettings

TOOLS = Path(__file__).parents[2] / "tools" / "inference"


@pytest.fixture
def showcase(monkeypatch):
    monkeypatch.syspath_prepend(TOOLS)
    return importlib.import_module("showcase")


@pytest.fixture
def batch(monkeypatch):
    pytest.importorskip("pyarrow")
    monkeypatch.syspath_prepend(TOOLS)
    return importlib.import_module("batch")


def draw(folder, prompts, candidates):
    """A folder as `dalle-mini generate` writes it, the best picture the lightest."""
    for prompt in prompts:
        pictures = [Image.new("RGB", (64, 64), (250 - 10 * number,) * 3) for number in range(candidates)]
        scores = [9.5 - number for number in range(candidates)]
        result = Result(prompt, pictures, scores, None, list(range(candidates)), {}, GenerationSettings())
        write_result(result, folder, {})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["drawn"], "missing: out"),
        (["nowhere", "a.png"], "nowhere: no folders with a results.json: let `dalle-mini generate --output nowhere`"),
        (["drawn", "drawn"], "drawn: is a folder: name the PNG to write"),
        (["drawn", "file/a.png"], "file/a.png cannot be written"),
        (["damaged", "a.png"], "damaged/x/results.json: it or an image beside it is damaged"),
        (["drawn", "a.png", "--prompts", "a pear"], "drawn: nothing is drawn there of 'a pear'"),
    ],
)
def test_a_showcase_s_mistakes_are_one_line(showcase, arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    draw(Path("drawn"), ["a red apple"], 1)
    Path("damaged/x").mkdir(parents=True)
    Path("damaged/x/results.json").write_text('{"prompt": "x", "pictures": [{"file": "01.png", "score": 1}]}')
    Path("file").write_text("")
    assert showcase.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged", "drawn", "file"]


def test_a_showcase_has_a_card_for_each_prompt(showcase, tmp_path):
    prompts = ["a boat", "an apple", "a caption that does not fit on one line, nor on two, however small it is written"]
    draw(tmp_path, [*prompts, "a zebra"], 16)
    drawn = showcase.read(tmp_path)
    assert [one.prompt for one in drawn] == [*prompts, "a zebra"]  # as drawn, not by name
    assert showcase.main([str(tmp_path), str(tmp_path / "new" / "sheet.png")]) == 0
    sheet = Image.open(tmp_path / "new" / "sheet.png")
    one = showcase.showcase(drawn[:1])
    assert sheet.width > 2.8 * one.width and sheet.height > 1.9 * one.height
    middle = showcase.GAP * 2 + showcase.PAGE + showcase.BEST // 2
    assert one.getpixel((middle, one.height // 2)) == (250, 250, 250)  # the pick is the best one


def test_a_showcase_of_some_prompts_passes_over_what_else_is_there(showcase, tmp_path):
    draw(tmp_path, ["an old prompt", "a boat", "a zebra"], 2)
    assert [one.prompt for one in showcase.read(tmp_path, ["a zebra", "a boat"])] == ["a zebra", "a boat"]


def test_a_showcase_of_one_picture_a_prompt(showcase, tmp_path):
    draw(tmp_path, ["a boat"], 1)
    assert showcase.main([str(tmp_path), str(tmp_path / "sheet.png")]) == 0


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

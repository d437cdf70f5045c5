"""tools/train: every script answers --help, mistakes are one line, and the recipe is sound bash."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools" / "train"
RECIPE = TOOLS / "emoji.sh"
SCRIPTS = sorted(path.name for path in TOOLS.glob("*.py") if path.name != "entry.py")

# One process for all of them: they share seconds of imports.
ASK = """
import contextlib, io, json, runpy, sys
folder, questions = sys.argv[1], json.loads(sys.argv[2])
sys.path.insert(0, folder)
answers = {}
for name, *arguments in questions:
    sys.argv = [name, *arguments]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_path(f"{folder}/{name}", run_name="__main__")
        except SystemExit as stop:
            code = stop.code
    answers[" ".join([name, *arguments])] = [code or 0, out.getvalue(), err.getvalue()]
print(json.dumps(answers))
"""

MISTAKES = {
    "train_vqgan.py OUT loop.stepz=3": "error: loop.stepz: no such setting; did you mean steps?",
    "train_vqgan.py OUT loop.steps=0": "error: loop.steps: 0 is too small; it must be at least 1",
    "train_seq2seq.py OUT tokens=NOWHERE": "error: NOWHERE: no manifest.json, so no encoded tokens",
    "train_clip.py OUT training.noise=loud": "error: training.noise: 'loud' is not of type float",
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("entry")
    questions = [*([name, "--help"] for name in SCRIPTS), *(line.split() for line in MISTAKES)]
    path = os.pathsep.join(entry for entry in sys.path if entry)
    done = subprocess.run(
        [sys.executable, "-c", ASK, str(TOOLS), json.dumps(questions)],
        env={**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not (folder / "OUT").exists()  # a mistake leaves nothing behind
    return json.loads(done.stdout)


def test_there_are_scripts():
    assert {"train_vqgan.py", "train_seq2seq.py", "train_clip.py", "encode_emoji.py", "make_bundle.py"} <= {*SCRIPTS}


@pytest.mark.parametrize("name", SCRIPTS)
def test_help(answers, name):
    code, out, err = answers[f"{name} --help"]
    assert (code, err) == (0, "")
    assert f"usage: {name}" in out
    assert f"python tools/train/{name} runs/" in out  # an example


@pytest.mark.parametrize("line", MISTAKES)
def test_mistakes_are_one_line_and_exit_code_2(answers, line):
    code, _, err = answers[line]
    assert code == 2
    assert err.strip().startswith(MISTAKES[line])
    assert len(err.strip().splitlines()) == 1


def test_the_recipe_is_bash():
    subprocess.run(["bash", "-n", str(RECIPE)], check=True)
    assert os.access(RECIPE, os.X_OK)


def test_the_recipe_calls_scripts_that_there_are():
    called = re.findall(r"\brun (\w+\.py)", RECIPE.read_text())
    assert len(called) >= 5
    assert {*called} <= {*SCRIPTS}


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck():
    subprocess.run(["shellcheck", str(RECIPE)], check=True)

import ast
import configparser
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import dalle_mini
from dalle_mini.cli import main
from dalle_mini.runtime import installing
from dalle_mini.runtime.installing import DISTRIBUTION, install_line

PACKAGE = Path(dalle_mini.__file__).parent
REPOSITORY = Path(__file__).parents[1]
SETUP = configparser.RawConfigParser()
SETUP.read(REPOSITORY / "setup.cfg")
EXTRAS = set(SETUP["options.extras_require"])
TEXTS = ("*.md", "docs/*.md", "Makefile", "*.txt", "tools/*/*", "benchmarks/*.py")  # files with lines to type
OTHERS = {
    "img2dataset",
    "jax",
    "jaxlib",
    "jupyter",
    "min-dalle",
    "msgpack",
    "pytest",
    "pytest-xdist",
    "safetensors",
    "skypilot",
    "torch",
}
OTHERS |= {"uv", "wandb"}


def test_the_name_of_the_distribution():
    assert SETUP["metadata"]["name"] == DISTRIBUTION


def test_every_folder_with_code_is_a_package():
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_public_names_are_loaded_when_asked_for():
    assert set(dalle_mini.__all__) <= set(dir(dalle_mini))
    assert dalle_mini.DalleMini.__module__ == "dalle_mini.pipeline"


def test_what_ships_is_at_most_30_megabytes():
    assert sum(path.stat().st_size for path in PACKAGE.joinpath("assets").rglob("*") if path.is_file()) <= 40e6


def test_every_line_that_installs_names_what_there_is():
    """The distribution by its name, extras of setup.cfg, files of the repository."""
    found = 0
    for path in (one for pattern in TEXTS for one in sorted(REPOSITORY.glob(pattern))):
        for line in re.findall(r"pip install ((?:[^`\n\\]|\\\n)*)", path.read_text("utf-8")):
            found += 1
            words = shlex.split(re.split(r" #| &&|\)|\\n|, which| is enough", line.replace("\\\n", " "))[0])
            for option, word in zip(["", *words], words, strict=False):
                name, _, extras = word.rstrip("]").partition("[")
                if option in ("-r", "--constraint"):
                    assert (REPOSITORY / word).is_file(), (path, line)
                elif name in (".", DISTRIBUTION):
                    assert set(extras.split(",")) - {""} <= EXTRAS, (path, line)
                else:
                    assert word.startswith(("-", "$")) or re.split(r"[\[=]", word)[0] in OTHERS, (path, line)
    assert found > 20


def test_every_extra_that_a_message_asks_for_exists():
    asked = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not re.search(r"pip install (?!$|emoji$|'dalle-mini-jax\[)", node.value), path
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "install_line":
                asked += [one.value if isinstance(one, ast.Constant) else one.id for one in node.args]
            elif isinstance(node, ast.keyword) and node.arg == "extra" and isinstance(node.value, ast.Constant):
                asked.append(node.value.value)
    assert {"data", "train", "plan", "sweep", "wandb"} <= {*asked} <= {*EXTRAS, "extra"}


def test_the_line_fits_how_the_package_was_installed(monkeypatch, tmp_path):
    assert install_line("plan") == f"pip install -e '{REPOSITORY}[plan]'"
    monkeypatch.setattr(installing, "_CLONE", tmp_path)  # in site-packages, from whatever source
    assert install_line("train", "wandb") == "pip install 'dalle-mini-jax[train,wandb]'"


def test_a_verb_without_its_extra_says_what_to_type(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "dalle_mini.training.tasks", None)
    error = ModuleNotFoundError("No module named 'orbax'", name="orbax.checkpoint")
    monkeypatch.setattr("dalle_mini.commands.train.notices", lambda: raising(error))
    assert main(["train", "mini", "--output", str(tmp_path / "run")]) == 2
    expected = f"error: the Python package orbax is not installed: {install_line('train')}\n"
    assert capsys.readouterr().err == expected


def raising(error):
    raise error


# As the wheel of dalle-mini 0.1.5 has them, but for what they do.
ORIGINAL = {
    "__init__.py": '__version__ = "0.1.5"\n\nfrom .model import DalleBart, DalleBartProcessor\n',
    "data.py": "",
    "model/__init__.py": "from .configuration import DalleBartConfig\nfrom .modeling import DalleBart\n",
    "model/configuration.py": "class DalleBartConfig: pass\n",
    "model/modeling.py": "class DalleBart: pass\n",
}
STARTS = {
    "command": ["-c", "import sys, dalle_mini_jax; sys.exit(dalle_mini_jax.main())", "--version"],
    "module": ["-m", "dalle_mini", "--version"],
    "import": ["-c", "import dalle_mini"],
}


CASES = [(order, start) for order in ("first", "last") for start in STARTS] + [("removed again", "command")]


@pytest.mark.parametrize(("order", "start"), CASES)
def test_refuses_to_run_beside_the_original(order, start, tmp_path):
    """Whichever of the two was installed first, and where pip has removed the original with what was its."""
    shutil.copytree(PACKAGE, tmp_path / "dalle_mini", ignore=shutil.ignore_patterns("assets", "__pycache__"))
    shutil.copy(PACKAGE.with_name("dalle_mini_jax.py"), tmp_path)
    for name, text in ORIGINAL.items():
        path = tmp_path / "dalle_mini" / name
        if order == "last" or not path.exists():
            path.write_text(text)
        if order == "removed again":
            path.unlink()
    command = [sys.executable, "-S", *STARTS[start]]  # without what is installed here
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env={})
    last = done.stderr.splitlines()[-1]
    assert "pip uninstall -y dalle-mini dalle-mini-jax" in last and done.stdout == ""
    if start == "import":
        assert done.returncode == 1 and last.startswith("ImportError: ")
    else:
        assert done.returncode == 2 and last.startswith("error: ") and done.stderr.count("\n") == 1

import argparse
import shutil
import subprocess
import sys

import pytest

from dalle_mini.cli import build_parser, main
from dalle_mini.commands.completion import SHELLS
from dalle_mini.runtime.installing import install_line

ASK = """
source "$1"; shift
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
_shtab_dalle_mini dalle-mini "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}" 2> /dev/null
echo "${COMPREPLY[@]}"
"""


@pytest.fixture
def script(capsys):
    """The script for a shell."""
    pytest.importorskip("shtab", reason="needs shtab, which the package requires: pip install .")

    def written(shell: str) -> str:
        assert main(["completion", shell]) == 0
        shown = capsys.readouterr()
        assert shown.err == ""
        return shown.out

    return written


@pytest.mark.parametrize("shell", SHELLS)
def test_every_verb_and_option_is_in_the_script(script, shell):
    written = script(shell)
    (verbs,) = (one for one in build_parser()._actions if isinstance(one, argparse._SubParsersAction))
    for verb, parser in verbs.choices.items():
        assert verb in written
        flags = [flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")]
        assert all(flag.removeprefix("--") in written for flag in flags)
    interpreter = shutil.which(shell)
    if interpreter is not None:
        subprocess.run([interpreter, "-n"], input=written, text=True, check=True)


def test_bash_completes_verbs_options_choices_and_files(script, tmp_path):
    (tmp_path / "completion.bash").write_text(script("bash"))
    (tmp_path / "runs").mkdir()
    for words, completed in (
        (["gen"], "generate"),
        (["data", "r"], "report"),
        (["generate", "--cand"], "--candidates"),
        (["generate", "a boat", "--dtype", "bf"], "bfloat16"),
        (["info", "ru"], "runs"),
        (["train", "--output", "ru"], "runs"),
    ):
        asked = ["bash", "-c", ASK, "bash", "./completion.bash", "dalle-mini", *words]
        assert subprocess.run(asked, cwd=tmp_path, capture_output=True, text=True).stdout.strip() == completed


def test_without_shtab_the_way_out_is_told(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert install_line() in capsys.readouterr().err

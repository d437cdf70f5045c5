"""tools/docs/figures.py: the tables of the docs that quote the shipped model."""

import pytest

import figures
from script_arguments import script_problems
from shell_lines import ROOT

SHIPPED = ("cores", "passes", "dtypes", "cold-start", "company", "order", "quality", "encode")


def test_each_table_is_of_a_page_that_names_its_benchmark():
    assert set(SHIPPED) <= set(figures.NAMES) and len(set(figures.NAMES)) == len(figures.NAMES)
    for one in figures.FIGURES:
        assert one.command[0] in (ROOT / "docs" / one.page).read_text("utf-8"), one


def test_each_command_has_the_options_that_are_given():
    assert script_problems({one.name: one.command for one in figures.FIGURES}) == {}


def test_a_run_goes_on_and_tells_what_failed(monkeypatch, tmp_path, capsys):
    good, bad, last = (tmp_path / name for name in ("good.py", "bad.py", "last.py"))
    good.write_text("print('| 1 |')")
    bad.write_text("raise SystemExit(3)")
    last.write_text("print('| 2 |')")
    made = [figures.Figure(path.stem, "generation.md", (str(path), "--fast")) for path in (good, bad, last)]
    monkeypatch.setattr(figures, "FIGURES", made)
    everything = figures.argparse.Namespace(only=["good", "bad", "last"], list=False, output=tmp_path / "out")
    with pytest.raises(figures.UserError, match="not made: bad; mend it"):
        figures.make_all(everything)
    text = (tmp_path / "out" / "good.txt").read_text()
    assert text.startswith(f"python {good} --fast\ndocs/generation.md\nprocessor: ") and text.endswith("\n\n| 1 |\n")
    good.write_text("raise SystemExit(3)")  # not run again
    bad.write_text("print('| 3 |')")
    figures.make_all(everything)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"good.txt", "bad.txt", "last.txt"}
    assert capsys.readouterr().out.endswith("3 files\n")


def test_the_list_runs_nothing(capsys):
    assert figures.main(["--list", "--only", "cores"]) == 0
    assert capsys.readouterr().out == "cores: docs/generation.md: python benchmarks/cores.py\n"
    assert figures.main(["--only", "nothing"]) == 2

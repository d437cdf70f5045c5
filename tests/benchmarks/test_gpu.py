"""The benchmark for a GPU: no row takes another with it, and each part runs on a CPU."""

import importlib
import json
import sys
import time
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("gpu")


def lines(gpu, code, count, longest=600.0):
    return list(gpu.lines_of([sys.executable, "-c", code], count, time.monotonic() + 600, longest, {}))


def test_a_process_that_ends_early_costs_one_row(gpu):
    code = "import os\nprint('{\"step_ms\": 1}', flush=True)\nraise SystemExit('no such kernel')"
    first, second = lines(gpu, code, 3)
    assert first == {"step_ms": 1}
    assert second == {"error": "failed: the process ended with 1: no such kernel"}
    assert lines(gpu, "import os; os.abort()", 2) == [{"error": "failed: the process ended with -6: it said nothing"}]


def test_a_row_that_hangs_is_ended(gpu):
    assert lines(gpu, "import time; time.sleep(600)", 2, longest=0.5) == [{"error": "not measured: not done in 0 s"}]


def test_what_is_not_installed_is_told(gpu):
    (found,) = gpu.lines_of(["/no/such/python"], 2, time.monotonic() + 600, 600.0, {})
    assert found == {"error": "not measured: /no/such/python: No such file or directory"}


def test_an_exception_costs_one_row(gpu, capsys, monkeypatch):
    def decoding(row):
        if row.images == 2:
            raise ValueError("out of memory |\nand more")
        return {"step_ms": row.images}

    monkeypatch.setattr(gpu, "decoding", decoding)
    gpu.measure_rows([gpu.Row("decode", "tiny", images) for images in (1, 2, 3)])
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert found == [{"step_ms": 1}, {"error": "failed: ValueError: out of memory |"}, {"step_ms": 3}]


def test_the_rest_of_the_rows_say_that_the_budget_was_spent(gpu, tmp_path):
    output = tmp_path / "gpu.md"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["gpu.py", "--budget", "0", "--output", str(output)])
        assert gpu.main() == 0
    assert output.read_text().count("| not measured: the budget was spent |") == len(gpu.FULL)


def test_every_row_of_the_tables_has_all_columns(gpu, tmp_path):
    tables = gpu.Tables(tmp_path / "gpu.md")
    figures = {"step_ms": 1.4, "floor_ms": 0.6, "of_floor": 0.43, "mfu": 0.41, "seconds": 0.2}
    for row in gpu.FULL:
        tables.add(row, figures)
        tables.add(row, {"error": "failed: a | b\nc"})
    text = (tmp_path / "gpu.md").read_text()
    for block in text.split("\n\n"):
        assert len({line.count("|") for line in block.splitlines() if line.startswith("|")}) <= 1, block
    assert "| mega, nine candidates: at most 1.5 ms a pass | 1.400 ms | yes |" in text
    assert "| mini's training: 40% MFU | 41.0% | yes |" in text


def test_the_aims_are_among_the_first_rows(gpu):
    groups = list(dict.fromkeys(row.group for row in gpu.FULL))
    assert groups[:2] == ["decode-mega", "train-mini"]
    assert {row.form for row in gpu.FULL if row.group == "decode-mega"} == set(gpu.FORMS)


@pytest.mark.slow
def test_each_part_runs_on_a_cpu(gpu, tmp_path, monkeypatch, capsys):
    output = tmp_path / "gpu.md"
    options = ["--size", "tiny", "--budget", "100000", "--longest", "100000", "--output", str(output), "--json"]
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(sys, "argv", ["gpu.py", *options])
    assert gpu.main() == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(found["rows"]) == len(gpu.TINY) and "jax" in found["device"]
    for row in found["rows"]:
        if row["part"] == "min-dalle":  # it needs torch, and says so
            assert "step_ms" in row or "No module named" in row["error"]
            continue
        assert "error" not in row, row
        (told,) = [line for line in output.read_text().splitlines() if line == gpu.Tables.cells(gpu.Tables, row)]
        # A CPU has no peak rate that MFU could divide by, and does not tell its memory.
        assert told.count("unknown") == (2 if row["part"] == "train" else 0), told
    sequential = {row["form"] for row in found["rows"] if row["part"] == "decode" and row["tokens_a_pass"] == 1}
    assert sequential == set(gpu.FORMS)

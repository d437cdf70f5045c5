"""The ablation's rows are runs that can be, and its table goes where it belongs."""

import dataclasses
import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def ablation(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("vqgan_ablation")


def test_every_row_is_a_run_of_as_many_steps(ablation):
    plain = ablation.settings("l1-l2", 100)
    for name in ablation.TABLE:
        run = ablation.settings(name, 100)
        run.training.check()
        assert dataclasses.replace(run.loop, seed=0) == plain.loop
        assert (run == plain) == (name == "l1-l2")
    rows = ablation.ROWS
    assert {ablation.json.loads(file.read_text())["steps"] for file in rows.glob("*.json")} == {300}
    with pytest.raises(ablation.UserError, match="has rows of other steps"):
        ablation.kept_rows(["cosine"], 3000, rows)
    judged = ablation.settings("adversarial", 100).training.discriminator
    assert judged.start == 80


def test_the_table_is_written_between_its_marks(ablation, tmp_path, monkeypatch):
    doc = tmp_path / "vqgan.md"
    doc.write_text("before\n<!-- ablation -->\nold\n<!-- end -->\nafter\n")
    monkeypatch.setattr(ablation, "DOC", doc)
    row = {"steps": 3000, "psnr": 25.126, "ssim": 0.91234, "codebook_use": 0.875, "perplexity": 311.4}
    ablation.write_table({"cosine": row})
    text = doc.read_text()
    assert "| L1 + L2, cosine codebook | 25.13 | 0.912 | 88% | 311 |" in text
    assert "After 3,000 updates" in text and "old" not in text
    assert text.startswith("before\n<!-- ablation -->\n") and text.endswith("<!-- end -->\nafter\n")
    ablation.write_table({})
    assert "Not made yet." in doc.read_text()
    assert "<!-- ablation -->" in (BENCHMARKS.parent / "docs" / "vqgan.md").read_text()

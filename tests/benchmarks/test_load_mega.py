"""The benchmark of loading, on a model of a few kilobytes."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def load_mega():
    spec = importlib.util.spec_from_file_location("load_mega", ROOT / "benchmarks/load_mega.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("size", ["mini", "mega"])
def test_the_made_up_checkpoints_have_the_published_shapes(load_mega, size):
    published = json.loads((ROOT / f"tests/golden/shapes/{size}1_scan.json").read_text())
    assert load_mega.shapes(load_mega.SIZES[size]) == {name: tuple(shape) for name, shape in published.items()}


@pytest.mark.parametrize(
    "options",
    [
        ["--format", "flax", "--layout", "unrolled"],
        ["--format", "sharded", "--stored", "float32"],
        ["--format", "safetensors", "--layout", "unrolled", "--dtype", "float32"],
    ],
)
def test_what_is_written_is_what_is_loaded(load_mega, tmp_path, monkeypatch, options):
    """In this process, to save the time of another's start."""
    monkeypatch.setattr(load_mega, "SHARD_BYTES", 100_000)
    args = load_mega.parse(["--size", "tiny", *options])
    load_mega.write(tmp_path / "model", args)
    assert (len(list((tmp_path / "model").glob("*.msgpack"))) > 2) == ("sharded" in options)
    figures = load_mega.load(tmp_path / "model", args)
    assert figures["bytes"] == figures["parameters"] * (4 if args.dtype == "float32" else 2)
    assert figures["peak_rss"] >= figures["rss_before"] > 10e6


def test_it_runs_from_end_to_end(load_mega, tmp_path, capsys):
    assert load_mega.main(["--size", "tiny", "--runs", "1", "--folder", str(tmp_path), "--json"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    figures = json.loads(last)
    assert figures["is_met"] == (figures["peak_rss"] <= figures["bytes"] + figures["largest_tensor"] + 300e6)
    assert lines[0] == "checkpoint          tiny, flax, scanned, float16"
    assert list(tmp_path.iterdir()) == []


def test_wrong_options_are_told(load_mega, capsys):
    assert load_mega.main(["--runs", "0"]) == 2
    assert capsys.readouterr().err == "error: runs 0: at least 1 is needed\n"
    assert load_mega.main(["--size", "tiny", "--folder", "/no/where"]) == 2
    assert "cannot write into /no/where: No such file or directory; name another --folder" in capsys.readouterr().err

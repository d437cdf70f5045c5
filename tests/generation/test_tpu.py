"""The decoding loop through the TPU's own compiler, which runs without a TPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "tpu_compile.py"
MEMORY = 16e9  # of a core of a TPU v3


@pytest.mark.slow
def test_mega_draws_64_guided_candidates_on_a_v3_8(capsys):
    done = subprocess.run([sys.executable, SCRIPT, "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    *lines, figures = done.stdout.splitlines()
    figures = json.loads(figures)
    with capsys.disabled():
        print("", *lines, sep="\n")
    assert figures["cores"] == 8
    assert max(figures[program]["sum_gb"] for program in ("prefill", "decode_steps")) < MEMORY / 1e9


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v3:2x2", "v5e:2x2"])
def test_windows_are_compiled(topology):
    options = ["--size", "tiny", "--candidates", "16", "--window", "8", "--topology", topology]
    done = subprocess.run([sys.executable, SCRIPT, "--json", *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["cores"] == (8 if topology == "v3:2x2" else 4) and figures["decode_steps"]["sum_gb"] < 1

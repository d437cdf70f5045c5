"""The decoding loop through the TPU's own compiler, which runs without a TPU."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "tpu_compile.py"
MEMORY = 16e9  # of a core of a TPU v3


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install '.[tpu]'")
def test_mega_draws_64_guided_candidates_on_a_v3_8(capsys):
    done = subprocess.run([sys.executable, SCRIPT, "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    *lines, figures = done.stdout.splitlines()
    figures = json.loads(figures)
    with capsys.disabled():
        print("", *lines, sep="\n")
    assert figures["cores"] == 8
    assert max(figures[program]["sum_gb"] for program in ("prefill", "decode_steps")) < MEMORY / 1e9

"""Puts `tiny_runs.py`, which child processes run as a script, on the path of the tests here, and `object_store.py`."""

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "data")]


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    """The networks here are so small that compiling them is all the time there is: half of it is optimisation."""
    import jax

    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)

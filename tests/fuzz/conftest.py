"""Puts the fuzzer and the makers of small files on the path: its processes import them by name."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "helpers")]

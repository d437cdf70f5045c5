"""Puts the piles of these tests on the path: processes that read them import them by name."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

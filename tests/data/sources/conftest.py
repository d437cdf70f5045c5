"""Puts `datasets_hub.py` on the path of the tests here."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

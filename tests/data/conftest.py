"""Puts the piles of these tests on the path: processes that read them import them by name."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def arrow_cache(tmp_path, monkeypatch):
    """The cache of `datasets`, empty."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "arrow")
    return tmp_path / "arrow"

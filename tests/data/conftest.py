import pytest


@pytest.fixture
def arrow_cache(tmp_path, monkeypatch):
    """The cache of `datasets`, empty."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "arrow")
    return tmp_path / "arrow"

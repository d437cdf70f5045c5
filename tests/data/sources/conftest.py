import pytest


@pytest.fixture
def apart(tmp_path, monkeypatch):
    """The cache of `datasets` for one test alone."""
    import datasets

    from dalle_mini.data.sources import huggingface

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    huggingface._dataset.cache_clear()

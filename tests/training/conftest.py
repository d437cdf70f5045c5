import json
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def never_ending(golden_bundle, tmp_path_factory) -> Path:
    """The config of a run of `dalle-mini train` that goes on until it is stopped."""
    from token_folders import write_tokens

    folder = tmp_path_factory.mktemp("never_ending")
    tokens = [[row] * 16 for row in range(32)]
    write_tokens(folder / "tokens", {"train": 32, "validation": 4}, image_length=16, tokens=tokens)
    config = {
        "data": {"train": [str(folder / "tokens")]},
        "training": {"init_from": str(golden_bundle), "new_tokens": True, "dtype": "float32"},
        "loop": {"steps": 10**9, "batch_size": 2, "log_every": 10**9, "eval_every": 10**9},
    }
    (folder / "run.yaml").write_text(json.dumps(config))
    return folder / "run.yaml"

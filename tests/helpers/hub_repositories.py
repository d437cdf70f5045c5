"""Repositories as they are found on the Hub, and what is refused of them."""

from pathlib import Path

import pytest

from dalle_mini import UserError
from dalle_mini.weights.hub.repository import resolve

GOLDEN = Path(__file__).parents[1] / "golden"
MINI = GOLDEN / "dallebart" / "a_normformer_glu_scan"


def publish(hub, repo_id="acme/mini", folder=MINI, **files) -> str:
    """A repository as they are found on the Hub, with much that nobody needs."""
    clutter = {"opt_state.msgpack": b"0", "tf_model.h5": b"0", "README.md": b"#", "pytorch_model.bin": b"0"}
    return hub.add(repo_id, folder, GOLDEN / "tokenizer", **clutter | {"onnx/model.onnx": b"0"} | files)


def refused(*arguments, **options) -> str:
    """The one line of a UserError."""
    with pytest.raises(UserError) as error:
        resolve(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)

import shutil

import pytest

from dalle_mini.training.run.checkpoint import Checkpoints
from small_states import state


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    with Checkpoints(folder, keep=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, state(step), {"seed": 5, "config": {"of": step}})
        checkpoints.save(3, state(99), {})  # a step is saved once
    return folder


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written, tmp_path / "checkpoints")

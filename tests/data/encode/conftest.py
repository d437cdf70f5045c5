"""A folder that was encoded once, for the tests of runs."""

import functools
import shutil
from pathlib import Path

import pytest

from dalle_mini.data.encode.encoders import Weights
from noise_dataset import make_vqgan, run_encode


@pytest.fixture(scope="module")
def vqgan(tmp_path_factory) -> str:
    return make_vqgan(tmp_path_factory.mktemp("vqgan"))


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> str:
    return make_vqgan(tmp_path_factory.mktemp("other"), seed=1)


@pytest.fixture(scope="module")
def loaded_once():
    """Reading a VQGAN takes longer than encoding with it here."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Weights, "load", functools.cache(Weights.load))
        yield


@pytest.fixture(scope="module")
def whole(vqgan, loaded_once, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("encoded") / "new"
    run_encode(vqgan, folder, workers=2)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")

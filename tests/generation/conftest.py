"""The golden model that most tests of drawing draw with, and its values."""

import pytest

from dalle_mini.models.dalle_bart import DalleBart
from golden_captions import SCANNED, load_golden


@pytest.fixture(scope="module")
def golden():
    return load_golden(SCANNED)


@pytest.fixture(scope="module")
def model():
    return DalleBart.from_pretrained(SCANNED)

import pytest

from dalle_mini.commands.terminal import out_of_memory
from dalle_mini.errors import UserError


def test_too_little_memory_of_a_device_is_one_line_with_the_way_out():
    with pytest.raises(UserError) as caught, out_of_memory("take fewer"):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.\n\nmany more lines")
    assert str(caught.value) == (
        "the device has too little memory (Out of memory while trying to allocate 9 bytes.): take fewer"
    )


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="INTERNAL"), out_of_memory("take fewer"):
        raise RuntimeError("INTERNAL: something else")

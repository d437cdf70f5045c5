import errno
import io
import sys
import warnings

import pytest

from dalle_mini.commands.terminal import exit_code, out_of_memory, progress_bars
from dalle_mini.errors import UserError
from dalle_mini.runtime import console


def test_too_little_memory_of_a_device_is_one_line_with_the_way_out():
    with pytest.raises(UserError) as caught, out_of_memory("take fewer"):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.\n\nmany more lines")
    assert str(caught.value) == (
        "the device has too little memory (Out of memory while trying to allocate 9 bytes.): take fewer"
    )


def imported(cause: Exception) -> ImportError:
    error = ImportError("an extension cannot be initialised")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError("Unable to allocate 9.77 GiB for an array"), "Unable to allocate 9.77 GiB for an array"),
        (MemoryError(), "no more is to be had"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "Cannot allocate memory"),
        (
            RuntimeError("INTERNAL: RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nmore"),
            "Out of memory allocating",
        ),
        (RuntimeError("can't start new thread"), "can't start new thread"),
        (RuntimeError("std::bad_alloc"), "std::bad_alloc"),
        (ImportError("x.so: failed to map segment from shared object"), "failed to map segment"),
        (imported(MemoryError("no place")), "no place"),
    ],
)
def test_too_little_memory_of_the_machine_is_one_line_with_advice(capsys, error, reason):
    def command() -> None:
        raise error

    assert exit_code(command) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: the machine has too little memory (") and reason in told
    assert "take a machine with more" in told and told.count("\n") == 1


def test_other_errors_are_no_lack_of_memory():
    def command() -> None:
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input"):
        exit_code(command)


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="INTERNAL"), out_of_memory("take fewer"):
        raise RuntimeError("INTERNAL: something else")


def test_warnings_of_libraries_are_one_line_each(capsys):
    def warned() -> None:
        for _ in range(2):
            warnings.warn("odd file 'x\x1b[31m\nerror: fake'", RuntimeWarning, stacklevel=1)

    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert exit_code(warned) == 0
    assert capsys.readouterr().err == "note: RuntimeWarning: odd file 'x\\x1b[31m\\nerror: fake'\n"


class GoneTerminal(io.StringIO):
    """A terminal whose window was closed."""

    def isatty(self):
        return True

    def write(self, text):
        raise OSError(5, "Input/output error")


def test_bars_on_a_terminal_that_went_away_end_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stdout", GoneTerminal())
    monkeypatch.setattr(sys, "stderr", GoneTerminal())

    def shown() -> int:
        with progress_bars() as progress:
            for done in range(3):
                progress("tokens", done, 3)
                console.answer("a line beside the bar")
        return 7

    assert exit_code(shown) == 7

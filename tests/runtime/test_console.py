import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dalle_mini.runtime import console


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nerror: fake", r"a\nerror: fake"),
        ("\x1b]0;owned\x07", r"\x1b]0;owned\x07"),
        ("\x9b31m", r"\x9b31m"),
        ("gnp.‮exe", r"gnp.\u202eexe"),
        ("a\u2028b", r"a\u2028b"),
        ("caf\udce9", r"caf\udce9"),
        ("bücher 🍎", "bücher 🍎"),
    ],
)
def test_text_from_outside_stays_one_harmless_line(text, shown):
    assert console.one_line(text) == shown


def test_what_is_very_long_is_cut_in_the_middle():
    shown = console.one_line("a" * 10**6 + "b")
    assert len(shown) < console.MAX_CHARACTERS + 10 and shown.startswith("aaa") and shown.endswith("ab")
    assert console.one_line("a" * 10**4, limit=None) == "a" * 10**4


class Full(io.StringIO):
    encoding = "utf-8"

    def write(self, text):
        raise OSError(28, "No space left on device")


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("stream", [None, Full(), closed()])
def test_what_cannot_be_told_ends_nothing(monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(sys, "stdout", stream)
    console.say("a line")
    console.answer("another")
    with console.guarded() as (out, err):
        print("a third")
        print("a fourth", file=sys.stderr)
        assert not sys.stdout.isatty()
    assert (out.broken is None) == (err.broken is None) == (stream is None)


def test_characters_that_the_encoding_lacks_are_escaped(monkeypatch):
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding="ascii"))
    console.answer("bücher 🍎")
    assert buffer.getvalue() == b"b\\xfccher \\U0001f34e\n"


def test_no_file_gets_the_number_of_a_closed_stream(tmp_path):
    # As with `cmd >&- 2>&-`: the file must not be what a C library takes for stderr.
    code = f"""if True:
        from dalle_mini.runtime import console
        with console.guarded():
            print("lost")
            with open({str(tmp_path / "file")!r}, "w") as file:
                assert file.fileno() > 2, file.fileno()
        """
    done = subprocess.run([sys.executable, "-c", code], preexec_fn=lambda: [os.close(number) for number in (0, 1, 2)])
    assert done.returncode == 0


TELLS_UNTIL_IT_CANNOT = """if True:
    import signal
    from dalle_mini.runtime import console
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    print("ready", flush=True)
    with console.guarded() as (out, err):
        while not err.broken:
            console.say("a line")
        print("another")
    raise SystemExit(7)
"""


def test_a_terminal_that_went_away_ends_nothing():
    ours, theirs = os.openpty()
    child = subprocess.Popen([sys.executable, "-c", TELLS_UNTIL_IT_CANNOT], stdout=theirs, stderr=theirs)
    os.close(theirs)
    with open(ours, "rb", buffering=0) as terminal:
        assert terminal.readline() == b"ready\r\n"  # the whole line, or its writing is what fails
    assert child.wait(timeout=60) == 7


def test_nothing_else_prints():
    root = Path(__file__).parents[2]
    prints = re.compile(r"(?<![\w.])print\(|sys\.std(out|err)\.write")
    found = [
        f"{path.relative_to(root)}:{number}"
        for folder in ("src", "tools")
        for path in sorted((root / folder).rglob("*.py"))
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if prints.search(line)
    ]
    assert not found

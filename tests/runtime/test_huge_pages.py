import sys

import pytest

from dalle_mini.runtime import huge_pages
from dalle_mini.runtime.huge_pages import SETTING, TUNABLES, start_again_with_huge_pages


@pytest.fixture
def started(monkeypatch, tmp_path):
    """The program that replaces the process, on a system that leaves huge pages to programs."""
    calls = []
    modes = tmp_path / "enabled"
    modes.write_text("always [madvise] never\n")
    monkeypatch.setattr(huge_pages, "MODES", modes)
    monkeypatch.setattr(huge_pages.os, "confstr", lambda name: "glibc 2.36", raising=False)
    monkeypatch.setattr(huge_pages.os, "execv", lambda program, arguments: calls.append((program, arguments)))
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "dalle_mini.cli", "train", "a.yaml"])
    monkeypatch.setattr(sys, "argv", ["/somewhere/cli.py", "train", "a.yaml"])
    monkeypatch.setenv(TUNABLES, "")
    return calls


def test_command_starts_again_with_the_setting(started, monkeypatch):
    monkeypatch.setenv(TUNABLES, "glibc.malloc.check=1")
    start_again_with_huge_pages()
    assert started == [(sys.executable, [sys.executable, "-m", "dalle_mini.cli", "train", "a.yaml"])]
    assert huge_pages.os.environ[TUNABLES] == f"glibc.malloc.check=1:{SETTING}=1"
    start_again_with_huge_pages()
    assert len(started) == 1  # it has begun again by now


@pytest.mark.parametrize("chosen", [f"{SETTING}=0", f"{SETTING}=2"])
def test_what_the_user_chose_stays(started, monkeypatch, chosen):
    monkeypatch.setenv(TUNABLES, chosen)
    start_again_with_huge_pages()
    assert not started


@pytest.mark.parametrize("modes", ["[always] madvise never\n", "always madvise [never]\n"])
def test_system_that_needs_or_allows_no_asking(started, modes):
    huge_pages.MODES.write_text(modes)
    start_again_with_huge_pages()
    assert not started


@pytest.mark.parametrize("library", ["glibc 2.34", "musl", None])
def test_library_that_cannot(started, monkeypatch, library):
    monkeypatch.setattr(huge_pages.os, "confstr", lambda name: library)
    start_again_with_huge_pages()
    assert not started


def test_other_systems(started, monkeypatch):
    def unknown(name):
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(huge_pages.os, "confstr", unknown)
    start_again_with_huge_pages()
    assert not started


def test_program_that_calls_the_command_is_left_alone(started, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "notebook.py"])
    start_again_with_huge_pages()
    assert not started


def test_system_that_refuses(started, monkeypatch):
    def refuse(program, arguments):
        raise PermissionError(13, "no")

    monkeypatch.setattr(huge_pages.os, "execv", refuse)
    start_again_with_huge_pages()

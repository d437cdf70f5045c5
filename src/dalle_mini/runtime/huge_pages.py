"""Memory in huge pages. Without them a CPU spends a third of a training step on getting memory.

XLA allocates the values between a program's steps anew at every run. Those are hundreds of megabytes, which the system
hands out and takes back in pages of 4 KiB. Pages of 2 MiB need a five-hundredth as many interruptions. Where Linux
leaves the choice to programs ("madvise", the usual setting), glibc asks for them since version 2.35, but only if the
environment says so before the program begins. So the command starts itself once more.
"""

import os
import sys
from pathlib import Path

TUNABLES, SETTING = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
MODES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
FIRST_GLIBC = (2, 35)


def start_again_with_huge_pages() -> None:
    """Run this process's command once more, in its place, with huge pages; return where that would change nothing.

    A value of `glibc.malloc.hugetlb` in GLIBC_TUNABLES stays as it is; 0 turns this off.
    """
    tunables = os.environ.get(TUNABLES, "")
    # A program that calls the command as a function must not be started again.
    is_command = len(sys.argv) > 1 and sys.orig_argv[1 - len(sys.argv) :] == sys.argv[1:]
    if SETTING in tunables or not is_command or not _can_ask():
        return
    os.environ[TUNABLES] = ":".join(filter(None, [tunables, f"{SETTING}=1"]))
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    except OSError:
        return  # it is only slower


def _can_ask() -> bool:
    try:
        library, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
        parts = tuple(int(part) for part in version.split("."))
        return library == "glibc" and parts >= FIRST_GLIBC and "[madvise]" in MODES.read_text(encoding="ascii")
    except (OSError, ValueError, AttributeError):  # no glibc, or no Linux
        return False

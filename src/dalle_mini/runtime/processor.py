"""Which processor this is, as far as the speed of products depends on it."""

import functools
import os
import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
# The instructions that make a kind, by the kernel's names, the best first.
KINDS = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 BF16", "avx512f": "AVX-512", "avx2": "AVX2"}


def processor(file: Path = CPUINFO) -> str:
    """Its name, cores and kind, for a table of measurements."""
    names = [value for key, value in _lines(file) if key == "model name"]
    return f"{names[0] if names else platform.machine()} ({os.cpu_count()} cores; {kind(file)})"


@functools.cache
def kind(file: Path = CPUINFO) -> str:
    """One of KINDS, or the architecture where none is known, such as "arm64"."""
    features = {feature for key, value in _lines(file) if key == "flags" for feature in value.split()}
    return next((name for feature, name in KINDS.items() if feature in features), platform.machine())


def _lines(file: Path) -> list[tuple[str, str]]:
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        return []
    return [(key.strip(), value.strip()) for key, _, value in (line.partition(":") for line in lines)]

"""What this machine and this installation are, as text for an issue: `dalle-mini doctor`.

Every question is asked by itself, so a library that is broken or a folder that cannot be read costs one row. jax is
asked in another process: a broken one may end its process, or wait for a TPU that another program holds.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from dalle_mini.runtime.console import one_line
from dalle_mini.runtime.files import in_units
from dalle_mini.runtime.installing import DISTRIBUTION, install_line
from dalle_mini.version import __version__

NAMES = (DISTRIBUTION, "dalle-mini")  # of the distribution, now and before
FOR_DEVELOPERS = ("test", "oracle", "docs")  # extras that only work on the code needs
SHOWN = ("jax", "jaxlib", "flax", "numpy", "pillow", "tokenizers", "huggingface-hub")
VARIABLES = (
    "JAX_PLATFORMS",
    "XLA_FLAGS",
    "CUDA_VISIBLE_DEVICES",
    "HF_HUB_OFFLINE",
    "HF_ENDPOINT",
    "HF_HOME",
    "JAX_COMPILATION_CACHE_DIR",
)
SECONDS = 60.0  # for jax to find its devices; a pod of TPUs waits for its other hosts
MOST_FILES = 200_000  # of a cache that are counted
PROBE = """
import collections, json, sys, jax
kinds = collections.Counter(f"{device.platform} ({device.device_kind})" for device in jax.devices())
json.dump(kinds, sys.stdout)
"""


def report() -> Iterator[str]:
    """The lines of the report, as markdown."""
    yield from _table(f"dalle-mini {__version__}", ("", ""), _installation())
    yield from _table("Caches", ("holds", "folder", "size"), _caches())
    yield from _table("Extras", ("extra", "state", "to install it"), _extras())


def _table(title: str, head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> Iterator[str]:
    yield from (f"### {title}", "", _row(head), _row(("---",) * len(head)))
    yield from map(_row, rows)
    yield ""


def _row(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(one_line(cell).replace('|', '/') for cell in cells)} |"


def _told(ask: Callable[[], str]) -> str:
    """The answer, or why there is none: whatever a broken library raises."""
    try:
        return ask()
    except Exception as error:
        return f"cannot be told ({type(error).__name__}: {error})"


def _installation() -> Iterator[tuple[str, str]]:
    yield "Python", f"{platform.python_version()} ({platform.python_implementation()})"
    yield "system", _told(platform.platform)
    yield "machine", _told(_machine)
    yield "devices", _told(_devices)
    yield "versions", ", ".join(f"{name} {_version(name) or 'is missing'}" for name in SHOWN)
    variables = [f"{name}={os.environ[name]}" for name in VARIABLES if name in os.environ]
    yield "environment", ", ".join(variables) or "nothing is set"


def _machine() -> str:
    import psutil

    return f"{os.cpu_count()} processors, {in_units(psutil.virtual_memory().total)} of memory"


def _devices() -> str:
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", PROBE], capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"jax does not answer within {SECONDS:.0f} s: another program may hold the device"
    if done.returncode == 0:
        return ", ".join(f"{count} {kind}" for kind, count in json.loads(done.stdout.splitlines()[-1]).items())
    said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return f"jax fails with exit code {done.returncode} ({said[-1] if said else 'it says nothing'})"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except Exception:  # not installed, or its folder of metadata is damaged
        return None


def _caches() -> Iterator[tuple[str, str, str]]:
    folders: dict[str, Callable[[], str]] = {
        "compiled programs": lambda: os.environ.get("JAX_COMPILATION_CACHE_DIR") or _own_cache("compiled"),
        "tokens from buckets": lambda: _own_cache("tokens"),
        "artifacts of wandb": lambda: _own_cache("wandb"),
        "models of the Hub": _hub_cache,
    }
    for name, ask in folders.items():
        folder = _told(ask)
        yield name, _shown(folder), _told(functools.partial(_size, folder))


def _own_cache(name: str) -> str:
    import platformdirs

    return os.path.join(platformdirs.user_cache_dir("dalle-mini"), name)


def _hub_cache() -> str:
    from huggingface_hub import constants

    return constants.HF_HUB_CACHE


def _shown(folder: str) -> str:
    """A folder without the user's name in it."""
    home = str(Path.home())
    return f"~{folder.removeprefix(home)}" if folder.startswith(home + os.sep) else folder


def _size(folder: str) -> str:
    """The bytes of the files in a folder. Links, of which the Hub's cache has many, count as themselves."""
    if not os.path.isdir(folder):
        return "not there"
    refused: list[OSError] = []
    size = files = 0
    for at, _, names in os.walk(folder, onerror=refused.append):
        for name in names:
            try:
                size += os.lstat(os.path.join(at, name)).st_size
            except OSError as error:
                refused.append(error)
        files += len(names)
        if files > MOST_FILES:
            return f"more than {in_units(size)}"
    if refused:
        return f"{in_units(size)}, and some that cannot be read ({refused[0].strerror}: {_shown(refused[0].filename)})"
    return in_units(size)


def _extras() -> Iterator[tuple[str, str, str]]:
    distribution = next(filter(None, map(_distribution, NAMES)), None)
    if distribution is None:
        yield "any", "not known: the package is not installed", install_line()
        return
    for extra in distribution.metadata.get_all("Provides-Extra") or ():
        if extra not in FOR_DEVELOPERS:
            try:
                lacking = list(dict.fromkeys(_lacking(distribution, extra)))
            except Exception as error:  # metadata of other packages may be damaged
                yield extra, f"cannot be told ({type(error).__name__}: {error})", ""
                continue
            state = f"lacks {', '.join(lacking)}" if lacking else "installed"
            yield extra, state, install_line(extra) if lacking else ""


def _distribution(name: str) -> importlib.metadata.Distribution | None:
    try:
        return importlib.metadata.distribution(name)
    except Exception:  # as of `_version`
        return None


def _lacking(distribution: importlib.metadata.Distribution, extra: str) -> Iterator[str]:
    """The requirements of an extra that are not installed, or in another version."""
    from packaging.requirements import Requirement

    for line in distribution.requires or ():
        wanted = Requirement(line)
        if (
            wanted.marker is None
            or not wanted.marker.evaluate({"extra": extra})
            or wanted.marker.evaluate({"extra": ""})
        ):
            continue
        found = _distribution(wanted.name)
        if found is None or not wanted.specifier.contains(found.version, prereleases=True):
            yield f"{wanted.name}{wanted.specifier}"
            continue
        for inner in wanted.extras:  # of jax[cuda13], the part that is not jax
            yield from _lacking(found, inner)

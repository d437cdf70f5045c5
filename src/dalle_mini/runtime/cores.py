"""The cores of the processor, and threads that keep them busy.

On a CPU XLA runs the operations of a program one after another, most of them on one core. Programs that are called from
several threads run side by side. They read the same parameters, and each computes what it would compute alone.
"""

from __future__ import annotations

import concurrent.futures
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import jax

CGROUP = Path("/sys/fs/cgroup")
Item = TypeVar("Item")
Made = TypeVar("Made")


def usable_cores(cgroup: Path = CGROUP) -> int:
    """The cores that this process may use: those of its affinity, and no more than a container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, _quota(cgroup))))


def workers(devices: Sequence[jax.Device]) -> list[jax.Device]:
    """The devices that programs run on at the same time: a CPU that is the only device, once for each core."""
    is_cpu_alone = len(devices) == 1 and devices[0].platform == "cpu"
    return [*devices] * (usable_cores() if is_cpu_alone else 1)


def side_by_side(function: Callable[[Item], Made], items: Sequence[Item], threads: int) -> Iterator[Made]:
    """`map(function, items)`, in order, with up to `threads` calls at a time."""
    threads = min(threads, len(items))
    if threads < 2:
        yield from map(function, items)
        return
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        yield from pool.map(function, items)


def _quota(folder: Path) -> float:
    """The processor seconds a second that a container may use, by cgroups of version 2 or 1; infinity if unlimited."""
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            quota, period = map(int, " ".join((folder / file).read_text() for file in files).split())
            return quota / period if quota > 0 else math.inf
        except (OSError, ValueError):  # not this version, or "max"
            continue
    return math.inf

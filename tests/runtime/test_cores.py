"""How many cores a process may use, and threads that use them."""

import os
import threading

import jax
import pytest

from dalle_mini.runtime import cores
from dalle_mini.runtime.cores import side_by_side, usable_cores, workers


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 64),
        ({"cpu.max": "max 100000\n"}, 64),
        ({"cpu.max": "250000 100000\n"}, 3),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
    ],
)
def test_a_containers_quota_counts(tmp_path, monkeypatch, files, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)), raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert usable_cores(tmp_path) == expected


def test_a_cpu_alone_works_on_each_core(monkeypatch):
    monkeypatch.setattr(cores, "usable_cores", lambda: 3)
    (cpu,) = jax.devices()
    assert workers([cpu]) == [cpu] * 3
    assert workers([cpu, cpu]) == [cpu, cpu]  # the caller has chosen


def test_calls_run_side_by_side_and_keep_their_order():
    both = threading.Barrier(2, timeout=60)

    def meet(number: int) -> int:
        both.wait()  # alone, it would wait for ever
        return number

    assert list(side_by_side(meet, range(6), 2)) == list(range(6))
    with pytest.raises(ZeroDivisionError):
        list(side_by_side(lambda number: 1 // number, [1, 0], 2))


def test_one_thread_needs_no_other():
    caller = threading.current_thread()
    for items, threads in ((range(3), 1), (range(1), 4), (range(0), 4)):
        assert all(one is caller for one in side_by_side(lambda _: threading.current_thread(), items, threads))

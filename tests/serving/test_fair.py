"""Whose turn it is."""

from collections import Counter

import pytest

from dalle_mini.serving.fair import FairQueue, Waiting, largest_power
from dalle_mini.settings import GenerationSettings

SETTINGS = GenerationSettings(guidance=1.0, temperature=1.0, top_k=50)


def waiting(job, client, count=1, settings=SETTINGS, first=0):
    return Waiting(job, client, "a fox", settings, None, [(first, first + count)])


def queue_of(*jobs):
    queue = FairQueue()
    for job in jobs:
        queue.add(job)
    return queue


def taken(queue, most=16):
    calls = []
    while parts := queue.take(most):
        assert len({part.kind for part in parts}) == 1
        assert sum(part.count for part in parts) <= most
        assert largest_power(len(parts)) == len(parts)
        calls.append([(part.job, part.first, part.count) for part in parts])
    return calls


@pytest.mark.parametrize("count", [1, 2, 3, 7, 16, 17, 100, 500])
def test_each_candidate_is_drawn_once(count):
    numbers = [
        number
        for call in taken(queue_of(waiting("a", "x", count, first=5)))
        for _, first, size in call
        for number in range(first, first + size)
    ]
    assert numbers == list(range(5, 5 + count))


def test_one_who_asks_for_1_comes_right_after_a_call_of_one_who_asks_for_500():
    queue = queue_of(waiting("much", "many", 500))
    assert [part.job for part in queue.take(16)] == ["much"]
    queue.add(waiting("little", "one"))
    assert queue.order() == ["little", "much"]
    assert [part.job for part in queue.take(16)] == ["little"]


def test_clients_take_turns_with_all_their_jobs():
    jobs = [waiting(f"{client}{number}", client, 16) for client in "abc" for number in range(3)]
    calls = taken(queue_of(*jobs))
    assert [job for ((job, _, _),) in calls] == ["a0", "b0", "c0", "a1", "b1", "c1", "a2", "b2", "c2"]


def test_who_comes_again_and_again_has_no_more_turns_than_others():
    queue = queue_of(waiting("large", "patient", 160))
    served = Counter()
    for number in range(20):
        queue.add(waiting(f"small {number}", "hasty", 16))
        served.update(part.job.split()[0] for part in queue.take(16))
    assert served == {"large": 10, "small": 10}


def test_jobs_of_one_kind_share_a_call():
    calls = taken(queue_of(*(waiting(f"{number}", f"client {number}") for number in range(20))))
    assert list(map(len, calls)) == [16, 4]
    mixed = [waiting(f"{number}", "x", settings=SETTINGS if number % 2 else guided()) for number in range(8)]
    assert sorted(map(len, taken(queue_of(*mixed)))) == [4, 4]


def guided():
    return GenerationSettings(guidance=3.0, temperature=1.0, top_k=50)


def test_a_job_that_is_removed_is_not_drawn():
    queue = queue_of(waiting("a", "x", 3), waiting("b", "x"), waiting("c", "y"))
    queue.remove("a")
    assert len(queue) == 2 and queue.of("x") == 1 and queue.images() == 2
    assert {job for call in taken(queue) for job, _, _ in call} == {"b", "c"}
    assert not queue.order() and queue.take(16) == []

"""Which share of the work a launcher's environment gives a process."""

import pytest

from dalle_mini.data.encode.launchers import Share, find_share
from dalle_mini.errors import UserError

ARRAY = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "5", "SLURM_ARRAY_TASK_COUNT": "4"}
TASKS = {"SLURM_PROCID": "1", "SLURM_NTASKS": "3"}
POD = {"JOB_COMPLETION_INDEX": "2", "DALLE_MINI_SHARD_COUNT": "9"}
JAX = {"JAX_PROCESS_ID": "0", "JAX_NUM_PROCESSES": "2"}


@pytest.mark.parametrize(
    ("environ", "index", "count"),
    [
        ({}, 0, 1),
        (ARRAY, 2, 4),
        (ARRAY | {"SLURM_ARRAY_TASK_ID": "9", "SLURM_ARRAY_TASK_STEP": "2"}, 2, 4),
        (TASKS, 1, 3),
        (ARRAY | TASKS, 2 * 3 + 1, 12),
        (ARRAY | {"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, 2, 4),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, 0, 1),
        (POD, 2, 9),
        (JAX, 0, 2),
        (TASKS | POD | JAX, 1, 3),
        ({"SLURM_JOB_ID": "5", "JAX_COORDINATOR_ADDRESS": "a:1"}, 0, 1),
    ],
)
def test_the_environment(environ, index, count):
    share = find_share(None, None, environ)
    assert (share.index, share.count) == (index, count)
    assert bool(share.said_by) == (count > 1)


def test_every_process_of_an_array_has_a_share_of_its_own():
    shares = set()
    for array in range(5, 9):
        for task in range(3):
            environ = ARRAY | TASKS | {"SLURM_ARRAY_TASK_ID": str(array), "SLURM_PROCID": str(task)}
            shares.add(find_share(None, None, environ).index)
    assert shares == set(range(12))


def test_what_is_said_outright_comes_first():
    share = find_share(3, 5, ARRAY | POD | JAX)
    assert (share.index, share.count) == (3, 5)


@pytest.mark.parametrize(
    ("index", "count", "environ", "says"),
    [
        (1, None, {}, "--shard-index and --shard-count go together"),
        (None, 4, {}, "--shard-index and --shard-count go together"),
        (4, 4, {}, r"shard 4 of 4 \(--shard-index and --shard-count\): the index must be from 0 to the count - 1"),
        (-1, 4, {}, "shard -1 of 4"),
        (0, 0, {}, "shard 0 of 0"),
        (None, None, ARRAY | {"SLURM_ARRAY_TASK_ID": "20"}, "SLURM_ARRAY_TASK_ID 20 of 4 tasks: an array with gaps"),
        (None, None, ARRAY | {"SLURM_ARRAY_TASK_STEP": "3"}, "an array with gaps"),
        (
            None,
            None,
            TASKS | {"SLURM_PROCID": "x"},
            "SLURM_PROCID is 'x' in the environment",
        ),
        (None, None, {"JOB_COMPLETION_INDEX": "2"}, "set DALLE_MINI_SHARD_COUNT to the job's completions"),
        (None, None, POD | {"JOB_COMPLETION_INDEX": "9"}, "shard 9 of 9"),
    ],
)
def test_half_of_it_or_nonsense(index, count, environ, says):
    with pytest.raises(UserError, match=says):
        find_share(index, count, environ)


def test_one_of_one_is_all_of_it():
    assert Share() == Share(0, 1)

"""Which share of the work is this process's, as the array launcher that started it says."""

from collections.abc import Mapping
from dataclasses import dataclass

from dalle_mini.errors import UserError

COUNT = "DALLE_MINI_SHARD_COUNT"  # Kubernetes tells a pod its index, but not of how many


@dataclass(frozen=True)
class Share:
    """Number `index` of `count` processes that share the work; `said_by` tells who said so, for the user."""

    index: int = 0
    count: int = 1
    said_by: str = ""

    def __post_init__(self):
        if self.count < 1 or not 0 <= self.index < self.count:
            raise UserError(
                f"shard {self.index} of {self.count}{f' ({self.said_by})' if self.said_by else ''}: "
                "the index must be from 0 to the count - 1"
            )


def find_share(index: int | None, count: int | None, environ: Mapping[str, str]) -> Share:
    """The share that was asked for, else the one that the environment tells of, else all of the work.

    Read are, in this order: a SLURM array (SLURM_ARRAY_TASK_ID with _MIN, _STEP and _COUNT) and the tasks of `srun`
    (SLURM_PROCID of SLURM_NTASKS), also both at once; an indexed job of Kubernetes (JOB_COMPLETION_INDEX, of
    DALLE_MINI_SHARD_COUNT, which the job must set); and what `jax.distributed` is started with (JAX_PROCESS_ID of
    JAX_NUM_PROCESSES).

    Raises:
        UserError: one is half said, or makes no sense.
    """
    if index is not None or count is not None:
        if index is None or count is None:
            raise UserError("--shard-index and --shard-count go together: give both, or neither")
        return Share(index, count, "--shard-index and --shard-count")
    return _slurm(environ) or _kubernetes(environ) or _jax(environ) or Share()


def _slurm(environ: Mapping[str, str]) -> Share | None:
    share, said_by = Share(), []
    if "SLURM_ARRAY_TASK_ID" in environ and "SLURM_ARRAY_TASK_COUNT" in environ:
        step = _whole(environ, "SLURM_ARRAY_TASK_STEP", "1") or 1
        place = _whole(environ, "SLURM_ARRAY_TASK_ID") - _whole(environ, "SLURM_ARRAY_TASK_MIN", "0")
        count = _whole(environ, "SLURM_ARRAY_TASK_COUNT")
        if place % step or not 0 <= place // step < count:
            raise UserError(
                f"SLURM_ARRAY_TASK_ID {environ['SLURM_ARRAY_TASK_ID']} of {count} tasks: an array with gaps; number "
                "its tasks one after the other, or give --shard-index and --shard-count"
            )
        share, said_by = Share(place // step, count), ["SLURM_ARRAY_TASK_ID"]
    if "SLURM_PROCID" in environ and "SLURM_NTASKS" in environ:
        task, tasks = _whole(environ, "SLURM_PROCID"), _whole(environ, "SLURM_NTASKS")
        if tasks > 1:
            said_by.append("SLURM_PROCID")
            share = Share(share.index * tasks + task, share.count * tasks, " and ".join(said_by))
    return Share(share.index, share.count, " and ".join(said_by)) if said_by else None


def _kubernetes(environ: Mapping[str, str]) -> Share | None:
    if "JOB_COMPLETION_INDEX" not in environ:
        return None
    if COUNT not in environ:
        raise UserError(
            f"JOB_COMPLETION_INDEX is {environ['JOB_COMPLETION_INDEX']}, but of how many: set {COUNT} to the job's "
            "completions, or give --shard-index and --shard-count"
        )
    return Share(_whole(environ, "JOB_COMPLETION_INDEX"), _whole(environ, COUNT), f"JOB_COMPLETION_INDEX and {COUNT}")


def _jax(environ: Mapping[str, str]) -> Share | None:
    names = ("JAX_PROCESS_ID", "JAX_NUM_PROCESSES")
    if not all(name in environ for name in names):
        return None
    index, count = (_whole(environ, name) for name in names)
    return Share(index, count, " and ".join(names))


def _whole(environ: Mapping[str, str], name: str, default: str = "") -> int:
    value = environ.get(name, default)
    if not value.isdecimal():
        raise UserError(f"{name} is {value!r} in the environment: it must be a whole number")
    return int(value)

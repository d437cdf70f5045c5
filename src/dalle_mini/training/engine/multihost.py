"""Decisions that all processes of a run must take alike.

A process that saves while another one trains on would wait for it for ever. All processes must make each call.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dalle_mini.errors import UserError


def all_agree(ok: bool) -> bool:
    """Whether `ok` holds in every process. All of them must call it."""
    if jax.process_count() == 1:
        return ok
    from jax.experimental import multihost_utils

    return bool(np.all(multihost_utils.process_allgather(np.array(ok))))


def first_process_does(action: Callable[[], Any]) -> None:
    """Run `action` in process 0 while the others wait; where it raises, all of them end."""
    each_process_does(action if jax.process_index() == 0 else lambda: None, "process 0")


def each_process_does(action: Callable[[], Any], who: str = "another process") -> None:
    """Run `action` in every process, and wait for all; where it raises in one, all of them end."""
    error = None
    try:
        action()
    except Exception as raised:
        error = raised
    together = all_agree(error is None)
    if error is not None:
        raise error
    if not together:
        raise UserError(f"{who} ended with an error; it says why")


def end_together(problem: UserError | None) -> None:
    """Raise what process 0 has met, in all processes: one that ends alone leaves the others waiting for it."""
    failed = problem is not None
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        failed = bool(multihost_utils.broadcast_one_to_all(np.int32(failed)))
    if failed:
        raise problem or UserError("process 0 cannot begin: see what it says")


def from_first_process(number: float) -> float:
    """`number` as process 0 has it. All processes must call it."""
    if jax.process_count() == 1:
        return number
    from jax.experimental import multihost_utils

    halves = np.array([number]).view(np.uint32)  # jax would make float32 of it
    return float(np.asarray(multihost_utils.broadcast_one_to_all(halves)).view(np.float64)[0])


class RequestSync:
    """The largest request of all processes, the same in each of them at the same step.

    Requests go through the devices' own queue, behind the train step, and are read a step later, when that step is
    done anyway: nobody waits. A single process gets its own requests at once.
    """

    def __init__(self):
        self._alone = jax.process_count() == 1
        if not self._alone:
            devices = np.asarray(jax.devices())
            self._sharding = NamedSharding(Mesh(devices, "all"), PartitionSpec("all"))
            whole = NamedSharding(Mesh(devices, "all"), PartitionSpec())
            self._largest = jax.jit(lambda requests: requests.max(axis=0), out_shardings=whole)
            self._last: jax.Array | None = None

    def __call__(self, *requests: int) -> tuple[int, ...]:
        """Call it once a step with this process's requests: small numbers, 0 for none."""
        if self._alone:
            return requests
        row = np.asarray(requests, np.int32)[None]
        shape = (len(self._sharding.mesh.devices.flat), len(requests))
        heard = self._last
        self._last = self._largest(jax.make_array_from_callback(shape, self._sharding, lambda _: row))
        return (0,) * len(requests) if heard is None else tuple(int(request) for request in np.asarray(heard))

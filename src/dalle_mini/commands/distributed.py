"""Several processes of one command, under `jax.distributed`."""

import functools
import os
from collections.abc import Callable

from dalle_mini.commands.terminal import starting
from dalle_mini.errors import UserError


def add_distributed_option(add: Callable) -> None:
    add(
        "--distributed",
        action="store_true",
        help="share the work with the other processes of a TPU pod, or of JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES "
        "and JAX_PROCESS_ID; one of them writes",
    )


def join(distributed: bool) -> bool:
    """Join the other processes, where there are some. True in the one that writes and prints."""
    if not distributed:
        return True
    with starting():
        import jax

    whole = functools.partial(_whole, os.environ)
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    try:
        jax.distributed.initialize(address, whole("JAX_NUM_PROCESSES"), whole("JAX_PROCESS_ID"))
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--distributed: the other processes were not found ({reason}): see --help") from None
    return jax.process_index() == 0


def _whole(environment, name: str) -> int | None:
    value = environment.get(name)
    if value is not None and not value.isdecimal():
        raise UserError(f"{name} is {value!r} in the environment: it must be a whole number")
    return None if value is None else int(value)

"""Joins the processes of one command under `jax.distributed`."""

import contextlib
import functools
import os
import socket
import sys
import time
from collections.abc import Callable

from dalle_mini.commands.terminal import starting
from dalle_mini.errors import UserError
from dalle_mini.runtime import console, files, stopping

PATIENCE = 300.0  # seconds that the first process has to come up, as JAX's own
HEARTBEAT_VARIABLE = "DALLE_MINI_HEARTBEAT_SECONDS"
LEAST_HEARTBEAT, MOST_HEARTBEAT = 5, 86400
HEARTBEAT = 20  # seconds; JAX's default of 100 makes many machines wait long for one that was taken away


def add_distributed_option(add: Callable) -> None:
    add(
        "--distributed",
        action="store_true",
        help="share the work with the other processes of a TPU pod, or of JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES "
        "and JAX_PROCESS_ID; one of them writes",
    )


def join(distributed: bool) -> bool:
    """Join the other processes, if there are any.

    From then on this process ends with exit code 75 when another one is silent for DALLE_MINI_HEARTBEAT_SECONDS.

    Returns:
        whether this process is the one that writes and prints.

    Raises:
        UserError: a variable of the environment is wrong, or the other processes were not found.
    """
    if not distributed:
        return True
    with contextlib.nullcontext() if "jax" in sys.modules else starting():
        import jax

    whole = functools.partial(_whole, os.environ)
    address, number = os.environ.get("JAX_COORDINATOR_ADDRESS"), whole("JAX_PROCESS_ID")
    heartbeat = HEARTBEAT if (chosen := whole(HEARTBEAT_VARIABLE)) is None else chosen
    if not LEAST_HEARTBEAT <= heartbeat <= MOST_HEARTBEAT:
        raise UserError(
            f"{HEARTBEAT_VARIABLE} is {heartbeat} in the environment: it must be {LEAST_HEARTBEAT} to {MOST_HEARTBEAT}"
        )
    if address and number:
        _wait_for(address)
    try:
        count = whole("JAX_NUM_PROCESSES")
        with stopping.kept():
            jax.distributed.initialize(address, count, number, heartbeat_timeout_seconds=heartbeat)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"--distributed: the other processes were not found ({files.reason(error)}): see --help"
        ) from None
    from dalle_mini.training.run import peers

    peers.watch(heartbeat)
    return jax.process_index() == 0


def _wait_for(address: str) -> None:
    """Wait until the first process listens. JAX would end this one with a page of text."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"JAX_COORDINATOR_ADDRESS is {address!r} in the environment: it must be HOST:PORT")
    started, told = time.monotonic(), False
    while True:
        try:
            return socket.create_connection((host, int(port)), timeout=2).close()
        except OSError as error:
            waited = time.monotonic() - started
            if waited > PATIENCE:
                reason = error.strerror or error
                raise UserError(
                    f"--distributed: the other processes were not found: none listens at {address} ({reason}); start "
                    "the one with JAX_PROCESS_ID=0 there, or correct JAX_COORDINATOR_ADDRESS"
                ) from None
            if waited > 5 and not told:
                told = True
                console.say(f"note: waiting for the first process at {address}")
            time.sleep(0.2)


def _whole(environment, name: str) -> int | None:
    value = environment.get(name)
    if value is not None and not value.isdecimal():
        raise UserError(f"{name} is {value!r} in the environment: it must be a whole number")
    return None if value is None else int(value)

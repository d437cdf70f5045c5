"""Where the arrays of a run live: parameters on every local device, each batch split between them."""

from __future__ import annotations

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dalle_mini.errors import UserError


def data_parallel(batch_size: int) -> tuple[NamedSharding, NamedSharding]:
    """(of the state, of a batch) over all local devices. Raises UserError where the batch does not divide.

    On a CPU, `JAX_NUM_CPU_DEVICES=2` makes two devices of it: on small networks, whose products are too small to share
    out between cores, two half batches side by side were seen to run 1.2 to 2 times as fast as one whole one.
    """
    devices = jax.local_devices()
    if batch_size % len(devices):
        raise UserError(f"loop.batch_size {batch_size} does not divide by the {len(devices)} local devices")
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)
    return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))

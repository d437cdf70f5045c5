"""Keeps libtpu quiet on a machine without a TPU.

`dalle-mini plan` needs libtpu's compiler. Once it is installed, jax loads it for every command, and it complains in
five lines that it cannot tell which TPU it is on. It asks nothing more if the environment tells.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import MutableMapping
from pathlib import Path

GOOGLE = "0x1ae0"  # the vendor of TPUs on the PCI bus, ...
NO_TPUS = ("0x0042", "0x001f")  # ... and of the network card and the disks of Google's other machines
TOLD = {"TPU_ACCELERATOR_TYPE": "v5litepod-1", "TPU_WORKER_HOSTNAMES": "localhost"}  # any kind that it knows will do


def quiet_libtpu(environment: MutableMapping[str, str] = os.environ, bus: Path = Path("/sys/bus/pci/devices")) -> None:
    """Tell libtpu what it would look for, before jax loads it, where it is installed and there is no TPU.

    What the user has set stays as it is.
    """
    is_asked_for = "JAX_FORCE_TPU_INIT" in environment or any(name.startswith("TPU_") for name in environment)
    if not is_asked_for and importlib.util.find_spec("libtpu") is not None and not _has_tpu(bus):
        environment.update(TOLD)


def _has_tpu(bus: Path) -> bool:
    """Whether there may be a TPU. One of a kind that is not known yet counts."""
    for device in bus.glob("*"):
        try:
            vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "device"))
        except OSError:
            continue
        if vendor == GOOGLE and kind not in NO_TPUS:
            return True
    return False

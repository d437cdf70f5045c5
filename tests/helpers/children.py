"""Scripts in processes of their own, on the CPU."""

import os
import subprocess
import sys


def environment(devices: int | None = None, **more: str) -> dict[str, str]:
    """This process's variables and import path, for a child that has so many CPU devices."""
    counted = {} if devices is None else {"JAX_NUM_CPU_DEVICES": str(devices)}
    path = os.pathsep.join(filter(None, sys.path))
    return {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu", **counted, **more}


def output(script: str, *arguments: object, devices: int) -> str:
    """The output of a script that ends well, on so many CPU devices."""
    command = [sys.executable, script, *map(str, arguments)]
    done = subprocess.run(command, env=environment(devices), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout

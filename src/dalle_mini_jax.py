"""The entry of the command `dalle-mini`. It refuses to run beside the original, whose package is `dalle_mini` too.

It stands outside that package: what the original leaves of it depends on which of the two was installed last.
"""

import contextlib
import os
from importlib.util import find_spec

REFUSAL = (
    "the original dalle-mini has been installed in the same environment, and both packages are called dalle_mini: "
    "pip uninstall -y dalle-mini dalle-mini-jax, then install dalle-mini-jax again"
)


def main() -> int:
    """Run the command and return its exit code."""
    found = find_spec("dalle_mini")  # without an import
    # Whoever uninstalled the original alone has lost our `__init__.py`.
    if found is None or found.origin is None or has_original(os.path.dirname(found.origin)):
        return refuse()
    from dalle_mini.cli import main

    return main()


def has_original(folder: str) -> bool:
    """Whether the folder `dalle_mini` has the original's files: where it has `data.py`, this project has `data/`."""
    return os.path.isfile(os.path.join(folder, "data.py"))


def refuse() -> int:
    """Tell why, and return the exit code."""
    with contextlib.suppress(OSError):  # a closed terminal
        os.write(2, f"error: {REFUSAL}\n".encode())
    return 2

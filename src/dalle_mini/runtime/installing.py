"""The command that installs this package with its extras."""

import shlex
from pathlib import Path

DISTRIBUTION = "dalle-mini-jax"  # `dalle-mini` on the index is the original
_CLONE = Path(__file__).parents[3]


def install_line(*extras: str) -> str:
    """The command to type for these extras of setup.cfg, such as `pip install 'dalle-mini-jax[plan]'`.

    It names no version and no address: pip keeps the package that is installed, wherever it came from, and adds what
    the extras list. In a clone the package may not be installed at all, so the line names the clone.
    """
    is_clone = (_CLONE / "setup.cfg").is_file()
    option, package = ("-e ", _CLONE) if is_clone else ("", DISTRIBUTION)
    names = f"[{','.join(extras)}]" if extras else ""
    return f"pip install {option}{shlex.quote(f'{package}{names}')}"

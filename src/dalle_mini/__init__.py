"""DALL·E mini for JAX and Flax: captions to ranked pictures."""

import os.path
from typing import TYPE_CHECKING

from dalle_mini.errors import UserError
from dalle_mini.version import __version__

if TYPE_CHECKING:
    from dalle_mini.pipeline import DalleMini, Result

if os.path.isfile(os.path.join(os.path.dirname(__file__), "data.py")):  # the original's: ours is the folder `data`
    import dalle_mini.model.configuration  # noqa: F401 (it raises)

__all__ = ["DalleMini", "Result", "UserError", "__version__"]


def __getattr__(name: str):
    # The pipeline imports jax, which takes a second: `dalle-mini --help` and `dalle_mini.text` must not wait for it.
    if name in ("DalleMini", "Result"):
        from dalle_mini import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))

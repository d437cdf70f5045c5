"""Captioned images to a token dataset: `encode(open_source("images/"), Weights(), "OUT")`."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dalle_mini.data.encode.encoders import Weights
    from dalle_mini.data.encode.job import Outcome, encode
    from dalle_mini.data.encode.run import EncodeOptions

__all__ = ["EncodeOptions", "Outcome", "Weights", "encode"]


def __getattr__(name: str):
    # They import JAX and Arrow, and the filters, which the command line imports, must not wait for those.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dalle_mini.data.encode import encoders, job, run

    return getattr({"EncodeOptions": run, "Weights": encoders}.get(name, job), name)

"""Raises ImportError where the files of the original dalle-mini lie between ours.

Installed last, the original replaces `dalle_mini/__init__.py`, and its own imports `dalle_mini/model/configuration.py`
before anything else. Python prefers this package to that file. Installed first, it leaves `dalle_mini/data.py`, which
our `__init__.py` looks for.
"""

import sys

import dalle_mini_jax

if sys.argv[:1] == ["-m"]:  # python -m dalle_mini
    sys.exit(dalle_mini_jax.refuse())
raise ImportError(dalle_mini_jax.REFUSAL)

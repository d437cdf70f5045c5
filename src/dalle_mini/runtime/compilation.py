"""Keeps compiled programs on disk, so that a second run of the command need not compile again."""

import glob
import logging
import os
import platform
import re
import warnings
from pathlib import Path

import jax
import jaxlib
import platformdirs

from dalle_mini.runtime import traced
from dalle_mini.runtime.hashing import short_hash
from dalle_mini.runtime.private import Unsafe, make_private
from dalle_mini.version import __version__

TROUBLE = re.compile(
    r"Error (?P<doing>reading|writing) persistent compilation cache entry for '(?P<program>.+?)': (?P<why>[^\n]*)"
)
LEAST_SECONDS = 0.0  # programs that compile faster have no file; dozens of small ones add up

logger = logging.getLogger("dalle_mini")


def keep_compiled() -> Path | None:
    """Let JAX keep what it compiles in the user's cache folder, and return that folder.

    A folder that the user chose (`JAX_COMPILATION_CACHE_DIR`) stays as it is, and an empty name turns this off. A cache
    folder that cannot be written is not used, nor one that others may write to, since its programs are run. Programs
    for another processor or version lie in another folder: XLA compiles for the very machine that it runs on, and
    several may share a home directory. A damaged program is compiled and written anew.
    """
    chosen = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]  # jax makes its settings at run time
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or chosen:
        return None
    folder = Path(platformdirs.user_cache_dir("dalle-mini")) / "compiled" / _fingerprint()
    try:
        make_private(folder)
    except Unsafe as error:
        logger.warning("%s: compiled programs are not kept there; XDG_CACHE_HOME names another place", error)
        return None
    except OSError:
        return None
    if not os.access(folder, os.W_OK):
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    _mend(folder)
    traced.folder = folder
    return folder


def _mend(folder: Path) -> None:
    """Remove programs that JAX cannot read. It warns, compiles, and keeps the new one only where none is in the way."""
    told = warnings.showwarning
    full: list[re.Match] = []

    def show(message, category, *where, **more) -> None:
        found = TROUBLE.match(str(message))
        if found is None:
            told(message, category, *where, **more)
        elif found["doing"] == "reading":
            for entry in folder.glob(f"{glob.escape(found['program'])}-*-cache"):  # the key is not told
                entry.unlink(missing_ok=True)
        elif not full:
            full.append(found)
            logger.warning("%s: compiled programs cannot be kept (%s)", folder, found["why"])

    warnings.filterwarnings("always", TROUBLE.pattern, UserWarning)
    warnings.showwarning = show


def _fingerprint() -> str:
    parts = [__version__, jax.__version__, jaxlib.__version__, platform.machine(), platform.processor()]
    try:  # every feature of the processor; other systems than Linux have no such file
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        parts += sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
    except OSError:
        pass
    return short_hash("\n".join(parts))

"""Compiled programs are kept on disk, so that a second run of the command need not compile again."""

import hashlib
import os
import platform
from pathlib import Path

import jax
import jaxlib
import platformdirs

from dalle_mini import __version__

LEAST_SECONDS = 0.0  # of compiling that are worth a file: dozens of small programs add up


def keep_compiled() -> Path | None:
    """Let JAX keep what it compiles in the user's cache folder, and return that folder.

    A folder that the user chose (`JAX_COMPILATION_CACHE_DIR`) stays as it is; an empty one turns this off, and so does
    a cache folder that cannot be written. Programs for another processor or version lie in another folder: XLA
    compiles for the very machine that it runs on, and a home directory may be shared by several.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or jax.config.jax_compilation_cache_dir:
        return None
    folder = Path(platformdirs.user_cache_dir("dalle-mini")) / "compiled" / _fingerprint()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    if not os.access(folder, os.W_OK):
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    return folder


def _fingerprint() -> str:
    parts = [__version__, jax.__version__, jaxlib.__version__, platform.machine(), platform.processor()]
    try:  # every feature of the processor; other systems than Linux have no such file
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        parts += sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
    except OSError:
        pass
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

"""Models kept as artifacts of Weights & Biases, `entity/project/name:version`, as DALL·E mini's own were in training.

The extra `wandb` is needed, and a key in `WANDB_API_KEY` or stored by `wandb login`; nobody is ever asked for one.
"""

import contextlib
import io
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from dalle_mini.errors import UserError
from dalle_mini.runtime import files
from dalle_mini.runtime.installing import install_line

_VERSION = re.compile(r"v\d+")


def fetch(name: str, cache_dir: str | os.PathLike | None = None, local_files_only: bool = False) -> Path:
    """The folder of an artifact, downloaded if it is not there yet.

    Args:
        name: `entity/project/name:version`; an alias such as `latest` costs a request, to learn its version.
        cache_dir: where artifacts are kept, in `wandb/<name>`; `~/.cache/dalle-mini` by default.
        local_files_only: make no request.
    Raises:
        UserError: wandb is not installed, has no key, or does not give the artifact.
    """
    path, _, version = name.partition(":")
    root = Path(cache_dir or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "dalle-mini").expanduser() / "wandb"
    folder = root / path / version
    if folder.is_dir() and _VERSION.fullmatch(version):
        return folder
    if local_files_only:
        raise UserError(f"the artifact {name} is not in {root / path} and no request is allowed: load it online once")
    try:
        import wandb
    except ImportError:
        raise UserError(f"{name} is a wandb artifact (there is no such folder): {install_line('wandb')}") from None
    try:
        with _no_questions():
            artifact = wandb.Api().artifact(name)
            folder = root / path / getattr(artifact, "version", version)
            if not folder.is_dir():
                _download(artifact, folder)
    except Exception as error:  # wandb raises its own, its HTTP library's and plain ones, by release
        known = "check the name" if os.environ.get("WANDB_API_KEY") else "check the name, and set WANDB_API_KEY"
        raise UserError(f"wandb does not give the artifact {name} ({files.reason(error)}): {known}") from error
    return folder


def _download(artifact, folder: Path) -> None:
    """Into the folder, which appears when it is whole."""
    files.remove_leftovers(folder.parent)
    with contextlib.suppress(FileExistsError), files.written_beside(folder, replace=False) as partial:
        artifact.download(root=str(partial))  # where another process was quicker, its copy is as good


@contextlib.contextmanager
def _no_questions() -> Iterator[None]:
    """Within it nobody can be asked for an API key: wandb asks where it sees a terminal that is not dumb."""
    stdin, term = sys.stdin, os.environ.get("TERM")
    sys.stdin, os.environ["TERM"] = io.StringIO(), "dumb"
    try:
        yield
    finally:
        sys.stdin = stdin
        if term is None:
            del os.environ["TERM"]
        else:
            os.environ["TERM"] = term

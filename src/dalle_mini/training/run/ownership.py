"""A folder of checkpoints belongs to one run.

Two runs in it would prune each other's checkpoints, and end with each other's weights.

A run has an id, in its `config.json` and in the record of each checkpoint. The folder of its checkpoints has it too:

    FOLDER/run.json      {"run": the id, "process": which start of the run, "output": the run's folder}

Each start of the run writes it anew. In a bucket nothing tells whether the machine that had the folder before is still
at work: if it is, it finds another `process` there at its next save, and ends. On a disk there is a lock besides.
"""

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dalle_mini.errors import UserError
from dalle_mini.runtime.files import create, read_bytes, reason, write_whole
from dalle_mini.training.engine.multihost import first_process_does
from dalle_mini.training.run.checkpoint_folder import recorded_config
from dalle_mini.training.run.folder import CONFIG, RUN, read_settings, write_settings

CLAIM = "run.json"
MOST_BYTES = 1 << 16
ADVICE = "give each run a folder of its own (loop.checkpoints)"


class Claim:
    """A run's right to a folder of checkpoints. All processes must make every call; the first one reads and writes.

    Args:
        out: the run's folder.
        folder: the checkpoints' folder, local or in a bucket.

    Attributes:
        run: the run's id: the one it has, or a new one; in the first process alone. One that was begun by an earlier
            version, without an id, gets one now.

    Raises:
        UserError: the folder is another run's.
    """

    def __init__(self, out: Path, folder: str | os.PathLike):
        self.out, self.folder, self.run = out, str(folder).rstrip("/"), ""
        self._file, self._is_local = f"{self.folder}/{CLAIM}", "://" not in self.folder
        self._seen: bytes | None = None  # what was in the folder when it was looked at; what is in it since `take`
        first_process_does(self._identify)

    def take(self) -> None:
        """Write into the folder that it is this run's. Raises UserError where another run has done so meanwhile."""

        def take() -> None:
            self._check()
            mine = {RUN: self.run, "process": secrets.token_hex(8), "output": str(self.out.absolute())}
            data = (json.dumps(mine) + "\n").encode()
            try:
                self._write(data, new=self._seen is None)
            except FileExistsError:
                raise self._refusal(_owner(self._read())) from None
            self._seen = data

        first_process_does(take)

    def check(self) -> None:
        """Raises UserError where another run, or another process of this one, has taken the folder meanwhile."""
        first_process_does(self._check)

    def check_saved(self, runs: Mapping[int, str | None]) -> None:
        """Raises UserError where a checkpoint is another run's. `runs` are ids by steps; earlier versions had none."""

        def look() -> None:
            for step, run in runs.items():
                if run is not None and run != self.run:
                    raise UserError(
                        f"{self.folder}/{step}: saved by another run ({run}) than that in {self.out} ({self.run}): "
                        "move it away"
                    )

        first_process_does(look)

    def _identify(self) -> None:
        self._seen = self._read()
        owner, path = _owner(self._seen), self.out / CONFIG
        try:
            here = read_settings(path)
        except (OSError, ValueError):
            here = None  # damaged: the checkpoints tell, as they do where the run's folder is gone
        if here is not None:
            run = here.get(RUN)
        elif (found := recorded_config(self.folder)) is not None:
            run = owner.get(RUN) or found.get(RUN)
        else:  # whoever began there has saved nothing: it is gone, or finds out at its first save
            self.run = secrets.token_hex(8)
            return
        if owner and (owner[RUN] != run or self._has_another_folder(owner)):
            raise self._refusal(owner)
        self.run = run or secrets.token_hex(8)
        if here is not None and run is None:  # before the folder has it: a kill between leaves no stranger's folder
            write_settings(path, here | {RUN: self.run})

    def _has_another_folder(self, owner: Mapping[str, Any]) -> bool:
        """Whether the run that has the checkpoints has its folder on this machine, and it is not this run's."""
        other = Path(str(owner.get("output", "")))
        try:
            settings = read_settings(other / CONFIG)
            is_its_own = settings is not None and settings.get(RUN) == owner[RUN]
            return is_its_own and not (self.out.exists() and self.out.samefile(other))
        except (OSError, ValueError):
            return False

    def _check(self) -> None:
        now = self._read()
        if now is not None and now != self._seen:
            raise self._refusal(_owner(now))

    def _refusal(self, owner: Mapping[str, Any]) -> UserError:
        other = owner.get("output", "another folder")
        if owner.get(RUN) == self.run:
            return UserError(f"{self.folder}: the run continues in another process, from {other}: this one ends")
        return UserError(f"{self.folder}: these checkpoints belong to another run, that in {other}: {ADVICE}")

    def _read(self) -> bytes | None:
        """The claim's bytes; None where the folder has none."""
        try:
            if self._is_local:
                return read_bytes(self._file, MOST_BYTES)
            files, path = self._place()
            return files.cat_file(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except Exception as error:  # a bucket's client has errors of its own
            raise UserError(f"{self._file}: cannot be read ({reason(error)})") from error

    def _write(self, data: bytes, *, new: bool) -> None:
        """Raises FileExistsError where it is `new` and there: if two runs begin at once, one gets the folder."""
        try:
            if not self._is_local:
                files, path = self._place()
                files.pipe_file(path, data, mode="create" if new else "overwrite")
            elif new:
                with create(self._file) as file:
                    file.write(data)
            else:
                write_whole(self._file, data)
        except (FileExistsError, UserError):
            raise
        except Exception as error:
            raise UserError(f"{self._file}: cannot be written ({reason(error)})") from error

    def _place(self) -> tuple[Any, str]:
        from fsspec.core import url_to_fs  # an import of 0.1 s

        return url_to_fs(self._file)


def _owner(claim: bytes | None) -> dict[str, Any]:
    """The content of a folder's claim; empty where there is none, or a power cut has left it half-written."""
    try:
        found = json.loads(claim or b"{}")
        return found if isinstance(found[RUN], str) else {}
    except (ValueError, KeyError, TypeError):
        return {}

#!/usr/bin/env python3
"""As much of gcloud as tpu_vm.sh uses, over folders: $FAKE/vm is the VM's home, $FAKE/bucket is gs://bucket.

$FAKE/state holds the VM's state, $FAKE/calls every call. $FAKE/full lets so many creations fail for want of
room. With $FAKE/refusing nothing can be written to the bucket.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

FAKE = Path(os.environ["FAKE"])
STATE, HOME, FULL = FAKE / "state", FAKE / "vm", FAKE / "full"


def fail(text: str) -> None:
    sys.exit(f"ERROR: (gcloud) {text}")


def local(path: str) -> Path:
    return FAKE / path.removeprefix("gs://") if path.startswith("gs://") else Path(path)


def storage(verb: str, *words: str) -> None:
    source, *rest = (word for word in words if not word.startswith("--"))
    if verb == "ls":
        return None if local(source).exists() else fail("One or more URLs matched no objects.")
    target = local(rest[0])
    if rest[0].startswith("gs://") and (FAKE / "refusing").exists():
        fail("HTTPError 503: Service Unavailable")
    if verb == "rsync":
        if not local(source).exists():
            fail("no such folder")
        shutil.copytree(local(source), target, dirs_exist_ok=True)
    elif not local(source).exists():
        fail("matched no objects")
    else:
        target = target / local(source).name if rest[0].endswith("/") else target
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(local(source), target)


def end_vm() -> None:
    pid = HOME / "run" / "pid"
    if pid.exists():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(pid.read_text()), signal.SIGKILL)
    shutil.rmtree(HOME, ignore_errors=True)


def tpu_vm(verb: str, *words: str) -> None:
    options = dict(word.removeprefix("--").split("=", 1) for word in words if word.startswith("--") and "=" in word)
    names = [word for word in words if not word.startswith("--")]
    if verb == "create":
        left = int(FULL.read_text()) if FULL.exists() else 0
        if left:
            FULL.write_text(str(left - 1))
            fail('There is no more capacity in the zone "z"; code RESOURCE_EXHAUSTED')
        if "v3-7" in options["accelerator-type"]:
            fail("INVALID_ARGUMENT: no such accelerator")
        if STATE.exists():
            fail("ALREADY_EXISTS")
        HOME.mkdir()
        STATE.write_text("READY")
    elif not STATE.exists():
        fail("NOT_FOUND: Resource 'projects/p/locations/z/nodes/n' was not found")
    elif verb == "describe":
        print(STATE.read_text())
    elif verb == "delete":
        end_vm()
        STATE.unlink()
    elif STATE.read_text() != "READY":
        sys.exit(255)
    elif verb == "ssh":
        sys.exit(subprocess.call(["bash", "-c", options["command"]], cwd=HOME, env={**os.environ, "HOME": str(HOME)}))
    elif verb == "scp":
        shutil.copy(names[0], HOME / names[1].partition(":")[2])


def main() -> None:
    words = sys.argv[1:]
    with (FAKE / "calls").open("a") as file:
        file.write(json.dumps(words) + "\n")
    if words[0] == "storage":
        storage(*words[1:])
    else:
        tpu_vm(*words[3:])


main()

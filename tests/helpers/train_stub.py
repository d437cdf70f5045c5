"""In the place of `dalle-mini train`: `train_stub.py CONFIG --output OUT --resume auto key=value...`.

Logs a few records whose loss depends on `rate`. `what=` says what else it does.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

config, _, out, *rest = sys.argv[1:]
assert rest[:2] == ["--resume", "auto"]
settings = dict(one.split("=", 1) for one in rest[2:])
out, what = Path(out), settings.get("what")
out.mkdir(parents=True, exist_ok=True)
with (out / "calls").open("a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\n")
if what == "refuse":
    print("starting\nerror: rate: no such setting; did you mean ratio?", file=sys.stderr)
    sys.exit(2)
if what == "early":
    sys.exit(143)
if what == "break":
    raise ZeroDivisionError("no error: line of its own")
if what == "wait" and not (out / "waited").exists():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
    (out / "waited").write_text(str(os.getpid()))
    time.sleep(60)
rate = float(settings.get("optimizer.rate", settings.get("rate", 1)))
if what == "slow":  # so that there is time to prune it
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    for step in (1, 2, 3, 4):
        with (out / "log.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, "loss": rate, "eval_loss": rate}) + "\n")
        time.sleep(2.5 if step == 2 else 0.1)
    sys.exit(0)
with (out / "log.jsonl").open("w") as file:
    for step in (1, 2, 3):
        record = {"step": step, "loss": rate / step, "pictures_per_second": 10.0 * step}
        file.write(json.dumps(record) + "\n")
    for loss in (2 * rate, rate, 3 * rate):
        file.write(json.dumps({"step": 3, "eval_loss": loss}) + "\n")

"""What a run says of itself: JSON lines in a file, and one live line on the terminal."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


class Tracker:
    """Append every record to `path` as a JSON line; show the newest on one terminal line.

    A resumed run goes on in the same file: records from `step` on are dropped first, since they will be made again.
    """

    def __init__(self, path: Path, steps: int, step: int = 0, label: str = ""):
        self.path, self.steps, self.label = path, steps, label
        self._started, self._start_step = time.monotonic(), step
        self._live = sys.stderr.isatty()
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            kept = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
            beside = path.with_suffix(".tmp")
            beside.write_text("".join(line + "\n" for line in kept))
            beside.replace(path)

    def log(self, step: int, metrics: dict[str, float], examples_per_second: float | None = None) -> None:
        record = {"step": step, "time": round(time.time(), 1), **{k: float(v) for k, v in metrics.items()}}
        if examples_per_second is not None:
            record["pictures_per_second"] = round(examples_per_second, 2)
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        self._show(step, metrics, examples_per_second)

    def say(self, text: str) -> None:
        """A line that stays."""
        print(("\r\x1b[K" if self._live else "") + f"{self.label}: {text}", file=sys.stderr, flush=True)

    def _show(self, step: int, metrics: dict[str, float], rate: float | None) -> None:
        done = step - self._start_step
        elapsed = time.monotonic() - self._started
        left = elapsed / done * (self.steps - step) if done > 0 else 0.0
        values = "  ".join(f"{name} {float(value):.4g}" for name, value in metrics.items())
        speed = f"  {rate:.1f} pictures/s" if rate is not None else ""
        line = f"{self.label} {step}/{self.steps}  {values}{speed}  {left / 60:.0f} min left"
        print(f"\r\x1b[K{line}" if self._live else line, end="" if self._live else "\n", file=sys.stderr, flush=True)


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line cut off by a kill

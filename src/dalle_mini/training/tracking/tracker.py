"""A run's log: JSON lines, a page with curves and images, wandb, and one live line on the terminal.

    OUT/log.jsonl              a record a line; null is a number that is not finite or not known
        report.html            curves and images (`reports/run_page.py`), written anew with every evaluation
        samples/<step>/        images of the fixed prompts (`samples.py`)
        wandb.json, wandb/     the run at wandb, where it is tracked there (`wandb.py`)

Process 0 writes; in the others a `Tracker` does nothing.
"""

from __future__ import annotations

import math
import shutil
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dalle_mini.errors import UserError
from dalle_mini.runtime import console
from dalle_mini.runtime.console import duration
from dalle_mini.training.config.sections import TrackingConfig
from dalle_mini.training.engine.flops import Work
from dalle_mini.training.engine.hardware import peak_flops_of_all
from dalle_mini.training.engine.multihost import end_together
from dalle_mini.training.records import append_record, drop_what_comes_after, samples_folder

if TYPE_CHECKING:
    from dalle_mini.training.tracking.samples import Sample
    from dalle_mini.training.tracking.wandb import WandbRun

CLEARED = "\r\x1b[K"  # the terminal's line
WINDOW = 20  # the time left is told from the rate of so many records


class Tracker:
    """A run's log, page, wandb run and terminal line.

    A resumed run goes on in the same files: their records and samples beyond `start_step` are dropped first, since they
    will be made again.

    Args:
        out: the run's folder.
        config: the run's settings, shown on the page and sent to wandb.
        steps: the steps of the whole run.
        start_step: the step at which this process begins.
        label: the beginning of each line on the terminal.
        tracking: whether to use wandb.
        work: the arithmetic of an image, for tokens a second and MFU.
    Raises:
        UserError: the folder cannot be written, or wandb is asked for and cannot start.
    """

    def __init__(
        self,
        out: str | Path,
        config: Mapping[str, Any] | None,
        steps: int,
        start_step: int = 0,
        label: str = "",
        tracking: TrackingConfig | None = None,
        work: Work | None = None,
    ):
        import jax

        self.out, self.config, self.steps, self.label = Path(out), dict(config or {}), steps, label
        self._work, self._line = work or Work(), LiveLine(steps, label)
        self._wandb: WandbRun | None = None
        self._warned: set[str] = set()
        self._on, self._closing = jax.process_index() == 0, False
        problem = None
        if self._on:
            try:
                self._open(start_step, tracking)
            except UserError as error:
                problem = error
        end_together(problem)

    def _open(self, start_step: int, tracking: TrackingConfig | None) -> None:
        if self._work.peak_flops is None:
            self._work = Work(self._work.tokens_per_picture, self._work.flops_per_picture, peak_flops_of_all())
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            drop_what_comes_after(self.out, start_step)
        except OSError as error:
            raise UserError(f"{self.out}: cannot write there ({error.strerror or error})") from error
        if tracking is not None and tracking.wandb is not None:
            from dalle_mini.training.tracking.wandb import WandbRun

            self._wandb = WandbRun(self.out, tracking, self.config, self.label, resumed=start_step > 0, say=self.say)

    def log(self, step: int, metrics: Mapping[str, float], images_per_second: float | None = None) -> None:
        """Write a record after `step` updates. A record with a rate is one of training, and has speed and memory too.

        `reports/run_page.py` says which names share a chart on the page.
        """
        if not self._on:
            return
        values: dict[str, float | None] = {name: float(value) for name, value in metrics.items()}
        if images_per_second is not None:
            values |= self._speed(images_per_second) | memory()
        record: dict[str, float | None] = {"step": step, "time": round(time.time(), 1)}
        record |= {
            name: value if value is not None and math.isfinite(value) else None for name, value in values.items()
        }
        self.write(lambda: append_record(self.out, record))
        if self._wandb is not None:
            self._wandb.log(record)
        self._line.show(step, metrics, images_per_second)

    def samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Write a step's samples to `samples/<step>/`, and log them."""
        if not (self._on and samples):
            return
        from dalle_mini.training.tracking.samples import mean_score, write_samples

        folder = samples_folder(self.out, step)
        self.write(lambda: write_samples(folder, step, samples))
        if self._wandb is not None:
            self._wandb.samples(step, samples)
        score = mean_score(samples)
        if score is not None:
            self.log(step, {"sample_score": score})

    def checkpoint(self, step: int, folder: str | Path, kind: str = "checkpoint") -> None:
        """Send a whole checkpoint, or the final weights (`kind` is "model"), to wandb if the settings say so."""
        if self._wandb is not None:
            self._wandb.artifact(step, folder, kind)

    def report(self) -> None:
        """Write `report.html` anew."""
        if not self._on:
            return
        from dalle_mini.reports.run_page import write_report

        self.write(lambda: write_report(self.out, self.config, self.steps, self.label))

    def doing(self, what: str) -> None:
        """Show the current activity on a terminal's live line."""
        if self._on:
            self._line.doing(what)

    def say(self, text: str) -> None:
        """A line that stays on the terminal."""
        if self._on:
            self._line.say(text)

    def close(self, failed: bool = False) -> None:
        """Write the page, end the wandb run and leave the terminal on a line of its own."""
        self._closing = failed
        self.report()
        if self._wandb is not None:
            self._wandb.close(failed)
        self._line.close()

    def _speed(self, images_per_second: float) -> dict[str, float | None]:
        speed: dict[str, float | None] = {"pictures_per_second": round(images_per_second, 2)}
        if self._work.tokens_per_picture is not None:
            speed["tokens_per_second"] = round(images_per_second * self._work.tokens_per_picture, 1)
        if self._work.flops_per_picture is not None:
            peak = self._work.peak_flops
            speed["mfu"] = None if peak is None else images_per_second * self._work.flops_per_picture / peak
        return speed

    def write(self, action: Callable[[], Any]) -> None:
        """Run an action that writes. A full disk is told once and does not end the run, unless checkpoints fail too."""
        try:
            action()
        except (OSError, UserError) as error:
            if str(error) not in self._warned and not self._closing:  # the run's own failure is told
                self._warned.add(str(error))
                self.say(f"not logged: {error}")


class LiveLine:
    """Step, loss, images a second and time left: one line on a terminal, a line each time elsewhere."""

    def __init__(self, steps: int, label: str = "", clock=time.monotonic):
        self.steps, self.label, self._clock = steps, label, clock
        self._live, self._open = console.is_terminal(), False
        self._marks: deque[tuple[int, float]] = deque(maxlen=WINDOW)

    def show(self, step: int, metrics: Mapping[str, float], rate: float | None) -> None:
        if rate is not None:
            self._marks.append((step, self._clock()))
        # Dictionaries from jax.jit are in alphabetical order.
        names = sorted(metrics, key=lambda name: (name not in ("loss", "eval_loss"), list(metrics).index(name)))
        shown = [f"{name} {float(metrics[name]):.4g}" for name in names]
        parts = [f"{self.label} {step}/{self.steps}".strip(), *shown[:1]]
        if rate is not None:
            parts.append(f"{rate:.1f} images/s")
            left = self.seconds_left()
            if left is not None:
                parts.append(f"{duration(left)} left")
        parts += shown[1:]  # last, since the end may be cut off
        line = "  ".join(parts)
        if self._live:
            self._overwrite(line)
        else:
            console.say(line)

    def doing(self, what: str) -> None:
        """Show `what` in place of the line until the next one, on a terminal only."""
        if self._live:
            self._overwrite(f"{self.label}  {what}".strip())

    def _overwrite(self, line: str) -> None:
        width = shutil.get_terminal_size().columns
        line = line if len(line) < width else line[: width - 2] + "…"  # one that wraps cannot be overwritten
        console.say(line, start=CLEARED, end="")
        self._open = True

    def seconds_left(self) -> float | None:
        """The time left at the rate of the last records; None before there are two.

        Evaluations and checkpoints between them count. Compiling does not: the first record comes after it.
        """
        if len(self._marks) < 2:
            return None
        (first, began), (last, ended) = self._marks[0], self._marks[-1]
        return (ended - began) / (last - first) * (self.steps - last) if last > first else None

    def say(self, text: str) -> None:
        text = f"{self.label}: {text}" if self.label else text
        console.say(text, start=CLEARED if self._live else "")
        self._open = False

    def close(self) -> None:
        if self._open:
            console.say("")
            self._open = False


def memory() -> dict[str, float]:
    """GiB in use: on the fullest device of this process, where it says so, and by this process on the host."""
    import jax
    import psutil

    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    found = {}
    for name, field in (("device_memory_gib", "bytes_in_use"), ("device_memory_peak_gib", "peak_bytes_in_use")):
        known = [one[field] for one in stats if field in one]
        if known:
            found[name] = round(max(known) / 2**30, 3)
    found["host_memory_gib"] = round(psutil.Process().memory_info().rss / 2**30, 3)
    return found

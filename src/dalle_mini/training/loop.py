"""The loop that every trainer shares, read top to bottom.

The batch of a step and the key of a step are functions of (seed, step) alone. So a checkpoint needs no iterator state,
and a run that was killed continues as if it had not been.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dalle_mini.errors import UserError
from dalle_mini.training.checkpoint import Checkpoints
from dalle_mini.training.config import LoopConfig, MeshConfig
from dalle_mini.training.sharding import make_mesh
from dalle_mini.training.step import TrainState, step_program
from dalle_mini.training.tracking import Tracker


def run(trainer: Any, loop: LoopConfig, out: str | Path, mesh: MeshConfig | None = None) -> TrainState:
    """Train into the folder `out`, continuing what is there; at the end the weights are in `out/final`.

    `out` holds `config.json` (everything the run was started with), `log.jsonl`, `checkpoints/` and `final/`.
    """
    out = Path(out)
    _keep_config(out, trainer, loop)
    checkpoints = Checkpoints(out / "checkpoints", keep=loop.keep)
    mesh = mesh or MeshConfig()
    program = step_program(trainer, loop, mesh, make_mesh(mesh))
    key = jax.random.key(loop.seed)
    state = program.init(jax.random.fold_in(key, 0xD0))
    restored = checkpoints.restore(state)
    state = state if restored is None else restored
    start = int(state.step)
    tracker = Tracker(out, {}, loop.steps, start, trainer.name)
    if start:
        tracker.say(f"continuing from step {start}")

    rows = loop.batch_size // loop.accumulation  # of an evaluation's batch
    window_start, window_step, saved_at = time.monotonic(), start, time.monotonic()
    try:
        for step, batch in _prefetched(trainer, start, loop.steps):
            state, metrics = program.step(state, program.place(batch), jax.random.fold_in(key, step))
            done = step + 1
            if done % loop.log_every == 0 or done == loop.steps:
                metrics = {name: float(value) for name, value in metrics.items()}  # waits for the device
                rate = (done - window_step) * loop.batch_size / (time.monotonic() - window_start)
                tracker.log(done, metrics, rate)
                _check_finite(metrics["loss"], done, trainer, out)
                window_start, window_step = time.monotonic(), done
            if done % loop.eval_every == 0 or done == loop.steps:
                tracker.log(
                    done, {f"eval_{name}": value for name, value in trainer.evaluate(program, state, rows).items()}
                )
                window_start, window_step = time.monotonic(), done
            if time.monotonic() - saved_at > 60 * loop.checkpoint_minutes or done == loop.steps:
                _check_finite(metrics["loss"], done, trainer, out)  # a broken state must not become the newest
                checkpoints.save(done, state)
                saved_at = time.monotonic()
    finally:
        checkpoints.close()
    trainer.export(state, out / "final")
    tracker.say(f"done: {out / 'final'}")
    return state


def _prefetched(trainer: Any, start: int, stop: int) -> Iterator[tuple[int, Any]]:
    """(step, batch) with the next batch made in a thread while the device works on this one."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        ahead = pool.submit(trainer.batch, start) if start < stop else None
        for step in range(start, stop):
            batch = ahead.result()
            if step + 1 < stop:
                ahead = pool.submit(trainer.batch, step + 1)
            yield step, batch


def _check_finite(loss: Any, step: int, trainer: Any, out: Path) -> None:
    if not np.isfinite(float(loss)):
        raise FloatingPointError(
            f"{trainer.name}: the loss is {float(loss)} at step {step}, and continuing {out} would come to it again: "
            "start anew in another folder, with a lower training.optimizer.learning_rate or more warmup_steps"
        )


def _keep_config(out: Path, trainer: Any, loop: LoopConfig) -> None:
    """Write the run's configuration, or refuse to continue a run with another one."""
    config = {"trainer": trainer.name, "loop": dataclasses.asdict(loop), **getattr(trainer, "settings", dict)()}
    config = json.loads(json.dumps(config, default=str))
    path = out / "config.json"
    if path.exists():
        try:
            found = json.loads(path.read_text())
            if found.get("data") is None:  # a run from before the data was recorded
                config.pop("data", None)
            changed = sorted(_differences(found, config))
        except (ValueError, AttributeError, TypeError) as error:
            raise UserError(f"{path}: damaged, so the run cannot be continued ({error}); use another folder") from error
        if changed:
            raise UserError(
                f"{path}: the run there was started with other values of {', '.join(changed)}: "
                "continue it with those, or choose another folder"
            )
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".tmp")
        beside.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        os.replace(beside, path)
    except OSError as error:
        raise UserError(f"{out}: cannot write there ({error.strerror})") from error


MAY_CHANGE = {"loop.log_every", "loop.eval_every", "loop.checkpoint_minutes", "loop.keep"}


def _differences(old: Any, new: Any, prefix: str = "") -> Iterator[str]:
    for name in sorted({*old, *new}):
        a, b = old.get(name), new.get(name)
        path = f"{prefix}{name}"
        if isinstance(a, dict) and isinstance(b, dict):
            yield from _differences(a, b, path + ".")
        elif a != b and path not in MAY_CHANGE:
            yield path

"""A tiny seq2seq run in a process of its own, which gets a signal on the way.

    stopped_runs.py OUT [--signal KILL|TERM|INT --step STEP --delay SECONDS] [--address HOST:PORT --process I]

The signal comes so long after the batch of a step was asked for: while it runs, or its checkpoint is written. With
--address it is one of two processes, each with the devices that JAX_NUM_CPU_DEVICES says.
"""

import argparse
import os
import signal
import sys
import threading
import time
from pathlib import Path

import jax

import tiny_runs
from dalle_mini.errors import UserError
from dalle_mini.training.run.loop import run

STEPS = 9


def loop(**changes):
    """Every step is saved, and evaluated now and then."""
    return tiny_runs.short_loop(**{"steps": STEPS, "batch_size": 8, "eval_every": 4, "log_every": 2, **changes})


class Evaluated(tiny_runs.Bare):
    """An evaluation that compiles nothing, and has a row of the log to be missed."""

    def evaluate(self, program, state, batch_size):
        return {"loss": 10.0 - float(state.loss_mean)}

    def rows(self, step):
        return [f"row {step}.{i}" for i in range(8)]


def trainer(folder: Path, die_at: int | None = None, die=None):
    return Evaluated(tiny_runs.make("seq2seq", folder, loop()), die_at, die)


class Signalled(Evaluated):
    def batch(self, step):
        if step == self.die_at:
            threading.Thread(target=self.die).start()
        return self.trainer.batch(step)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--signal", default="KILL")
    parser.add_argument("--step", type=int)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--address")
    parser.add_argument("--process", type=int)
    arguments = parser.parse_args()

    def hit():
        time.sleep(arguments.delay)
        os.kill(os.getpid(), getattr(signal, f"SIG{arguments.signal}"))

    if arguments.address:
        jax.distributed.initialize(arguments.address, 2, arguments.process)
        print(f"{jax.process_count()} processes, {jax.device_count()} devices", file=sys.stderr)
    made = tiny_runs.make("seq2seq", arguments.out / f"process-{arguments.process}", loop())
    try:
        run(Signalled(made, arguments.step, hit), loop(), arguments.out)
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)

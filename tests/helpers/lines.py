"""The smallest trainer: two numbers, on batches of one."""

import json
import os
import time

import jax
import jax.numpy as jnp
import numpy as np

from dalle_mini.training.config.sections import LoopConfig, OptimizerConfig
from dalle_mini.training.engine.trainer import Loss, Trainer


class Line(Trainer):
    """Fits w to the mean of its batches, which are times `wrong` from step `broken_at` on until `mended_at`."""

    name = "line"

    def __init__(self, rate: float = 0.25, width: int = 2, broken_at: int | None = None, mended_at=99, wrong=np.nan):
        self.mended_at, self.wrong = mended_at, wrong
        self.rate, self.width, self.broken_at = rate, width, broken_at
        self.optimizer = OptimizerConfig("adamw", warmup_steps=0, decay="constant")
        object.__setattr__(self.optimizer, "learning_rate", rate)  # also one that no config may have
        self.evaluated = []

    def settings(self):
        return {"training": {"rate": self.rate, "model": {"width": self.width, "levels": (1, 2)}}}

    def parameters(self, key):
        return {"w": jax.random.normal(key, (self.width,))}, ()

    def batch_shapes(self, batch_size):
        return {"x": jax.ShapeDtypeStruct((batch_size, 1), jnp.float32)}

    def batch(self, step):
        x = np.full((4, 1), 3.0, np.float32)
        return {"x": x * self.wrong if self.broken_at is not None and self.broken_at <= step < self.mended_at else x}

    def rows(self, step):
        return [f"{step}.{i}" for i in range(7)]

    def loss(self, params, batch, key, auxiliary):
        count = jnp.float32(len(batch["x"]))
        total = jnp.sum((params["w"] - batch["x"]) ** 2) / self.width
        noise = 0.0 if key is None else jax.random.normal(key)
        return Loss(total, count, {"noise": noise * count})

    def evaluate(self, program, state, batch_size):
        self.evaluated.append(int(state.step))
        return {"distance": float(jnp.abs(state.params["w"] - 3).max())}

    def export(self, state, folder):
        np.save(folder / "w.npy", state.params["w"])


LOOP = LoopConfig(steps=10, batch_size=4, log_every=3, eval_every=4)


class Asked(Line):
    """A line whose process gets a signal when the batch of a step is made."""

    def __init__(self, number, at, **line):
        super().__init__(**line)
        self.number, self.at = number, at

    def batch(self, step):
        if step == self.at:
            os.kill(os.getpid(), self.number)
            time.sleep(0.05)
        return super().batch(step)


class Judged(Line):
    """A line whose evaluation gives these losses."""

    def __init__(self, losses):
        super().__init__()
        self.losses = losses

    def evaluate(self, program, state, batch_size):
        return {"loss": self.losses[int(state.step)]}


def logged(folder, name):
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return {line["step"]: line[name] for line in lines if name in line}


def bad_batches(folder):
    return [json.loads(line) for line in (folder / "bad_batches.jsonl").read_text().splitlines()]

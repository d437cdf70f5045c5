"""Our updates on the batches of the published program's training curves (tests/golden/training).

As a script, `golden_curves.py OUT NAME:DATAxMODEL:ACCUMULATION[:plain] ...`, it runs those on as many fake devices as
the environment makes, `plain` without splitting parameters over `data`, and writes each as OUT/<that>.npz.
"""

import dataclasses
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dalle_mini.models import DalleBart
from dalle_mini.training.config import LoopConfig, MeshConfig, OptimizerConfig
from dalle_mini.training.seq2seq import Seq2SeqTrainer, Seq2SeqTraining
from dalle_mini.training.sharding import gathered, make_mesh
from dalle_mini.training.step import step_program
from dalle_mini.weights.pretrained import flatten

GOLDEN = Path(__file__).parents[1] / "golden"
WEIGHTS = {
    "adafactor_tiny_scan": GOLDEN / "training" / "adafactor_tiny_scan",
    "adamw_tiny_scan": GOLDEN / "training" / "adafactor_tiny_scan",
    "adafactor_factored_scan": GOLDEN / "training" / "adafactor_factored_scan",
    "trainpy_adafactor": GOLDEN / "dallebart" / "a_normformer_glu_scan",
}
ROWS, STEPS = 6, 20  # of a published batch: two slices of three


def golden(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / "training" / name / "golden.json").read_text())


def optimizer(name: str) -> OptimizerConfig:
    """The recipe of a curve, which warms up for four steps and stays."""
    warm = {"warmup_steps": 4, "decay": "constant"}
    if name == "adamw_tiny_scan":  # it clips no global norm
        return OptimizerConfig("adamw", 0.002, weight_decay=0.1, b2=0.999, clip=0.0, **warm)
    return OptimizerConfig("adafactor", 0.01, **warm)


class GoldenBatches:
    """The published batches, with rows of padding that do not count so that 8 devices and 4 pieces divide them."""

    vqgan = "golden"

    def __init__(self, name: str, config, rows: int = ROWS):
        with np.load(GOLDEN / "training" / name / "batches.npz") as arrays:
            names = ("input_ids", "attention_mask", "labels", "decoder_input_ids")
            self.table = {key: arrays[key].reshape(STEPS, ROWS, -1) for key in names}
        self.rows, self.codebook_size, self.image_length = rows, config.image_vocab_size, config.image_length

    def at(self, step):
        spare = np.resize(np.arange(ROWS), self.rows)
        batch = {name: self.table[name][step][spare] for name in ("input_ids", "attention_mask", "labels")}
        if self.rows > ROWS:
            batch["labels"][ROWS:] = 3  # whatever they say
            batch["label_mask"] = (np.arange(self.rows) < ROWS).astype(np.float32)
        return batch

    def evaluation(self, batch_size):
        yield self.at(0)

    def origin(self):
        return {}


class AnyTokenizer:
    """The golden batches are tokenised already."""

    def check_vocab_size(self, rows):
        pass


@dataclass
class Curve:
    loss: list[float] = field(default_factory=list)
    grad_norm: list[float] = field(default_factory=list)
    params: dict[str, np.ndarray] = field(default_factory=dict)


def trainer(name: str, rows: int = ROWS, optimizer_config: OptimizerConfig | None = None, **changes) -> Seq2SeqTrainer:
    """Of a curve's weights and batches, in float32; `changes` are fields of the model's config."""
    folder = WEIGHTS[name]
    config, _ = DalleBart.open_pretrained(folder)
    training = Seq2SeqTraining(
        model=dataclasses.replace(config, **changes),
        optimizer=optimizer_config or optimizer(name),
        dtype="float32",
        init_from=str(folder),
    )
    batches = GoldenBatches(name, config, rows)
    return Seq2SeqTrainer(training, batches, batches, AnyTokenizer())


def run(trainer: Seq2SeqTrainer, mesh: MeshConfig, accumulation: int = 1, steps: int = STEPS) -> Curve:
    loop = LoopConfig(steps=STEPS, batch_size=trainer.train.rows, accumulation=accumulation)
    program = step_program(trainer, loop, mesh, make_mesh(mesh))
    state, curve = program.init(jax.random.key(0)), Curve()
    for step in range(steps):
        batch = program.place(trainer.batch(step))
        state, metrics = program.step(state, batch, jax.random.fold_in(jax.random.key(1), step))
        curve.loss.append(float(metrics["loss"]))
        curve.grad_norm.append(float(metrics["grad_norm"]))
    curve.params = flatten(gathered(state.params))
    return curve


if __name__ == "__main__":
    out, *wanted = sys.argv[1:]
    for which in wanted:
        name, grid, accumulation, *plain = which.split(":")
        data, model = map(int, grid.split("x"))
        mesh = MeshConfig(data, model, fsdp=not plain)
        curve = run(trainer(name, rows=8 * int(accumulation)), mesh, int(accumulation))
        np.savez(Path(out) / f"{which}.npz", loss=curve.loss, grad_norm=curve.grad_norm, **curve.params)

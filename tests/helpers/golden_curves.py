"""Our updates on the batches of the published program's training curves (tests/golden/training).

As a script, `golden_curves.py OUT NAME:DATAxMODEL:MICROBATCHES[:OPTION...] ...`, it runs each of those on so many of
the devices that the environment makes, with so many microbatches, and writes OUT/<that>.npz: losses, gradient norms and
final parameters. Options: `plain` does not split parameters over `data`, `dropout` drops out, `muon` is Muon.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dalle_mini.models import DalleBart
from dalle_mini.training.config.sections import LoopConfig, MeshConfig, OptimizerConfig
from dalle_mini.training.engine.sharding import gathered, make_mesh
from dalle_mini.training.engine.step import step_program
from dalle_mini.training.engine.trainer import StepProgram, TrainState
from dalle_mini.training.seq2seq.trainer import Seq2SeqTrainer, Seq2SeqTraining
from dalle_mini.weights.pretrained import flatten

GOLDEN = Path(__file__).parents[1] / "golden"
WEIGHTS = {
    "adafactor_tiny_scan": GOLDEN / "training" / "adafactor_tiny_scan",
    "adamw_tiny_scan": GOLDEN / "training" / "adafactor_tiny_scan",
    "adafactor_factored_scan": GOLDEN / "training" / "adafactor_factored_scan",
    "trainpy_adafactor": GOLDEN / "dallebart" / "a_normformer_glu_scan",
}
TINY = "adafactor_tiny_scan"
ROWS, STEPS = 6, 20  # of a published batch: two slices of three
DROPOUT = {"dropout": 0.1, "attention_dropout": 0.1, "activation_dropout": 0.1}


def golden(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / "training" / name / "golden.json").read_text())


def recipe(name: str) -> OptimizerConfig:
    """The optimizer of a published curve: it warms up for four steps and stays."""
    warm = {"warmup_steps": 4, "decay": "constant"}
    if name == "adamw_tiny_scan":  # it clips no global norm
        return OptimizerConfig("adamw", 0.002, weight_decay=0.1, b2=0.999, clip=0.0, **warm)
    return OptimizerConfig("adafactor", 0.01, **warm)


class GoldenBatches:
    """The published batches, with rows that do not count, so that every mesh and all microbatches divide them."""

    vqgan = "golden"

    def __init__(self, name: str, config, rows: int):
        name = TINY if name == "adamw_tiny_scan" else name  # the same batches
        with np.load(GOLDEN / "training" / name / "batches.npz") as arrays:
            names = ("input_ids", "attention_mask", "labels", "decoder_input_ids")
            self.table = {key: arrays[key].reshape(STEPS, ROWS, -1) for key in names}
        self.rows, self.codebook_size, self.image_length = rows, config.image_vocab_size, config.image_length
        self.held_out = GOLDEN / "training" / name / "eval_batches.npz"

    def at(self, step):
        spare = np.resize(np.arange(ROWS), self.rows)
        batch = {name: self.table[name][step][spare] for name in ("input_ids", "attention_mask", "labels")}
        batch["labels"][ROWS:] = 3
        return {**batch, "label_mask": (np.arange(self.rows) < ROWS).astype(np.float32)}

    def evaluation(self, batch_size):
        """The published ones, of so many rows as they have."""
        with np.load(self.held_out) as arrays:
            for number in range(len(arrays["labels"])):
                yield {name: arrays[name][number] for name in ("input_ids", "attention_mask", "labels")}

    def origin(self):
        return {}


class AnyTokenizer:
    """The golden batches are tokenised already."""

    def check_vocab_size(self, rows):
        pass


def trainer(name: str, rows: int = ROWS, optimizer: OptimizerConfig | None = None, **changes) -> Seq2SeqTrainer:
    """A trainer with a curve's weights and batches, in float32; `changes` are fields of the model's config."""
    config, _ = DalleBart.open_pretrained(WEIGHTS[name])
    training = Seq2SeqTraining(
        model=dataclasses.replace(config, **changes),
        optimizer=optimizer or recipe(name),
        dtype="float32",
        init_from=str(WEIGHTS[name]),
    )
    batches = GoldenBatches(name, config, rows)
    return Seq2SeqTrainer(training, batches, batches, AnyTokenizer())


def run(trainer: Seq2SeqTrainer, mesh: MeshConfig, microbatches: int = 1, steps: int = STEPS) -> dict[str, np.ndarray]:
    """`loss` and `grad_norm` of each step, and the final parameters by their paths."""
    _, state, curves = trained(trainer, mesh, microbatches, steps)
    return curves | flatten(gathered(state.params))


def trained(
    trainer: Seq2SeqTrainer, mesh: MeshConfig, microbatches: int = 1, steps: int = STEPS
) -> tuple[StepProgram, TrainState, dict[str, np.ndarray]]:
    loop = LoopConfig(steps=STEPS, batch_size=trainer.train.rows, accumulation=microbatches)
    program = step_program(trainer, loop, mesh, make_mesh(mesh, jax.devices()[: mesh.data * mesh.model]))
    state, metrics = program.init(jax.random.key(0)), []
    for step in range(steps):
        key = jax.random.fold_in(jax.random.key(1), step)
        state, found = program.step(state, program.place(trainer.batch(step)), key)
        metrics.append(found)
    return program, state, {name: np.array([float(found[name]) for found in metrics]) for name in ("loss", "grad_norm")}


def run_case(case: str) -> dict[str, np.ndarray]:
    name, grid, microbatches, *options = case.split(":")
    data, model = map(int, grid.split("x"))
    muon = OptimizerConfig("muon", 0.002, warmup_steps=4, decay="constant") if "muon" in options else None
    changes = DROPOUT if "dropout" in options else {}
    mesh = MeshConfig(data, model, fsdp="plain" not in options)
    return run(trainer(name, 8 * int(microbatches), muon, **changes), mesh, int(microbatches))


if __name__ == "__main__":
    out, *cases = sys.argv[1:]
    for case in cases:
        np.savez(Path(out) / f"{case}.npz", **run_case(case))

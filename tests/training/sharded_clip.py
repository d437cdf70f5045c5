"""Steps of a tiny CLIP by either loss, on meshes of this process's devices; the metrics of all as JSON."""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import tiny_runs

from dalle_mini.training.config import MeshConfig
from dalle_mini.training.sharding import make_mesh
from dalle_mini.training.step import step_program

STEPS = 5
# Devices, those along the model's axis, and pieces of a batch. The first is what the others must be equal to.
MESHES = ((1, 1, 1), (2, 1, 1), (4, 1, 1), (4, 2, 1), (2, 1, 2))


def metrics(trainer, loop, devices: int, model: int) -> dict[str, list[float]]:
    config = MeshConfig(model=model)
    program = step_program(trainer, loop, config, make_mesh(config, jax.devices()[:devices]))
    state, found = program.init(jax.random.key(0)), []
    key_of = jax.jit(jax.random.key, out_shardings=program.key.sharding)
    for step in range(STEPS):
        state, numbers = program.step(state, program.place(trainer.batch(step)), key_of(step))
        found.append(jax.device_get(numbers))
    evaluated = trainer.evaluate(program, state, loop.batch_size)
    return {name: [float(one[name]) for one in found] for name in found[0]} | {"evaluated": [evaluated["loss"]]}


if __name__ == "__main__":
    folder, told = Path(sys.argv[1]), {}
    for loss in ("softmax", "sigmoid"):
        config = dataclasses.replace(tiny_runs.CLIP, loss=loss, damage=0.3)
        told[loss] = []
        for devices, model, accumulation in MESHES:
            loop = tiny_runs.short_loop(batch_size=8, accumulation=accumulation)
            told[loss].append(metrics(tiny_runs.make("clip", folder, loop, config), loop, devices, model))
    print(json.dumps(told))

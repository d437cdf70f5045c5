"""Steps of a tiny CLIP by a loss, on meshes of this process's devices; the metrics of all as JSON.

sharded_clip.py FOLDER LOSS      or "contrast" in LOSS' place: both losses alone, and their gradients
"""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import tiny_runs
from dalle_mini.training.clip.contrastive import Side, sigmoid_loss, softmax_loss
from dalle_mini.training.config.sections import MeshConfig
from dalle_mini.training.engine.sharding import batch_sharding, make_mesh
from dalle_mini.training.engine.step import step_program

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


def contrast(devices: int, model: int) -> dict[str, list[float]]:
    """Both losses of eight pairs: the value, and sums of the gradients' squares and of the gradients times vectors."""
    config = MeshConfig(model=model)
    mesh = make_mesh(config, jax.devices()[:devices])
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((2, 8, 16)).astype(np.float32) / 4
    numbers = np.stack([[0, 1, 2, 3, 1, 4, 5, 6]] * 2, axis=1).astype(np.int32)
    placed = jax.device_put([*vectors, numbers], batch_sharding(mesh))

    def both(pictures, texts, numbers):
        sides, scale = (Side(pictures, numbers), Side(texts, numbers)), jnp.float32(5)
        return jnp.stack([softmax_loss(*sides, scale, 4).total, sigmoid_loss(*sides, scale, jnp.float32(-1), 4).total])

    @jax.jit
    def found(*arrays):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            values, back = jax.vjp(lambda *vectors: both(*vectors, arrays[2]), *arrays[:2])
            grads = [back(row) for row in jnp.eye(2)]
        return [values, *((g**2).sum() for pair in grads for g in pair), *((g * vectors[0]).sum() for g in grads[1])]

    return {"numbers": np.concatenate([np.ravel(leaf) for leaf in jax.device_get(found(*placed))]).tolist()}


if __name__ == "__main__":
    folder, loss, told = Path(sys.argv[1]), sys.argv[2], []
    for devices, model, accumulation in MESHES:
        if loss == "contrast":
            told.append(contrast(devices, model))
            continue
        loop = tiny_runs.short_loop(batch_size=8, accumulation=accumulation)
        trainer = tiny_runs.make("clip", folder, loop, dataclasses.replace(tiny_runs.CLIP, loss=loss, damage=0.3))
        told.append(metrics(trainer, loop, devices, model))
    print(json.dumps(told))

"""Steps of a tiny VQGAN with everything on, on one of this process's devices and on several; both's losses as JSON.

Revival is compared by itself, over vectors that are far from ties.
"""

import dataclasses
import json
import sys
from functools import partial
from pathlib import Path

import jax

import tiny_runs
from dalle_mini.training.config.sections import MeshConfig
from dalle_mini.training.engine.sharding import batch_sharding, make_mesh
from dalle_mini.training.engine.step import step_program
from dalle_mini.training.vqgan import codebook
from dalle_mini.training.vqgan.discriminator import DiscriminatorConfig
from dalle_mini.training.vqgan.perceptual import PerceptualConfig

STEPS = 6


def losses(trainer, loop, devices: int) -> dict[str, list[float]]:
    config = MeshConfig()
    program = step_program(trainer, loop, config, make_mesh(config, jax.devices()[:devices]))
    state, found = program.init(jax.random.key(0)), []
    key_of = jax.jit(jax.random.key, out_shardings=program.key.sharding)
    for step in range(STEPS):
        state, metrics = program.step(state, program.place(trainer.batch(step)), key_of(step))
        found.append(jax.device_get(metrics))
    return {name: [float(one[name]) for one in found] for name in found[0]}


def revived(devices: int) -> list[float]:
    """A codebook after a step that revives most of it; its vectors are shared out over the devices."""
    rows = batch_sharding(make_mesh(MeshConfig(), jax.devices()[:devices]))
    codes, latents = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(16, 4), (64, 4)]))
    tokens = jax.random.randint(jax.random.key(2), (64,), 0, 3)
    latents, tokens = jax.device_put((latents, tokens), rows)
    move = jax.jit(partial(codebook.update, tiny_runs.VQGAN))
    after, _ = move(codes, codebook.no_uses(codes), latents, tokens, 3, jax.random.key(4))
    return after.ravel().tolist()


if __name__ == "__main__":
    folder, clip, devices = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    loop = tiny_runs.short_loop(batch_size=8)
    everything = dataclasses.replace(
        tiny_runs.WITHOUT_TIES["vqgan"],
        discriminator=DiscriminatorConfig(start=2, n_layers=1, ndf=4),
        perceptual=PerceptualConfig("clip", clip=clip),
        entropy_weight=0.1,
        entropy_temperature=1.0,
    )
    trainer = tiny_runs.make("vqgan", folder, loop, everything)
    found = [losses(trainer, loop, count) | {"revived": revived(count)} for count in (1, devices)]
    print(json.dumps(found))

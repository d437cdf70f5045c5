"""As a script, `draw_samples.py BUNDLE OUT PROCESS ADDRESS`: one of two processes that hold a model together and draw.

Parameters are split over both processes' devices, and padded where they do not divide; what is drawn goes to OUT.
"""

import dataclasses
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from dalle_mini.models import DalleBart
from dalle_mini.text import CaptionNormalizer, CaptionTokenizer
from dalle_mini.training.config.sections import SampleConfig
from dalle_mini.training.seq2seq.samples import PromptSampler
from dalle_mini.training.tracking.samples import write_samples

PROMPTS = ("a red apple", "two snails")
SEED = 3


def sampler(bundle: Path, config: SampleConfig, **options) -> tuple[PromptSampler, dict]:
    """A sampler of a bundle's model, and the model's parameters."""
    model = DalleBart.from_pretrained(bundle / "dalle")
    tokenizer = CaptionTokenizer.from_pretrained(bundle / "dalle")
    normalizer = CaptionNormalizer(bundle / "dalle" / "words.txt") if model.config.normalize_text else None
    return PromptSampler(config, model.config, tokenizer, normalizer, **options), nnx.to_pure_dict(nnx.state(model))


def config(bundle: Path, **options) -> SampleConfig:
    own = SampleConfig(PROMPTS, 2, SEED, str(bundle / "vqgan"), str(bundle / "clip"))
    return dataclasses.replace(own, **options)


def split(params, devices: list, multiple: int):
    """Each leaf split over the devices along its last axis, which garbage pads to a multiple."""
    mesh = jax.sharding.Mesh(np.asarray(devices), ("data",))

    def place(leaf):
        leaf = np.asarray(leaf)
        pad = -leaf.shape[-1] % multiple
        leaf = np.pad(leaf, [(0, 0)] * (leaf.ndim - 1) + [(0, pad)], constant_values=1e9)
        sharding = NamedSharding(mesh, PartitionSpec(*[None] * (leaf.ndim - 1), "data"))
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: jnp.asarray(leaf[index]))

    return jax.tree.map(place, params)


def main() -> None:
    bundle, out, process, address = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    jax.distributed.initialize(address, 2, process)
    ours, params = sampler(bundle, config(bundle))
    assert jax.device_count() == 4
    samples = ours.draw(split(params, jax.devices(), 4))
    assert bool(samples) == (process == 0)
    if samples:
        write_samples(out, 1, samples)


if __name__ == "__main__":
    main()

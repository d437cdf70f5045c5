"""Train the decoder of a VQGAN on emoji scenes, behind the encoder and the codebook that make_codebook.py made.

    python tools/train/train_vqgan.py runs/emoji/vqgan codebook=runs/emoji/codebook loop.steps=4000

256 x 256 pictures become 16 x 16 tokens (f16). Run it again to continue after a kill.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from entry import SIZE, Pictures, World, main
from flax import nnx

from dalle_mini.emoji.styled import Shares
from dalle_mini.models import VQGAN
from dalle_mini.models.config import GROUND, VQGANConfig
from dalle_mini.models.fingerprint import fingerprint
from dalle_mini.models.layered import patches
from dalle_mini.training.config.sections import LoopConfig, OptimizerConfig
from dalle_mini.training.engine.trainer import Loss, TrainState
from dalle_mini.training.run.init_from import loaded_parameters
from dalle_mini.training.vqgan.reconstructions import ReconstructionConfig, Reconstructions
from dalle_mini.training.vqgan.trainer import VQGANTrainer, VQGANTraining

MODEL = VQGANConfig(
    ch_mult=(1, 1, 1, 1, 1),  # f16
    resolution=SIZE,
    z_channels=64 + GROUND,
    embed_dim=64 + GROUND,
    n_embed=6144,
    norm_groups=4,
    layered=True,
)
# Things cover 59 % of the patches of these pictures, and 30 % of the usual ones.
DENSE = Shares(single=0.15, counted=0.05, two=0.1, collage=0.65, large=0.5)
OPTIMIZER = OptimizerConfig(name="muon", learning_rate=5e-3, warmup_steps=50, decay="cosine", final_rate=0.02)


@dataclass(frozen=True)
class DecoderTraining:
    """The settings of `VQGANTraining` that the decoder alone needs. Tokens are found in float32 in any case."""

    model: VQGANConfig = MODEL
    l1_weight: float = 0.0  # what a code leaves open is then its patches' mean, the best for PSNR
    l2_weight: float = 4.0
    dtype: str = "float32"
    optimizer: OptimizerConfig = OPTIMIZER


@dataclass(frozen=True)
class Config:
    codebook: str = "runs/emoji/codebook"
    world: str = ""  # world.json of the runs
    training: DecoderTraining = field(default_factory=DecoderTraining)
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(steps=2400, batch_size=16, log_every=10, eval_every=300)
    )


class DecoderTrainer(VQGANTrainer):
    """Encoder and codebook stay as they are: they get no gradients, and the codebook follows nothing."""

    def __init__(self, codebook: str, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.codebook = codebook

    def loaded(self) -> Any:
        return loaded_parameters(VQGAN, self.config.model, self.codebook)

    def loss(self, params: Any, batch: Any, key: jax.Array | None, auxiliary: Any) -> Loss:
        """The error of things without their ground (`LayerEncoder.layer`): an image's mean over all grounds."""
        images = batch["images"].astype(jnp.float32) / 255
        vqgan = nnx.merge(self.graphdef, params)
        codes = jax.lax.stop_gradient(vqgan.codebook(vqgan.quantize(vqgan.encode_latents(images))))
        ground, is_ground = vqgan.encoder.ground(images)
        layer = patches(vqgan.encoder.layer(images, ground, is_ground), vqgan.encoder.side)
        decoder = nnx.merge(self._training_graphdef, params).decoder
        made = decoder.layer(vqgan.post_quant_conv(codes)).astype(jnp.float32)
        error = (made - layer) * ~is_ground[..., None, None, None]
        mse = 4 / 3 * jnp.mean(error**2)
        count = jnp.float32(len(images))  # of equal weight, so that the pieces of a batch add up
        loss = self.config.l1_weight * jnp.mean(jnp.abs(error)) + self.config.l2_weight * mse
        return Loss(loss * count, count, {"mse": mse * count})

    def finish(self, params: Any, state: TrainState, loss: Loss, key: jax.Array) -> tuple[Any, Any, dict[str, Any]]:
        return params, state.extra, {"psnr": -10 * jnp.log10(loss.metrics["mse"] / loss.weight)}


def build(config: Config) -> DecoderTrainer:
    loop = config.loop
    world = World.load(config.world)
    train, held_out = Pictures("train", loop.seed, world, DENSE), Pictures("heldout", loop.seed, world)
    data = {"train": train.origin(), "held_out": held_out.origin()}
    return DecoderTrainer(
        config.codebook,
        VQGANTraining(**vars(config.training)),
        train.source(),
        held_out.source(),
        batch_size=loop.batch_size,
        seed=loop.seed,
        data=data | {"codebook": fingerprint(VQGAN.from_pretrained(config.codebook))},
    )


def draws(config: Config, trainer: DecoderTrainer) -> Reconstructions:
    return Reconstructions(ReconstructionConfig(), trainer)


if __name__ == "__main__":
    main(Config(), build, __doc__, draws)

"""Train a small VQGAN on emoji scenes.

    python tools/train/train_vqgan.py runs/emoji/vqgan loop.steps=2000 training.model.n_embed=1024

128 x 128 pictures become 16 x 16 tokens (f8). Run it again to continue after a kill.
"""

from dataclasses import dataclass, field

from entry import SIZE, Pictures, main

from dalle_mini.models.config import VQGANConfig
from dalle_mini.training.config import LoopConfig, OptimizerConfig
from dalle_mini.training.vqgan import VQGANTrainer, VQGANTraining

MODEL = VQGANConfig(
    ch=16,
    ch_mult=(1, 1, 4, 8),  # narrow where there are many pixels: a patch goes from 128 numbers to 256 and 1024
    num_res_blocks=1,
    attn_resolutions=(),
    resolution=SIZE,
    z_channels=64,
    embed_dim=32,
    n_embed=6144,
    resamp_with_conv=False,
    norm_groups=4,
    patch_encoder=True,
)

TRAINING = VQGANTraining(
    model=MODEL,
    optimizer=OptimizerConfig(name="adamw", learning_rate=1.5e-3, warmup_steps=50, decay="cosine", final_rate=0.02),
    # A code is met less than once a step: half of the pictures is background, and there are 6144 of them.
    codebook_decay=0.97,
    revive_below=0.1,
)


@dataclass(frozen=True)
class Config:
    training: VQGANTraining = TRAINING
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(steps=1200, batch_size=16, eval_every=200))


def build(config: Config) -> VQGANTrainer:
    loop = config.loop
    train, held_out = (Pictures(split, loop.seed) for split in ("train", "heldout"))
    return VQGANTrainer(
        config.training,
        train.source(),
        held_out.source(),
        batch_size=loop.batch_size,
        seed=loop.seed,
        data={"train": train.origin(), "held_out": held_out.origin()},
    )


if __name__ == "__main__":
    main(Config(), build, __doc__)

"""Train a small VQGAN on emoji pictures.

    python tools/train/train_vqgan.py runs/emoji/vqgan loop.steps=2000 training.model.n_embed=1024

64 x 64 pictures become 16 x 16 tokens (f4). Run it again to continue after a kill.
"""

from dataclasses import dataclass, field

from entry import SIZE, Pictures, main

from dalle_mini.models.config import VQGANConfig
from dalle_mini.training.config import LoopConfig
from dalle_mini.training.vqgan import VQGANTrainer, VQGANTraining

MODEL = VQGANConfig(
    ch=32,
    ch_mult=(1, 2, 2),
    num_res_blocks=1,
    attn_resolutions=(),
    resolution=SIZE,
    z_channels=32,
    embed_dim=16,
    n_embed=1024,
    norm_groups=4,
    patch_encoder=True,
)


@dataclass(frozen=True)
class Config:
    training: VQGANTraining = field(default_factory=lambda: VQGANTraining(model=MODEL, crop=32))
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(steps=700, batch_size=64, eval_every=200))


def build(config: Config) -> VQGANTrainer:
    loop = config.loop
    # All kinds, and off the grid's centre: the more patterns it has seen, the better it draws new ones.
    train, held_out = (Pictures(split, loop.seed, kinds=None, jitter=1) for split in ("train", "heldout"))
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

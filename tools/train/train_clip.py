"""Train a small CLIP on emoji scenes.

    python tools/train/train_clip.py runs/emoji/clip loop.steps=1500

Run it again to continue after a kill.
"""

from dataclasses import dataclass, field

from entry import Pictures, World, main

from dalle_mini.generation.ranking import PREPROCESSING
from dalle_mini.models.config import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from dalle_mini.runtime.hashing import short_hash
from dalle_mini.text import CaptionTokenizer
from dalle_mini.training.clip.trainer import CLIPTrainer, CLIPTraining
from dalle_mini.training.config.sections import LoopConfig

SIDE = 128  # pixels: CLIP sees pictures at half their size, at a quarter of the cost
MODEL = CLIPConfig(
    text=CLIPTextConfig(
        vocab_size=4096,
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=2,
        num_attention_heads=6,
        max_position_embeddings=32,
    ),
    vision=CLIPVisionConfig(
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=6,
        image_size=SIDE,
        patch_size=16,
    ),
    projection_dim=192,
)

PREPROCESSOR = {
    "do_resize": True,
    "size": {"shortest_edge": SIDE},
    "do_center_crop": True,
    "crop_size": {"height": SIDE, "width": SIDE},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    **PREPROCESSING,
}


@dataclass(frozen=True)
class Config:
    tokenizer: str = "runs/emoji/tokenizers/clip"
    world: str = ""  # world.json of the runs
    training: CLIPTraining = field(default_factory=lambda: CLIPTraining(model=MODEL, cell=16))
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(steps=1000, batch_size=128, eval_every=100))


def build(config: Config) -> CLIPTrainer:
    loop = config.loop
    train, held_out = (Pictures(split, loop.seed, World.load(config.world)) for split in ("train", "heldout"))
    source = train.source()
    tokenizer = CaptionTokenizer.from_pretrained(config.tokenizer)
    some = [source.caption(index) for index in range(1000)]  # what it makes of them tells it from another tokenizer
    ids, _ = tokenizer(some, max_length=config.training.model.text.max_position_embeddings)
    return CLIPTrainer(
        config.training,
        source,
        held_out.source(),
        tokenizer,
        PREPROCESSOR,
        batch_size=loop.batch_size,
        seed=loop.seed,
        data={"train": train.origin(), "held_out": held_out.origin(), "tokenizer": short_hash(ids.tobytes())},
    )


if __name__ == "__main__":
    main(Config(), build, __doc__)

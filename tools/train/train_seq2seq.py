"""Train a small DalleBart on encoded emoji.

    python tools/train/train_seq2seq.py runs/emoji/seq2seq tokens=runs/emoji/tokens loop.steps=4000

Run it again to continue after a kill.
"""

from dataclasses import dataclass, field
from pathlib import Path

from entry import main

from dalle_mini.data.batches import TokenBatches
from dalle_mini.data.loader import TokenDataset
from dalle_mini.models.config import DalleBartConfig
from dalle_mini.text import CaptionNormalizer, CaptionTokenizer
from dalle_mini.training.config import LoopConfig, OptimizerConfig
from dalle_mini.training.seq2seq import Seq2SeqTrainer, Seq2SeqTraining

MODEL = DalleBartConfig(
    encoder_vocab_size=2048,
    image_vocab_size=1024,
    max_text_length=32,
    image_length=256,
    d_model=256,
    encoder_layers=2,
    encoder_attention_heads=4,
    encoder_ffn_dim=768,
    decoder_layers=4,
    decoder_attention_heads=4,
    decoder_ffn_dim=768,
    init_std=0.05,
    guidance=1.0,
    temperature=1.3,
    top_k=50,
    normalize_text=True,
)


@dataclass(frozen=True)
class Config:
    tokens: str = "runs/emoji/tokens"
    held_out_tokens: str = "runs/emoji/tokens-heldout"
    tokenizer: str = "runs/emoji/tokenizers/dalle"
    training: Seq2SeqTraining = field(
        default_factory=lambda: Seq2SeqTraining(
            model=MODEL,
            optimizer=OptimizerConfig(learning_rate=0.02, warmup_steps=100),
            token_noise=0.4,
            dtype="float32",
        )
    )
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(steps=5000, batch_size=16, eval_every=500))


def build(config: Config) -> Seq2SeqTrainer:
    loop, training = config.loop, config.training
    train_data, held_out_data = TokenDataset(config.tokens), TokenDataset(config.held_out_tokens)
    tokenizer = CaptionTokenizer.from_pretrained(config.tokenizer)
    normalizer = CaptionNormalizer(Path(config.tokenizer) / "words.txt")
    options = {"text_length": training.model.text_length, "batch_size": loop.batch_size, "seed": loop.seed}
    train = TokenBatches(train_data, tokenizer, normalizer, caption_dropout=training.caption_dropout, **options)
    held_out = TokenBatches(held_out_data, tokenizer, normalizer, **options)
    return Seq2SeqTrainer(training, train, held_out, tokenizer)


if __name__ == "__main__":
    main(Config(), build, __doc__)

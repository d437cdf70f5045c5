"""Train DalleBart on captions and pre-encoded image tokens.

Cross-entropy over all image positions against the tokens shifted right behind the start token; no smoothing. A share of
the captions is replaced by the empty one, after normalisation, so that the model also learns the unconditional
distribution that guidance pushes away from. A share of the image tokens that the decoder sees can be replaced by random
ones, so that a small model learns to trust the caption and not to be led astray by its own mistakes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from dalle_mini.data.loader import TokenDataset
from dalle_mini.errors import UserError
from dalle_mini.models import DalleBart
from dalle_mini.models.config import DalleBartConfig
from dalle_mini.text import CaptionNormalizer, CaptionTokenizer
from dalle_mini.training.optimizer import adafactor, schedule
from dalle_mini.training.step import TrainState, init_state, initial_parameters, make_step

TOKENS_RECORD = "tokens.json"  # beside the weights: the identity of the VQGAN whose tokens they were trained on


@dataclass(frozen=True)
class Seq2SeqTraining:
    """Loss and optimizer of a seq2seq run. The learning rate is Adafactor's: relative to each parameter's scale."""

    model: DalleBartConfig = field(default_factory=DalleBartConfig)
    learning_rate: float = 0.005
    warmup_steps: int = 200
    decay: str = "linear"
    caption_dropout: float = 0.1
    token_noise: float = 0.0  # each picture's share of wrong tokens in the decoder's input is drawn from [0, this)
    remat: bool = False
    init_from: str | None = None  # a folder of weights to start from instead of random ones


class Seq2SeqTrainer:
    """`train` and `held_out` hold captions and tokens; captions are normalised and tokenised once, at the start.

    Raises UserError where the tokens or the tokenizer do not fit the model, or the two sets are of different VQGANs.
    """

    name = "seq2seq"

    def __init__(
        self,
        config: Seq2SeqTraining,
        train: TokenDataset,
        held_out: TokenDataset,
        tokenizer: CaptionTokenizer,
        normalizer: CaptionNormalizer | None,
        *,
        steps: int,
        batch_size: int,
        seed: int,
    ):
        model = config.model
        for data in (train, held_out):
            if data.tokens.shape[1] != model.image_length:
                raise UserError(f"{data.folder}: {data.tokens.shape[1]} tokens a picture, not {model.image_length}")
            if data.codebook_size > model.image_vocab_size:
                raise UserError(
                    f"{data.folder}: tokens of {data.codebook_size} codes, image_vocab_size {model.image_vocab_size}"
                )
        if train.vqgan != held_out.vqgan:
            raise UserError(
                f"{held_out.folder}: tokens of another VQGAN ({held_out.vqgan}) than those of {train.folder} "
                f"({train.vqgan}): encode both with the same one"
            )
        model.check_start_token()
        tokenizer.check_vocab_size(model.encoder_vocab_size)
        if not 0 <= config.token_noise <= 1:
            raise UserError(f"training.token_noise {config.token_noise}: a share from 0 to 1")
        self.config, self.batch_size, self.seed = config, batch_size, seed
        self.codebook_size, self.vqgan = train.codebook_size, train.vqgan
        self.tokenizer, self.normalizer = tokenizer, normalizer
        self.train, self.held_out = self._tokenize(train), self._tokenize(held_out)
        self.blank = self._ids([""])
        self.tx = adafactor(schedule(config.learning_rate, config.warmup_steps, steps, config.decay))
        self.graphdef, _ = nnx.split(nnx.eval_shape(lambda: DalleBart(model, rngs=nnx.Rngs(0))))
        self.step = make_step(self._loss, self.tx)
        self._eval = jax.jit(self._loss)

    def settings(self) -> dict[str, Any]:
        data = {"vqgan": self.vqgan, "train": _digests(self.train), "held_out": _digests(self.held_out)}
        return {"training": dataclasses.asdict(self.config), "data": data}

    def init(self, key: jax.Array) -> TrainState:
        return init_state(initial_parameters(DalleBart, self.config.model, key, self.config.init_from), self.tx)

    def batch(self, step: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng((self.seed, step))
        rows = rng.integers(0, len(self.train["labels"]), self.batch_size)
        batch = {name: array[rows] for name, array in self.train.items()}
        blank = rng.random(self.batch_size)[:, None] < self.config.caption_dropout
        for name, row in self.blank.items():
            batch[name] = np.where(blank, row, batch[name])
        if self.config.token_noise:
            wrong = rng.random(batch["labels"].shape) < self.config.token_noise * rng.random((self.batch_size, 1))
            tokens = rng.integers(0, self.codebook_size, batch["labels"].shape)
            batch["seen"] = np.where(wrong, tokens, batch["labels"]).astype(batch["labels"].dtype)
        return batch

    def _loss(self, params: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        model: DalleBart = nnx.merge(self.graphdef, params)
        labels = batch["labels"].astype(jnp.int32)
        seen = batch.get("seen", batch["labels"]).astype(jnp.int32)
        start = jnp.full((len(labels), 1), self.config.model.decoder_start_token_id, jnp.int32)
        shifted = jnp.concatenate([start, seen[:, :-1]], axis=1)
        logits = model(batch["input_ids"], batch["attention_mask"], shifted, remat=self.config.remat)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss, {"accuracy": (logits.argmax(-1) == labels).mean()}

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Loss and token accuracy, teacher forced, on the first 256 held-out examples."""
        totals, sizes = [], []
        for start in range(0, min(256, len(self.held_out["labels"])), 32):
            batch = {name: array[start : start + 32] for name, array in self.held_out.items()}
            loss, metrics = self._eval(state.params, batch, jax.random.key(0))
            totals.append((float(loss), float(metrics["accuracy"])))
            sizes.append(len(batch["labels"]))  # the last one may be smaller
        loss, accuracy = np.average(totals, axis=0, weights=sizes)
        return {"loss": float(loss), "accuracy": float(accuracy)}

    def export(self, state: TrainState, folder: Path) -> None:
        nnx.merge(self.graphdef, state.params).save_pretrained(folder)
        self.tokenizer.save(folder)
        (folder / TOKENS_RECORD).write_text(json.dumps({"vqgan": self.vqgan}) + "\n")

    def _tokenize(self, data: TokenDataset) -> dict[str, np.ndarray]:
        normalize = self.normalizer or (lambda caption: caption)
        return {**self._ids([normalize(caption) for caption in data.captions]), "labels": data.tokens}

    def _ids(self, captions: list[str]) -> dict[str, np.ndarray]:
        ids, mask = self.tokenizer(captions, max_length=self.config.model.text_length)
        return {"input_ids": ids, "attention_mask": mask}


def _digests(rows: dict[str, np.ndarray]) -> dict[str, str]:
    """Short hashes of what is trained on: of the captions as the model reads them, and of the tokens."""
    parts = {"captions": ("input_ids", "attention_mask"), "tokens": ("labels",)}
    return {
        name: hashlib.sha256(b"".join(rows[array].tobytes() for array in arrays)).hexdigest()[:16]
        for name, arrays in parts.items()
    }

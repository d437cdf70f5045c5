"""Train DalleBart on captions and pre-encoded image tokens.

The loss is the cross-entropy over all image positions, teacher forced, without smoothing. A share of the captions is
replaced by the empty one, so that the model also learns the unconditional distribution that guidance pushes away from.
A share of the image tokens that the decoder sees can be replaced by random ones, so that a small model learns to trust
the caption and not to be led astray by its own mistakes.
"""

import dataclasses
import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dalle_mini.errors import UserError
from dalle_mini.models import DalleBart
from dalle_mini.models.config import DalleBartConfig
from dalle_mini.models.dalle_bart import ForwardOptions
from dalle_mini.runtime.files import write_whole, written_beside
from dalle_mini.runtime.paths import source_setting
from dalle_mini.text import CaptionNormalizer, CaptionTokenizer
from dalle_mini.training.config.sections import REMAT, OptimizerConfig, check_choice
from dalle_mini.training.engine.sharding import gathered, keep_rows
from dalle_mini.training.engine.trainer import (
    AuxiliaryInputs,
    Loss,
    StepProgram,
    Trainer,
    TrainState,
    initial_parameters,
)
from dalle_mini.training.run.init_from import TOKENIZER, loaded_parameters, start_weights
from dalle_mini.training.seq2seq.cross_entropy import cross_entropy
from dalle_mini.weights.bundle import TOKENS_RECORD

DTYPES = ("bfloat16", "float32")


@dataclass(frozen=True)
class Seq2SeqTraining:
    """Model, loss and optimizer of a seq2seq run.

    Attributes:
        caption_dropout: the share of captions that are replaced by the empty one.
        token_noise: the share of wrong tokens in the decoder's input, drawn for each image from [0, this) and at most
            1: with 2.0, half of the images have to be told from the caption alone.
        positions: how many of an image's tokens an update learns, drawn anew each time; None is all. Few cost little.
            They teach what the caption says of where things are, but not how a token follows from those before it.
        prefer_changes: how many times as often as others those positions are learned whose token is not the one before
            it: edges and things, where most of a picture is plain ground. Each image then has positions of its own. A
            loss counts by how seldom its position is drawn, so that its expectation is that of all positions.
        dtype: the type of the computation; parameters, softmax, logits and loss are float32 in any case.
        remat: what is kept for the gradient: all ("none"), products with weights ("dots") or layers' inputs ("full").
        init_from: weights to start from instead of random ones: a model's folder or repository, a bundle, "shipped", or
            another run (`run/init_from.py`).
        new_tokens: let those weights learn the data's tokens although they know those of another VQGAN.
    """

    model: DalleBartConfig = field(default_factory=DalleBartConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    caption_dropout: float = 0.1
    token_noise: float = 0.0
    positions: int | None = None
    prefer_changes: float = 1.0
    dtype: str = "bfloat16"
    remat: str = "none"
    init_from: str | None = source_setting()
    new_tokens: bool = False

    def __post_init__(self):
        check_choice("training.dtype", self.dtype, DTYPES)
        check_choice("training.remat", self.remat, REMAT)
        if not 0 <= self.caption_dropout <= 1:
            raise UserError(f"training.caption_dropout {self.caption_dropout}: a share from 0 to 1")
        if not 0 <= self.token_noise <= 2:
            raise UserError(f"training.token_noise {self.token_noise}: from 0 to 2, the most is a share of the tokens")
        if self.positions is not None and not 1 <= self.positions <= self.model.image_length:
            raise UserError(f"training.positions {self.positions}: 1 to {self.model.image_length}, an image's tokens")
        most = self.model.image_length / (self.positions or self.model.image_length)
        if not 1 <= self.prefer_changes <= most:
            raise UserError(f"training.prefer_changes {self.prefer_changes}: 1 to {most:g}, with training.positions")

    @property
    def network(self) -> DalleBartConfig:
        """The config of the weights that a run ends with."""
        return self.model


class Batches(Protocol):
    """Batches of tokenised rows, as `data.tokens.batches.TokenBatches` makes them.

    A batch has `input_ids`, `attention_mask` (int [B, S]) and `labels` (int [B, T]); where not every label counts, also
    `label_mask`, [B] for whole rows or [B, T]. It may be this process's part of one (`sharding.data_share`).
    `normalizer` has prepared the captions.
    """

    normalizer: CaptionNormalizer | None
    vqgan: str
    codebook_size: int
    image_length: int

    def at(self, step: int) -> dict[str, np.ndarray]: ...
    def rows(self, step: int) -> list[str]: ...
    def evaluation(self, batch_size: int) -> Iterable[dict[str, np.ndarray]]: ...
    def origin(self) -> dict[str, Any]: ...


class Seq2SeqTrainer(Trainer):
    """Trains and evaluates DalleBart.

    Args:
        train: the batches of the steps.
        held_out: the batches of the evaluation, which have every row once.
        words: the normalizer's list of words, which is kept where the tokenizer is.
    Raises:
        UserError: the tokens or the tokenizer do not fit the model, or the two sets are of different VQGANs.
    """

    name = "seq2seq"

    def __init__(
        self,
        config: Seq2SeqTraining,
        train: Batches,
        held_out: Batches,
        tokenizer: CaptionTokenizer,
        words: Path | None = None,
    ):
        model = config.model
        for which, data in (("train", train), ("validation", held_out)):
            if data.image_length != model.image_length:
                raise UserError(f"{which} data: {data.image_length} tokens per image, not {model.image_length}")
            if data.codebook_size > model.image_vocab_size:
                raise UserError(
                    f"{which} data: tokens of {data.codebook_size} codes, image_vocab_size {model.image_vocab_size}"
                )
        if train.vqgan != held_out.vqgan:
            raise UserError(
                f"validation data: tokens of another VQGAN ({held_out.vqgan}) than those of the train data "
                f"({train.vqgan}): encode both with the same one"
            )
        model.check_start_token()
        tokenizer.check_vocab_size(model.encoder_vocab_size)
        self.config, self.optimizer, self.dtype = config, config.optimizer, config.dtype
        self.train, self.held_out = train, held_out
        self.tokenizer, self.words = tokenizer, words
        self.graphdef, _ = DalleBart.shapes(model, jnp.dtype(config.dtype))

    def settings(self) -> dict[str, Any]:
        data = {"vqgan": self.train.vqgan, "train": self.train.origin(), "held_out": self.held_out.origin()}
        training = dataclasses.asdict(self.config)
        if self.config.prefer_changes == 1:  # runs that began before it was a setting go on
            del training["prefer_changes"]
        return {"training": training, "data": data}

    def parameters(self, key: jax.Array) -> tuple[Any, Any]:
        return initial_parameters(DalleBart, self.config.model, key), ()

    def loaded(self) -> Any | None:
        start = self.config.init_from
        return None if start is None else loaded_parameters(DalleBart, self.config.model, str(start_weights(start)))

    def batch(self, step: int) -> dict[str, np.ndarray]:
        return self.train.at(step)

    def rows(self, step: int) -> list[str]:
        return self.train.rows(step)

    def batch_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        text, image = self.config.model.text_length, self.config.model.image_length
        ids = jax.ShapeDtypeStruct((batch_size, text), jnp.int32)
        labels = jax.ShapeDtypeStruct(
            (batch_size, image), jnp.uint16 if self.train.codebook_size <= 2**16 else jnp.int32
        )
        return {"input_ids": ids, "attention_mask": ids, "labels": labels}

    def loss(self, params: Any, batch: Any, key: jax.Array | None, auxiliary: AuxiliaryInputs | None = None) -> Loss:
        model: DalleBart = nnx.merge(self.graphdef, params)
        labels = batch["labels"].astype(jnp.int32)
        noise_key, dropout_key, positions_key = (None,) * 3 if key is None else jax.random.split(key, 3)
        seen = self._with_noise(labels, noise_key)
        start = jnp.full((len(labels), 1), self.config.model.start_token, jnp.int32)
        shifted = jnp.concatenate([start, seen[:, :-1]], axis=1)
        weights = jnp.ones(labels.shape, jnp.float32)
        if "label_mask" in batch:
            mask = batch["label_mask"].astype(jnp.float32)
            weights = weights * (mask if mask.ndim == 2 else mask[:, None])
        positions = self._positions(positions_key)
        if positions is not None:
            if self.config.prefer_changes > 1 and positions_key is not None:
                positions, often = changing_positions(labels, len(positions), self.config.prefer_changes, positions_key)
                weights = weights / often
            at = positions if positions.ndim == 2 else positions[None]
            shifted, labels, weights = (jnp.take_along_axis(one, at, axis=1) for one in (shifted, labels, weights))
        options = ForwardOptions(dropout_key, self.config.remat, keep_rows)
        hidden = model.hidden(batch["input_ids"], batch["attention_mask"], shifted, options, positions)
        head = model.lm_head
        bias = None if head.bias is None else head.bias[...]
        vocab_size = self.config.model.image_vocab_size + 1
        scores = cross_entropy(hidden, head.kernel[...], bias, labels, weights, vocab_size)
        return Loss(scores.total, weights.sum(), {"accuracy": scores.right})

    def evaluate(self, program: StepProgram, state: TrainState, batch_size: int) -> dict[str, float]:
        """Loss and token accuracy, teacher forced, over every row of the validation data once.

        Args:
            batch_size: rows at a time; it must divide over the mesh.
        """
        total = weight = right = 0.0
        for batch in self.held_out.evaluation(batch_size):
            found = jax.device_get(program.evaluate(state.weights, program.place(batch, batch_size)))
            total += float(found.total)
            weight += float(found.weight)
            right += float(found.metrics["accuracy"])
        return {"loss": total / weight, "accuracy": right / weight}

    def keep(self, out: Path) -> None:
        """Copy the tokenizer into the run's folder: its source may be gone when the run is continued."""
        folder = out / TOKENIZER
        if folder.exists():
            return
        with written_beside(folder, replace=False) as beside:
            self._save_text(beside)

    def _save_text(self, folder: Path) -> None:
        self.tokenizer.save(folder)
        if self.words is not None:
            shutil.copyfile(self.words, folder / self.words.name)

    def export(self, state: TrainState, folder: Path) -> None:
        """Write weights, tokenizer and the VQGAN's fingerprint. All processes call it; the first one writes."""
        params = gathered(state.weights)
        if jax.process_index() == 0:
            nnx.merge(self.graphdef, params).save_pretrained(folder)
            self._save_text(folder)
            write_whole(folder / TOKENS_RECORD, json.dumps({"vqgan": self.train.vqgan}) + "\n")

    def _positions(self, key: jax.Array | None) -> jax.Array | None:
        """The positions that an update learns, rising, the same for the whole batch; None is all."""
        if key is None or self.config.positions is None:
            return None
        order = jax.random.permutation(key, self.config.model.image_length)
        return jnp.sort(order[: self.config.positions])

    def _with_noise(self, labels: jax.Array, key: jax.Array | None) -> jax.Array:
        if key is None or not self.config.token_noise:
            return labels
        share_key, where_key, token_key = jax.random.split(key, 3)
        share = self.config.token_noise * jax.random.uniform(share_key, (len(labels), 1))
        wrong = jax.random.uniform(where_key, labels.shape) < share
        return jnp.where(wrong, jax.random.randint(token_key, labels.shape, 0, self.train.codebook_size), labels)


def changing_positions(labels: jax.Array, count: int, preference: float, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Some positions of each image [B, count], rising, which prefer tokens that differ from those before them.

    Also how often each position is drawn [B, T], beside all being drawn alike. The draw is systematic: points one apart
    from a random start, on a line where each position is as long as it is probable. That is exact, and spreads them.
    """
    changes = jnp.pad(labels[:, 1:] != labels[:, :-1], [(0, 0), (1, 0)], constant_values=True)
    lengths = jnp.where(changes, preference, 1.0)
    often = lengths / lengths.mean(axis=1, keepdims=True)
    ends = jnp.cumsum(often * count / labels.shape[1], axis=1)
    points = jax.random.uniform(key, (len(labels), 1)) + jnp.arange(count)
    positions = jnp.sum(ends[:, None, :] <= points[:, :, None], axis=-1)
    return jnp.minimum(positions, labels.shape[1] - 1), often

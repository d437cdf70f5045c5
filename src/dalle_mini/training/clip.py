"""Train CLIP: pictures and captions to one space, by the contrastive loss of Radford et al. (2021).

Each picture must pick its caption out of the batch and each caption its picture. Captions that occur twice in a batch
are right answers for each other's pictures, so targets are spread over equal captions.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from dalle_mini.data.images import clip_pixels
from dalle_mini.models import CLIP
from dalle_mini.models.config import CLIPConfig
from dalle_mini.text import CaptionTokenizer
from dalle_mini.training.optimizer import adamw, schedule
from dalle_mini.training.step import TrainState, init_state, make_step

MAX_LOGIT_SCALE = float(np.log(100.0))  # the paper's clip: beyond it training is unstable


@dataclass(frozen=True)
class CLIPTraining:
    """Optimizer of a CLIP run, and what is done to the pictures.

    `noise` is the standard deviation of Gaussian noise on pixels in [0, 1]: the ranked pictures come from a VQGAN, not
    from a camera, and CLIP should not lean on their finest texture.
    """

    model: CLIPConfig = field(default_factory=CLIPConfig)
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    weight_decay: float = 0.05
    noise: float = 0.03


class CLIPTrainer:
    """`train` and `held_out` are map-style sources with `batch(indices) -> (uint8 [n, S, S, 3], captions)`."""

    name = "clip"

    def __init__(
        self,
        config: CLIPTraining,
        train: Any,
        held_out: Any,
        tokenizer: CaptionTokenizer,
        preprocessor: dict[str, Any],
        *,
        steps: int,
        batch_size: int,
        seed: int,
    ):
        tokenizer.check_vocab_size(config.model.text.vocab_size)
        self.config, self.train, self.held_out = config, train, held_out
        self.tokenizer, self.preprocessor = tokenizer, preprocessor
        self.batch_size, self.seed = batch_size, seed
        self.tx = adamw(schedule(config.learning_rate, config.warmup_steps, steps), config.weight_decay)
        self.graphdef, _ = nnx.split(nnx.eval_shape(lambda: CLIP(config.model, rngs=nnx.Rngs(0))))
        self._update = make_step(self._loss, self.tx)
        self._eval = jax.jit(self._loss)

    def settings(self) -> dict[str, Any]:
        return {"training": dataclasses.asdict(self.config)}

    def init(self, key: jax.Array) -> TrainState:
        _, params = nnx.split(CLIP(self.config.model, rngs=nnx.Rngs(key)))
        return init_state(nnx.to_pure_dict(params), self.tx)

    def batch(self, step: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng((self.seed, step))
        return self._examples(self.train, rng.integers(0, len(self.train), self.batch_size), rng)

    def step(self, state: TrainState, batch: Any, key: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        state, metrics = self._update(state, batch, key)
        state.params["logit_scale"] = jnp.minimum(state.params["logit_scale"], MAX_LOGIT_SCALE)
        return state, metrics

    def _examples(self, source: Any, indices: Any, rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        images, captions = source.batch(indices)
        if rng is not None and self.config.noise:
            noisy = images + rng.standard_normal(images.shape, np.float32) * (255 * self.config.noise)
            images = np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
        length = self.config.model.text.max_position_embeddings
        ids, mask = self.tokenizer(captions, max_length=length)
        number = {caption: i for i, caption in enumerate(captions)}
        return {
            "pixels": clip_pixels(images, self.preprocessor),
            "input_ids": ids,
            "attention_mask": mask,
            "caption": np.array([number[caption] for caption in captions], np.int32),
        }

    def _loss(self, params: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        model: CLIP = nnx.merge(self.graphdef, params)
        logits = model.similarity(batch["pixels"], batch["input_ids"], batch["attention_mask"])  # [images, texts]
        same = (batch["caption"][:, None] == batch["caption"]).astype(logits.dtype)
        targets = same / same.sum(axis=1, keepdims=True)  # symmetric, as `same` is
        to_text = optax.softmax_cross_entropy(logits, targets).mean()
        to_image = optax.softmax_cross_entropy(logits.T, targets).mean()
        right = jnp.take_along_axis(same, logits.argmax(axis=0)[None], axis=0)  # each caption's best picture
        return (to_text + to_image) / 2, {"text_to_image": right.mean()}

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Loss and recall@1 of 256 held-out captions, each searching the 256 pictures."""
        examples = self._examples(self.held_out, range(min(256, len(self.held_out))))
        loss, metrics = self._eval(state.params, examples, jax.random.key(0))
        return {"loss": float(loss), "recall": float(metrics["text_to_image"])}

    def export(self, state: TrainState, folder: Path) -> None:
        nnx.merge(self.graphdef, state.params).save_pretrained(folder)
        self.tokenizer.save(folder)

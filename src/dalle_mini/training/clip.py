"""Train CLIP: pictures and captions to one space, by the contrastive loss of Radford et al. (2021).

Each picture must pick its caption out of the batch and each caption its picture. Captions that occur twice in a batch
are right answers for each other's pictures, so targets are spread over equal captions.

A ranker must also tell a picture from nearly the same one with a mistake in it, which another picture of the batch
never is. So damaged copies may join the batch as wrong answers, as word-swapped captions do in NegCLIP (Yuksekgonul et
al. 2023).
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
from dalle_mini.errors import UserError
from dalle_mini.models import CLIP
from dalle_mini.models.config import CLIPConfig
from dalle_mini.text import CaptionTokenizer
from dalle_mini.training.config import OptimizerConfig
from dalle_mini.training.sharding import gathered, place, replicated
from dalle_mini.training.step import Loss, StepProgram, TrainState, initial_parameters, loaded_parameters

OPTIMIZER = OptimizerConfig(
    name="adamw", learning_rate=1e-3, warmup_steps=100, decay="cosine", final_rate=0.02, weight_decay=0.05
)
MAX_LOGIT_SCALE = float(np.log(100.0))  # the paper's clip: beyond it training is unstable


@dataclass(frozen=True)
class CLIPTraining:
    """Optimizer of a CLIP run, and what is done to the pictures.

    `noise` is the standard deviation of Gaussian noise on pixels in [0, 1]: the ranked pictures come from a VQGAN, not
    from a camera, and CLIP should not lean on their finest texture.
    """

    model: CLIPConfig = field(default_factory=CLIPConfig)
    optimizer: OptimizerConfig = OPTIMIZER
    noise: float = 0.03
    damage: float = 0.0  # at most this share of a damaged copy's cells is wrong; 0 is no copies
    cell: int = 4  # side of a cell, pixels: a token's
    init_from: str | None = None  # a trained CLIP to start from


class CLIPTrainer:
    """`train` and `held_out` are map-style sources with `batch(indices) -> (uint8 [n, S, S, 3], captions)`.

    `data` says which they are, for the run's record: it is not continued with others.
    """

    name = "clip"
    dtype = "float32"

    def __init__(
        self,
        config: CLIPTraining,
        train: Any,
        held_out: Any,
        tokenizer: CaptionTokenizer,
        preprocessor: dict[str, Any],
        *,
        batch_size: int,
        seed: int,
        data: dict[str, Any] | None = None,
    ):
        tokenizer.check_vocab_size(config.model.text.vocab_size)
        if not 0 <= config.damage <= 1:
            raise UserError(f"training.damage {config.damage}: a share from 0 to 1")
        if config.damage and config.model.vision.image_size % config.cell:
            raise UserError(f"training.cell {config.cell} does not divide {config.model.vision.image_size} pixels")
        self.config, self.train, self.held_out, self.data = config, train, held_out, data
        self.tokenizer, self.preprocessor = tokenizer, preprocessor
        self.optimizer, self.batch_size, self.seed = config.optimizer, batch_size, seed
        self.graphdef, _ = nnx.split(nnx.eval_shape(lambda: CLIP(config.model, rngs=nnx.Rngs(0))))

    def settings(self) -> dict[str, Any]:
        return {"training": dataclasses.asdict(self.config), "data": self.data}

    def parameters(self, key: jax.Array) -> tuple[Any, Any]:
        return initial_parameters(CLIP, self.config.model, key), ()

    def loaded(self) -> Any | None:
        return loaded_parameters(CLIP, self.config.model, self.config.init_from)

    def batch(self, step: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng((self.seed, step))
        return self._examples(self.train, rng.integers(0, len(self.train), self.batch_size), rng)

    def batch_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        vision, text = self.config.model.vision, self.config.model.text
        pixels = (batch_size * (2 if self.config.damage else 1), vision.image_size, vision.image_size, 3)
        ids = jax.ShapeDtypeStruct((batch_size, text.max_position_embeddings), jnp.int32)
        return {
            "pixels": jax.ShapeDtypeStruct(pixels, jnp.float32),
            "input_ids": ids,
            "attention_mask": ids,
            "caption": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
        }

    def finish(self, params: Any, state: TrainState, loss: Loss, key: jax.Array) -> tuple[Any, Any, dict[str, Any]]:
        return {**params, "logit_scale": jnp.minimum(params["logit_scale"], MAX_LOGIT_SCALE)}, state.extra, {}

    def _examples(self, source: Any, indices: Any, rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        images, captions = source.batch(indices)
        if rng is not None and self.config.noise:
            noisy = images + rng.standard_normal(images.shape, np.float32) * (255 * self.config.noise)
            images = np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
        if rng is not None and self.config.damage:
            images = np.concatenate([images, damaged(images, self.config.damage, self.config.cell, rng)])
        length = self.config.model.text.max_position_embeddings
        ids, mask = self.tokenizer(captions, max_length=length)
        number = {caption: i for i, caption in enumerate(captions)}
        return {
            "pixels": clip_pixels(images, self.preprocessor),
            "input_ids": ids,
            "attention_mask": mask,
            "caption": np.array([number[caption] for caption in captions], np.int32),
        }

    def loss(self, params: Any, batch: Any, key: jax.Array | None) -> Loss:
        model: CLIP = nnx.merge(self.graphdef, params)
        logits = model.similarity(batch["pixels"], batch["input_ids"], batch["attention_mask"])  # [images, texts]
        same = (batch["caption"][:, None] == batch["caption"]).astype(logits.dtype)
        targets = same / same.sum(axis=1, keepdims=True)  # symmetric, as `same` is
        to_text = optax.softmax_cross_entropy(logits[: len(same)], targets).mean()
        copies = len(logits) - len(same)  # damaged: no caption's, so no target of any
        targets, same = jnp.pad(targets, [(0, 0), (0, copies)]), jnp.pad(same, [(0, copies), (0, 0)])
        to_image = optax.softmax_cross_entropy(logits.T, targets).mean()
        right = jnp.take_along_axis(same, logits.argmax(axis=0)[None], axis=0)  # each caption's best picture
        count = jnp.float32(len(batch["caption"]))
        return Loss((to_text + to_image) / 2 * count, count, {"text_to_image": right.sum()})

    def evaluate(self, program: StepProgram, state: TrainState, batch_size: int) -> dict[str, float]:
        """Loss and recall@1 of 256 held-out captions, each searching the 256 pictures."""
        examples = self._examples(self.held_out, range(min(256, len(self.held_out))))
        whole = dict.fromkeys(examples, replicated(program.mesh))
        found = jax.device_get(program.evaluate(state.weights, place(examples, whole)))
        recall = found.metrics["text_to_image"] / found.weight
        return {"loss": float(found.total / found.weight), "recall": float(recall)}

    def export(self, state: TrainState, folder: Path) -> None:
        params = gathered(state.weights)
        if jax.process_index() == 0:
            nnx.merge(self.graphdef, params).save_pretrained(folder)
            self.tokenizer.save(folder)


def damaged(images: np.ndarray, most: float, cell: int, rng: np.random.Generator) -> np.ndarray:
    """Copies in which some cells are wrong, uint8 [n, S, S, 3]: as a decoder errs, whose wrong tokens tear shapes.

    In half of the copies a wrong cell is one of its own neighbours', at most two cells away; in the others it is the
    same place of another picture. At least one cell of each and about the share `most` at most are wrong.
    """
    count, side, _, channels = images.shape
    grid = side // cell
    cells = images.reshape(count, grid, cell, grid, cell, channels).swapaxes(2, 3)
    picture, row, column = np.indices((count, grid, grid))
    near = np.broadcast_to(rng.random((count, 1, 1)) < 0.5, picture.shape)
    shift = rng.integers(-2, 3, (2, *picture.shape)) * near
    source = (
        np.where(near, picture, rng.integers(0, count, picture.shape)),
        np.clip(row + shift[0], 0, grid - 1),
        np.clip(column + shift[1], 0, grid - 1),
    )
    wrong = rng.random(picture.shape) < rng.uniform(0, most, (count, 1, 1))
    wrong[np.arange(count), *rng.integers(0, grid, (2, count))] = True
    cells = np.where(wrong[..., None, None, None], cells[source], cells)
    return cells.swapaxes(2, 3).reshape(images.shape)

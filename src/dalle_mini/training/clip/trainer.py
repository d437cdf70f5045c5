"""Train CLIP: images and texts in one space, by a contrastive loss over the batch of all devices (`contrastive.py`).

The loss is that of Radford et al. (2021) or SigLIP's (Zhai et al. 2023). Microbatches keep the loss of the whole batch:
all embeddings come first (`engine/accumulation.py`).

A ranker must also tell an image from nearly the same one with a mistake in it, which no other image of the batch is. So
damaged copies may join the batch as wrong answers, as word-swapped captions do in NegCLIP (Yuksekgonul et al. 2023).
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding

from dalle_mini.data.images import augment
from dalle_mini.errors import UserError
from dalle_mini.evaluation.retrieval import recalls
from dalle_mini.imaging.clip_pixels import clip_normalisation, clip_sizes, clip_squares
from dalle_mini.models import CLIP
from dalle_mini.models.config import CLIPConfig
from dalle_mini.runtime.files import write_whole
from dalle_mini.runtime.paths import source_setting
from dalle_mini.runtime.xla import Jit
from dalle_mini.settings import LARGEST
from dalle_mini.text import CaptionTokenizer
from dalle_mini.training.clip.contrastive import NOBODY, Contrast, Side, sigmoid_loss, softmax_loss
from dalle_mini.training.clip.zero_shot import EvaluationConfig, ZeroShot
from dalle_mini.training.config.sections import MOST_IMAGES, OptimizerConfig, check_choice, check_most
from dalle_mini.training.engine.sharding import DATA, batch_sharding, gathered, place
from dalle_mini.training.engine.trainer import (
    AuxiliaryInputs,
    Loss,
    StepProgram,
    Trainer,
    TrainState,
    initial_parameters,
)
from dalle_mini.training.run.checkpoint_folder import holds_checkpoints
from dalle_mini.training.run.init_from import TOKENIZER, loaded_parameters
from dalle_mini.weights.bundle import PREPROCESSOR, find_part

OPTIMIZER = OptimizerConfig(
    name="adamw", learning_rate=1e-3, warmup_steps=100, decay="cosine", final_rate=0.02, weight_decay=0.05
)
LOSSES = ("softmax", "sigmoid")
DTYPES = ("float32", "bfloat16")
CAPTIONS = ("any", "first")
TRAINED = {
    "both": None,
    "text": re.compile(r"text_model\.|text_projection\.|logit_"),
    "vision": re.compile(r"vision_model\.|visual_projection\.|logit_"),
}
MAX_LOGIT_SCALE = float(np.log(100.0))  # the softmax paper's clip: beyond it training is unstable
SIGLIP_SCALE, SIGLIP_BIAS = math.log(10.0), -10.0  # begin with no: nearly all pairs of a batch are wrong
Between = Callable[[], None]
CHUNK = 64  # images or texts of a call, where they are only embedded


@dataclass(frozen=True)
class CLIPTraining:
    """Loss, optimizer and augmentation of a CLIP run. A weight decay is for matrices alone.

    Attributes:
        loss: "softmax" or "sigmoid" (`contrastive.py`).
        train: "both" towers with their projections, or "text" or "vision" alone; the temperature is always trained. A
            frozen vision tower is LiT (Zhai et al. 2022).
        crop_scale: train on random parts of the images, of at least this share of the area; 1 is off.
        flip: mirror half of the images. Captions speak of left and right.
        colour: brightness, contrast and saturation vary by so much, as a share.
        noise: the standard deviation of Gaussian noise on pixels in [0, 1]: the ranked images come from a VQGAN, not
            from a camera, and CLIP should not lean on their finest texture.
        damage: at most this share of a damaged copy's cells is wrong; 0 makes no copies.
        cell: side of a cell, pixels: a token's.
        captions: which caption of several to take: "any" by lot each time, or the "first".
        dtype: the type of the network's computation; parameters, unit vectors and loss are float32 in any case.
        init_from: a trained CLIP to start from: what `CLIP.from_pretrained` reads, a bundle, "shipped", or a run.
    """

    model: CLIPConfig = field(default_factory=CLIPConfig)
    optimizer: OptimizerConfig = OPTIMIZER
    loss: str = "softmax"
    train: str = "both"
    crop_scale: float = 1.0
    flip: bool = False
    colour: float = 0.0
    noise: float = 0.03
    damage: float = 0.0
    cell: int = 4
    captions: str = "any"
    dtype: str = "float32"
    init_from: str | None = source_setting()

    def __post_init__(self):
        check_choice("training.loss", self.loss, LOSSES)
        check_choice("training.train", self.train, tuple(TRAINED))
        check_choice("training.captions", self.captions, CAPTIONS)
        check_choice("training.dtype", self.dtype, DTYPES)
        if not 0 <= self.damage <= 1:
            raise UserError(f"training.damage {self.damage}: a share from 0 to 1")
        if not 0 < self.crop_scale <= 1:
            raise UserError(f"training.crop_scale {self.crop_scale}: a share of the area, more than 0 and at most 1")
        if not 0 <= self.colour < 1:
            raise UserError(f"training.colour {self.colour}: a share of 0 or more and less than 1")
        if not 0 <= self.noise < math.inf:
            raise UserError(f"training.noise {self.noise}: a standard deviation of 0 or more")
        if self.cell < 1:
            raise UserError(f"training.cell {self.cell}: so many pixels a side have no cells")
        check_most("training", self, noise=LARGEST, cell=MOST_IMAGES)

    @property
    def network(self) -> CLIPConfig:
        """The config of the weights that a run ends with.

        It is `model`, with a bias where the loss needs one: temperature and bias then begin as in SigLIP.
        """
        if self.loss == "softmax" or self.model.logit_bias_init_value is not None:
            return self.model
        return dataclasses.replace(self.model, logit_scale_init_value=SIGLIP_SCALE, logit_bias_init_value=SIGLIP_BIAS)

    def check(self) -> None:
        """Raises UserError where the fields do not go together."""
        if self.damage and self.model.vision.image_size % self.cell:
            raise UserError(f"training.cell {self.cell} does not divide {self.model.vision.image_size} pixels")


class CLIPTrainer(Trainer):
    """Trains and evaluates CLIP.

    Args:
        train, held_out: map-style sources with `batch(indices) -> (uint8 [n, S, S, 3], captions)`.
        captions_of: all captions of an image of `train`, by its index; None where each has the one of its batch alone.
        preprocessor: the content of a `preprocessor_config.json`: how CLIP wants its images.
        data: says which images these are, for the run's record: the run is not continued with others.
        evaluation: the settings of the evaluation.
        labelled: images of the classes of `evaluation`; the held-out images by default.
    Raises:
        UserError: the settings do not go together.
    """

    name = "clip"
    decay_vectors = False
    contrastive = True

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
        captions_of: Callable[[int], Sequence[str]] | None = None,
        data: dict[str, Any] | None = None,
        evaluation: EvaluationConfig | None = None,
        labelled: Any = None,
    ):
        config.check()
        tokenizer.check_vocab_size(config.model.text.vocab_size)
        self.config, self.train, self.held_out, self.data = config, train, held_out, data
        self._captions_of = captions_of if config.captions == "any" else None
        self.tokenizer, self.preprocessor = tokenizer, preprocessor
        self.optimizer, self.batch_size, self.seed = config.optimizer, batch_size, seed
        self.dtype, self.trained = config.dtype, TRAINED[config.train]
        self.graphdef, _ = CLIP.shapes(config.network)
        self._training_graphdef, _ = CLIP.shapes(config.network, jnp.dtype(config.dtype))
        self._image_vectors, self._text_vectors = Jit(self._embed_images), Jit(self._embed_texts)
        self.evaluation = evaluation or EvaluationConfig()
        self._zero_shot = ZeroShot.find(self.evaluation, held_out if labelled is None else labelled)

    def settings(self) -> dict[str, Any]:
        return {"training": dataclasses.asdict(self.config), "data": self.data}

    def parameters(self, key: jax.Array) -> tuple[Any, Any]:
        return initial_parameters(CLIP, self.config.network, key), ()

    def loaded(self) -> Any | None:
        """The start's parameters. The sigmoid loss takes only the towers of a CLIP without a bias.

        A softmax's temperature means nothing to it.
        """
        start, network = self.config.init_from, self.config.network
        if start is None:
            return None
        source = start if holds_checkpoints(start) else str(find_part("clip", start))
        params = loaded_parameters(CLIP, self.config.model, source)
        if network == self.config.model:
            return params
        fresh = {"logit_scale": network.logit_scale_init_value, "logit_bias": network.logit_bias_init_value}
        return params | {name: jnp.float32(value) for name, value in fresh.items()}

    def batch(self, step: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng((self.seed, step))
        indices = rng.integers(0, len(self.train), self.batch_size)
        images, captions = self.train.batch(indices)
        if self._captions_of is not None:
            captions = [
                _one_of(self._captions_of(int(index)) or [caption], chance)
                for index, caption, chance in zip(indices, captions, rng.random(len(indices)), strict=True)
            ]
        own = _numbered(hash(image.tobytes()) for image in images)  # by content: datasets hold duplicates
        images = self._augmented(images, rng)
        numbers = np.stack([_numbered(captions), own], axis=1).astype(np.int32)
        ids, mask = self._tokens(captions)
        return {"pixels": self._squares(images), "input_ids": ids, "attention_mask": mask, "numbers": numbers}

    def batch_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        vision, text = self.config.model.vision, self.config.model.text
        pixels = (batch_size * (2 if self.config.damage else 1), vision.image_size, vision.image_size, 3)
        ids = jax.ShapeDtypeStruct((batch_size, text.max_position_embeddings), jnp.int32)
        return {
            "pixels": jax.ShapeDtypeStruct(pixels, jnp.uint8),
            "input_ids": ids,
            "attention_mask": ids,
            "numbers": jax.ShapeDtypeStruct((batch_size, 2), jnp.int32),
        }

    def loss(self, params: Any, batch: Any, key: jax.Array | None, auxiliary: AuxiliaryInputs | None = None) -> Loss:
        return self.joint(params, self.embed(params, batch), batch)

    def embed(self, params: Any, batch: Any) -> dict[str, jax.Array]:
        clip: CLIP = nnx.merge(self._training_graphdef, params)
        return {
            "images": clip.image_embeds(self._normalised(batch["pixels"])),
            "texts": clip.text_embeds(batch["input_ids"], batch["attention_mask"]),
        }

    def joint(self, params: Any, embeds: dict[str, jax.Array], batch: Any) -> Loss:
        found = self._contrast(params, embeds["images"], embeds["texts"], batch["numbers"])
        return Loss(found.total, jnp.float32(len(embeds["texts"])), {"recall": found.right})

    def finish(self, params: Any, state: TrainState, loss: Loss, key: jax.Array) -> tuple[Any, Any, dict[str, Any]]:
        if self.config.loss == "softmax":
            params = {**params, "logit_scale": jnp.minimum(params["logit_scale"], MAX_LOGIT_SCALE)}
        metrics = {"logit_scale": jnp.exp(params["logit_scale"])}  # times the cosines, which tells more than its log
        if self.config.loss == "sigmoid":
            metrics["logit_bias"] = params["logit_bias"]
        return params, state.extra, metrics

    def evaluate(self, program: StepProgram, state: TrainState, batch_size: int) -> dict[str, float]:
        """The loss and `retrieval.recalls` over held-out pairs, all against all; then zero-shot classification."""
        images, captions = self.held_out_pairs()
        vectors = self.image_vectors(state.weights, images, program.check_stop)
        texts = self.text_vectors(state.weights, captions, program.check_stop)
        learned = gathered({name: leaf for name, leaf in state.weights.items() if name.startswith("logit_")})
        numbers = np.stack([_numbered(captions), np.arange(len(captions))], axis=1).astype(np.int32)
        loss = self._contrast(learned, jnp.asarray(vectors), jnp.asarray(texts), jnp.asarray(numbers)).total
        found = {"loss": float(loss) / len(captions), **recalls(vectors, texts, captions)}
        if self._zero_shot is not None:
            prompts = self.text_vectors(state.weights, self._zero_shot.prompts, program.check_stop)
            vectors = self.image_vectors(state.weights, self._zero_shot.images, program.check_stop)
            found |= self._zero_shot.measure(vectors, prompts)
        return found

    def held_out_pairs(self) -> tuple[np.ndarray, list[str]]:
        """The images of the evaluation, uint8 [n, S, S, 3], and their captions."""
        return self.held_out.batch(range(min(self.evaluation.pairs, len(self.held_out))))

    def image_vectors(self, params: Any, images: np.ndarray, between: Between = lambda: None) -> np.ndarray:
        """Unit vectors float32 [n, D] of uint8 [n, S, S, 3], by parameters on their mesh. All processes call it.

        `between` is called after each chunk.
        """
        return self._in_chunks(self._image_vectors, between, params, self._squares(images))

    def text_vectors(self, params: Any, captions: Sequence[str], between: Between = lambda: None) -> np.ndarray:
        """Unit vectors float32 [n, D], as `image_vectors`."""
        return self._in_chunks(self._text_vectors, between, params, *self._tokens(captions))

    def export(self, state: TrainState, folder: Path) -> None:
        params = gathered(state.weights)
        if jax.process_index() == 0:
            nnx.merge(self.graphdef, params).save_pretrained(folder)
            self._save_companions(folder)

    def keep(self, out: Path) -> None:
        """Copy tokenizer and preprocessor into the run's folder, for the network of a checkpoint."""
        if not (out / TOKENIZER / PREPROCESSOR).exists():
            self._save_companions(out / TOKENIZER)

    def _save_companions(self, folder: Path) -> None:
        self.tokenizer.save(folder)
        write_whole(folder / PREPROCESSOR, json.dumps(self.preprocessor, indent=2) + "\n")

    def _augmented(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The images of a batch [n, S, S, 3], and behind them their damaged copies, if there are any."""
        c = self.config
        if c.crop_scale < 1:
            images = augment.random_resized_crops(images, c.crop_scale, rng)
        if c.flip:
            images = augment.flipped(images, rng)
        if c.colour:
            images = augment.colour_jitter(images, c.colour, rng)
        if c.noise:
            images = augment.noisy(images, c.noise, rng)
        if c.damage:
            images = np.concatenate([images, augment.damaged(images, c.damage, c.cell, rng)])
        return images

    def _squares(self, images: np.ndarray) -> np.ndarray:
        side = self.config.model.vision.image_size
        if images.shape[1:3] == (side, side) == clip_sizes(self.preprocessor):
            return images
        return clip_squares(images, self.preprocessor)

    def _tokens(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        return self.tokenizer(captions, max_length=self.config.model.text.max_position_embeddings)

    def _normalised(self, pixels: jax.Array) -> jax.Array:
        """The same as `clip_pixels`, on the devices: as bytes the images travel faster."""
        factor, mean, std = clip_normalisation(self.preprocessor)
        return (pixels.astype(jnp.float32) * factor - mean) / std

    def _contrast(self, params: Any, images: jax.Array, texts: jax.Array, numbers: jax.Array) -> Contrast:
        """The loss of a batch. Images beyond the texts are damaged copies."""
        copies = len(images) - len(texts)
        own = jnp.pad(numbers, ((0, copies), (0, 0)), constant_values=NOBODY)
        sides, scale = (Side(images, own), Side(texts, numbers)), jnp.exp(params["logit_scale"])
        if self.config.loss == "softmax":
            return softmax_loss(*sides, scale)
        return sigmoid_loss(*sides, scale, params["logit_bias"])

    def _embed_images(self, params: Any, squares: jax.Array) -> jax.Array:
        return nnx.merge(self.graphdef, params).image_embeds(self._normalised(squares))

    def _embed_texts(self, params: Any, input_ids: jax.Array, attention_mask: jax.Array) -> jax.Array:
        return nnx.merge(self.graphdef, params).text_embeds(input_ids, attention_mask)

    def _in_chunks(self, function: Any, between: Between, params: Any, *arrays: np.ndarray) -> np.ndarray:
        """`function` of a chunk of rows at a time, spread over the parameters' mesh."""
        leaf = jax.tree.leaves(params)[0]
        is_on_mesh = isinstance(leaf, jax.Array) and isinstance(leaf.sharding, NamedSharding)
        mesh = leaf.sharding.mesh if is_on_mesh else None
        parts = 1 if mesh is None else mesh.shape[DATA]
        chunk = -(-CHUNK // parts) * parts
        found = []
        for start in range(0, len(arrays[0]), chunk):
            rows = [array[start : start + chunk] for array in arrays]
            filled = [np.concatenate([array, np.repeat(array[-1:], chunk - len(array), axis=0)]) for array in rows]
            placed = filled if mesh is None else place(filled, [batch_sharding(mesh)] * len(filled))
            found.append(gathered(function(params, *placed))[: len(rows[0])])
            between()
        return np.concatenate(found)


def _one_of(captions: Sequence[str], chance: float) -> str:
    return captions[int(chance * len(captions))]


def _numbered(things: Iterable[Hashable]) -> np.ndarray:
    """A number for each, equal ones for equal things."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(thing, len(numbers)) for thing in things], np.int32)

"""Train a VQGAN: reconstruction and codebook.

The picture loss is a mix of L1 (sharp edges) and L2 (PSNR). The codebook follows its vectors by an exponential moving
average (van den Oord et al. 2017, appendix A.1), the encoder is held to it by the commitment loss, and gradients pass
the argmin straight through. Codes that fall out of use are revived at vectors of the batch that are served worst,
drawn in proportion to their squared error as in k-means++; the first step revives all of them, which is the codebook's
initialisation. Training may run on crops: the network is convolutional, and a picture's plain parts teach it little.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dalle_mini.errors import UserError
from dalle_mini.evaluation.reconstruction import codebook_use, psnr, reconstruct
from dalle_mini.models import VQGAN
from dalle_mini.models.config import VQGANConfig
from dalle_mini.training.config import OptimizerConfig
from dalle_mini.training.sharding import gathered
from dalle_mini.training.step import Loss, StepProgram, TrainState, initial_parameters

OPTIMIZER = OptimizerConfig(name="adamw", learning_rate=1e-3, warmup_steps=50, decay="cosine", final_rate=0.02)


@dataclass(frozen=True)
class VQGANTraining:
    """Losses and optimizer of a VQGAN run."""

    model: VQGANConfig = field(default_factory=VQGANConfig)
    optimizer: OptimizerConfig = OPTIMIZER
    l1_weight: float = 1.0
    l2_weight: float = 4.0
    commitment_weight: float = 0.25
    codebook_decay: float = 0.98
    revive_every: int = 20
    revive_below: float = 0.2  # uses a step, as a running mean
    crop: int | None = None  # train on crops of this side, pixels


class VQGANTrainer:
    """`train` and `held_out` are map-style sources with `batch(indices) -> (uint8 [n, S, S, 3], captions)`.

    `data` says which they are, for the run's record: it is not continued with others.
    """

    name = "vqgan"
    dtype = "float32"

    def __init__(
        self,
        config: VQGANTraining,
        train: Any,
        held_out: Any,
        *,
        batch_size: int,
        seed: int,
        data: dict[str, Any] | None = None,
    ):
        if config.model.quantizer != "nearest":
            raise UserError(f"training.model.quantizer: training a {config.model.quantizer} VQGAN is not supported")
        if config.crop is not None and not 0 < config.crop <= config.model.resolution:
            raise UserError(
                f"training.crop {config.crop}: pictures of {config.model.resolution} pixels have no such crop"
            )
        if config.crop is not None and config.crop % config.model.downscale:
            raise UserError(
                f"training.crop {config.crop} is not a multiple of the {config.model.downscale} pixels of a token"
            )
        self.config, self.train, self.held_out, self.data = config, train, held_out, data
        self.optimizer, self.batch_size, self.seed = config.optimizer, batch_size, seed
        self.graphdef, _ = nnx.split(nnx.eval_shape(lambda: VQGAN(config.model, rngs=nnx.Rngs(0))))

    def settings(self) -> dict[str, Any]:
        return {"training": dataclasses.asdict(self.config), "data": self.data}

    def parameters(self, key: jax.Array) -> tuple[Any, Any]:
        params = initial_parameters(VQGAN, self.config.model, key)
        codes = params["codebook"]["embedding"]
        return params, {"uses": jnp.zeros(len(codes)), "sums": jnp.zeros_like(codes)}

    def loaded(self) -> None:
        return None

    def batch(self, step: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng((self.seed, step))
        images = self.train.batch(rng.integers(0, len(self.train), self.batch_size))[0]
        if self.config.crop:
            images = _random_crops(images, self.config.crop, self.config.model.downscale, rng)
        return {"images": images}

    def batch_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        side = self.config.crop or self.config.model.resolution
        return {"images": jax.ShapeDtypeStruct((batch_size, side, side, self.config.model.in_channels), jnp.uint8)}

    def loss(self, params: Any, batch: Any, key: jax.Array | None) -> Loss:
        images = batch["images"].astype(jnp.float32) / 255
        vqgan = nnx.merge(self.graphdef, params)
        latents = vqgan.encode_latents(images)
        tokens = vqgan.quantize(jax.lax.stop_gradient(latents))
        codes = jax.lax.stop_gradient(vqgan.codebook(tokens))
        commitment = jnp.mean((latents - codes) ** 2)
        straight_through = latents + jax.lax.stop_gradient(codes - latents)
        error = vqgan.decode_latents(straight_through) - images
        mse = jnp.mean(error**2)
        c = self.config
        loss = c.l1_weight * jnp.mean(jnp.abs(error)) + c.l2_weight * mse + c.commitment_weight * commitment
        count = jnp.float32(len(images))  # of equal weight, so that the pieces of a batch add up
        metrics = {"mse": mse * count, "commitment": commitment * count}
        return Loss(loss * count, count, metrics, {"latents": latents, "tokens": tokens})

    def finish(self, params: Any, state: TrainState, loss: Loss, key: jax.Array) -> tuple[Any, Any, dict[str, Any]]:
        """The codebook is not the optimizer's: it follows its vectors."""
        codes, extra = self._update_codebook(
            state.params["codebook"]["embedding"], state.extra, loss.aux["latents"], loss.aux["tokens"], state.step, key
        )
        params = {**params, "codebook": {"embedding": codes}}
        uses = extra["uses"] / jnp.sum(extra["uses"])
        return (
            params,
            extra,
            {
                "psnr": -10 * jnp.log10(loss.metrics["mse"] / loss.weight),
                "perplexity": jnp.exp(-jnp.sum(uses * jnp.log(uses + 1e-10))),
            },
        )

    def _update_codebook(self, codes, extra, latents, tokens, step, key):
        c = self.config
        vectors = latents.reshape(-1, latents.shape[-1])  # [N, embed_dim]
        tokens = tokens.reshape(-1)
        counts = jnp.zeros(len(codes)).at[tokens].add(1.0)
        sums = jnp.zeros_like(codes).at[tokens].add(vectors)
        uses = c.codebook_decay * extra["uses"] + (1 - c.codebook_decay) * counts
        totals = c.codebook_decay * extra["sums"] + (1 - c.codebook_decay) * sums
        codes = jnp.where(uses[:, None] > 1e-5, totals / jnp.maximum(uses, 1e-5)[:, None], codes)

        def revive(codes, uses, totals):
            error = jnp.sum((vectors - codes[tokens]) ** 2, axis=-1)
            pick = jax.random.categorical(key, jnp.log(error + 1e-12), shape=(len(codes),))
            dead = (uses < c.revive_below)[:, None]
            codes = jnp.where(dead, vectors[pick], codes)
            uses = jnp.where(dead[:, 0], 1.0, uses)
            return codes, uses, jnp.where(dead, codes, totals)

        due = step % c.revive_every == 0
        codes, uses, totals = jax.lax.cond(due, revive, lambda *same: same, codes, uses, totals)
        return codes, {"uses": uses, "sums": totals}

    def evaluate(self, program: StepProgram, state: TrainState, batch_size: int) -> dict[str, float]:
        """PSNR (dB, mean over pictures) and share of the codebook used on 256 held-out pictures."""
        images, _ = self.held_out.batch(range(min(256, len(self.held_out))))
        pictures, tokens = reconstruct(nnx.merge(self.graphdef, gathered(state.weights)), images)
        return {"psnr": psnr(images, pictures), "codebook_use": codebook_use(tokens, self.config.model.n_embed)}

    def export(self, state: TrainState, folder: Path) -> None:
        params = gathered(state.weights)
        if jax.process_index() == 0:
            nnx.merge(self.graphdef, params).save_pretrained(folder)


def _random_crops(images: np.ndarray, side: int, grid: int, rng: np.random.Generator) -> np.ndarray:
    """One crop of each picture [n, S, S, 3], at a multiple of `grid` pixels: tokens keep their phase."""
    corners = rng.integers(0, (images.shape[1] - side) // grid + 1, (len(images), 2)) * grid
    return np.stack([image[y : y + side, x : x + side] for image, (y, x) in zip(images, corners, strict=True)])

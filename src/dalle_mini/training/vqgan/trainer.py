"""Train a VQGAN as in Esser et al. 2021 (arXiv 2012.09841), whose equations are cited below.

L_rec is a mix of L1 (sharp edges), L2 (PSNR) and a distance as a network sees it (`perceptual.py`). The commitment loss
holds the encoder to its codebook, gradients pass the argmin straight through, and `codebook.py` moves the codebook. A
discriminator (`discriminator.py`) may join from some step on. Its parameters lie beside the VQGAN's under a key of
their own, and so in the same checkpoints. Training may run on crops: the network is convolutional, and the plain parts
of an image teach it little.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dalle_mini.errors import UserError
from dalle_mini.evaluation import reconstruction
from dalle_mini.models import VQGAN
from dalle_mini.models.config import VQGANConfig
from dalle_mini.runtime.paths import source_setting
from dalle_mini.settings import LARGEST
from dalle_mini.training.config.sections import MOST, MOST_IMAGES, OptimizerConfig, check_choice, check_most
from dalle_mini.training.engine.sharding import gathered
from dalle_mini.training.engine.trainer import (
    AuxiliaryInputs,
    Loss,
    StepProgram,
    Trainer,
    TrainState,
    initial_parameters,
)
from dalle_mini.training.run.checkpoint_folder import holds_checkpoints
from dalle_mini.training.run.init_from import loaded_parameters
from dalle_mini.training.vqgan import codebook
from dalle_mini.training.vqgan.discriminator import (
    GROUP,
    Adversary,
    DiscriminatorConfig,
    PatchGAN,
    gradient_alone,
    no_losses,
    with_gradient,
)
from dalle_mini.training.vqgan.perceptual import PerceptualConfig, fingerprint, open_distance
from dalle_mini.weights.bundle import find_part

OPTIMIZER = OptimizerConfig(name="adamw", learning_rate=1e-3, warmup_steps=50, decay="cosine", final_rate=0.02)
DTYPES = ("float32", "bfloat16")
EVALUATED = 256  # held-out images, at most


@dataclass(frozen=True)
class VQGANTraining:
    """Losses and optimizer of a VQGAN run. A weight of 0 leaves a loss out.

    Attributes:
        l1_weight, l2_weight: weights of the mean absolute and the mean squared error of pixels in [0, 1].
        perceptual: a distance as a network sees it; None leaves it out.
        discriminator: None leaves it out.
        codebook: how it moves, "ema" or "loss" (`codebook.py`).
        codebook_weight: weight of the loss that moves it, if a loss does.
        codebook_decay: decay of the running means of its uses, and of its vectors.
        commitment_weight: weight of the squared distance of vectors to their entries, for the encoder.
        entropy_weight, entropy_temperature: for the loss that keeps the codebook in use (`codebook.entropy_loss`).
        revive_every: steps after which dead entries are revived; 0 is never.
        revive_below: an entry is dead if it is used less than this share of what each would be if all were alike.
        crop: train on crops of this side, pixels.
        flip: mirror half of the images.
        dtype: what the VQGAN computes in; parameters and losses are float32 in any case.
        init_from: a trained VQGAN to start from: what `VQGAN.from_pretrained` reads, a bundle, "shipped", or a run.
    """

    model: VQGANConfig = field(default_factory=VQGANConfig)
    optimizer: OptimizerConfig = OPTIMIZER
    l1_weight: float = 1.0
    l2_weight: float = 4.0
    perceptual: PerceptualConfig | None = None
    discriminator: DiscriminatorConfig | None = None
    codebook: str = "ema"
    codebook_weight: float = 1.0
    codebook_decay: float = 0.98
    commitment_weight: float = 0.25
    entropy_weight: float = 0.0
    entropy_temperature: float = 0.01
    revive_every: int = 20
    revive_below: float = 0.05
    crop: int | None = None
    flip: bool = False
    dtype: str = "float32"
    init_from: str | None = source_setting()

    def __post_init__(self):
        check_choice("training.codebook", self.codebook, codebook.UPDATES)
        check_choice("training.dtype", self.dtype, DTYPES)
        weights = [f"{name}_weight" for name in ("l1", "l2", "codebook", "commitment", "entropy")]
        for name in (*weights, "revive_every", "revive_below"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"training.{name}: {getattr(self, name)} is not a number of 0 or more")
        if not self.entropy_temperature > 0:
            raise UserError(f"training.entropy_temperature: {self.entropy_temperature} is not a number above 0")
        if not 0 <= self.codebook_decay < 1:
            raise UserError(
                f"training.codebook_decay: {self.codebook_decay} is not a decay, which is 0 or more and less than 1"
            )
        check_most("training", self, revive_every=MOST, crop=MOST_IMAGES)
        check_most("training", self, **dict.fromkeys((*weights, "revive_below", "entropy_temperature"), LARGEST))

    @property
    def network(self) -> VQGANConfig:
        """The config of the weights that a run ends with."""
        return self.model

    @property
    def side(self) -> int:
        """The side of the images that are trained on, pixels."""
        return self.model.resolution if self.crop is None else self.crop

    def check(self) -> None:
        """Raises UserError where the fields do not go together."""
        model = self.model
        if model.quantizer == "gumbel":
            raise UserError("training.model.quantizer: training a gumbel VQGAN is not supported")
        if model.give_pre_end or model.in_channels != 3 or model.out_ch != 3:
            raise UserError("training.model: only VQGANs that give images of 3 channels are trained")
        if self.crop is not None and not 0 < self.crop <= model.resolution:
            raise UserError(f"training.crop {self.crop}: images of {model.resolution} pixels have no such crop")
        if self.crop is not None and self.crop % model.downscale:
            raise UserError(f"training.crop {self.crop} is not a multiple of the {model.downscale} pixels of a token")
        if self.discriminator is not None:
            self.discriminator.check_side(self.side)


class VQGANTrainer(Trainer):
    """`train` and `held_out` are map-style sources with `batch(indices) -> (uint8 [n, S, S, 3], captions)`.

    `data` says which they are, for the run's record: it is not continued with others.

    Raises:
        UserError: the settings do not go together, or the network of the perceptual distance cannot be read.
    """

    name = "vqgan"
    dtype = "float32"  # of what devices exchange; the VQGAN casts for itself, but for its codebook

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
        config.check()
        self.config, self.train, self.held_out, self.data = config, train, held_out, data
        self.optimizer, self.batch_size, self.seed = config.optimizer, batch_size, seed
        self.graphdef, _ = VQGAN.shapes(config.model)
        self._training_graphdef, _ = VQGAN.shapes(config.model, jnp.dtype(config.dtype))
        self._adversary: Adversary | None = None
        self.groups = {}
        if config.discriminator is not None:
            self.groups = {GROUP: config.discriminator.optimizer}
            network = nnx.eval_shape(partial(self._discriminator, config.discriminator, jax.random.key(0)))
            self._adversary = Adversary(config.discriminator, nnx.graphdef(network))
        self._distance, self.frozen = None, {}
        if config.perceptual is not None:
            self._distance = open_distance(config.perceptual)
            self._distance.check_side(config.side)
            self.frozen = {"perceptual": self._distance.weights}

    def settings(self) -> dict[str, Any]:
        settings = {"training": dataclasses.asdict(self.config), "data": self.data}
        return settings | ({"perceptual": fingerprint(self.frozen)} if self.frozen else {})

    def parameters(self, key: jax.Array) -> tuple[Any, Any]:
        params = initial_parameters(VQGAN, self.config.model, key)
        return params | self._new_discriminator(key), codebook.no_uses(params["codebook"]["embedding"])

    def loaded(self) -> Any | None:
        start = self.config.init_from
        if start is None:
            return None
        source = start if holds_checkpoints(start) else str(find_part("vqgan", start))
        return loaded_parameters(VQGAN, self.config.model, source) | self._new_discriminator(jax.random.key(self.seed))

    def batch(self, step: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng((self.seed, step))
        images = self.train.batch(rng.integers(0, len(self.train), self.batch_size))[0]
        if self.config.crop:
            images = _random_crops(images, self.config.crop, self.config.model.downscale, rng)
        if self.config.flip:
            images = np.where(rng.random((len(images), 1, 1, 1)) < 0.5, images[:, :, ::-1], images)
        return {"images": images}

    def batch_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        side = self.config.side
        return {"images": jax.ShapeDtypeStruct((batch_size, side, side, self.config.model.in_channels), jnp.uint8)}

    def loss(self, params: Any, batch: Any, key: jax.Array | None, auxiliary: AuxiliaryInputs) -> Loss:
        """L_VQ of equation 4, with L_rec in place of its first term.

        A discriminator adds the gradients of equation 6 but not their values, so that the curve of `total` has no step
        where it begins. The values are metrics.
        """
        images = batch["images"].astype(jnp.float32) / 255
        vqgan = nnx.merge(self._training_graphdef, _without_discriminator(params))
        latents = vqgan.encode_latents(images).astype(jnp.float32)
        tokens = vqgan.quantize(jax.lax.stop_gradient(latents))
        quantized, codebook_loss, codebook_metrics = self._quantized(vqgan.codes(), latents, tokens)
        if self._adversary is None:
            image_loss, metrics = self._reconstruction_loss(vqgan.decode_latents(quantized), images, auxiliary)
        else:
            image_loss, metrics = self._adversarial_losses(self._adversary, params, quantized, images, auxiliary)
        count = jnp.float32(len(images))  # every image counts alike, so that microbatches add up
        metrics = {name: value * count for name, value in (metrics | codebook_metrics).items()}
        return Loss((image_loss + codebook_loss) * count, count, metrics, {"latents": latents, "tokens": tokens})

    def finish(self, params: Any, state: TrainState, loss: Loss, key: jax.Array) -> tuple[Any, Any, dict[str, Any]]:
        """The step's codebook: under "ema" it follows its vectors, and the optimizer's update of it is dropped."""
        moved = state.params if self.config.codebook == "ema" else params
        codes, extra = codebook.update(
            self.config,
            moved["codebook"]["embedding"],
            state.extra,
            loss.aux["latents"],
            loss.aux["tokens"],
            state.step,
            key,
            cosine=self.config.model.quantizer == "cosine",
            trained=self.config.init_from is not None,
        )
        params = {**params, "codebook": {"embedding": codes}}
        metrics = {
            "psnr": -10 * jnp.log10(loss.metrics["mse"] / loss.weight),
            "perplexity": codebook.perplexity(extra["uses"]),
        }
        return params, extra, metrics

    def _quantized(self, codes, latents, tokens):
        """(the entries, with the vectors' gradients: straight through; the last two terms of equation 4; metrics)."""
        c, chosen = self.config, jnp.take(codes, tokens, axis=0)
        still = jax.lax.stop_gradient(chosen)
        commitment = jnp.mean((latents - still) ** 2)
        loss, metrics = c.commitment_weight * commitment, {"commitment": commitment}
        if c.codebook == "loss":
            loss += c.codebook_weight * jnp.mean((jax.lax.stop_gradient(latents) - chosen) ** 2)
        if c.entropy_weight:
            learned = codes if c.codebook == "loss" else jax.lax.stop_gradient(codes)
            metrics["entropy_loss"] = codebook.entropy_loss(latents, learned, c.entropy_temperature)
            loss += c.entropy_weight * metrics["entropy_loss"]
        return latents + jax.lax.stop_gradient(still - latents), loss, metrics

    def _reconstruction_loss(self, made, images, auxiliary: AuxiliaryInputs):
        """(L_rec: L1, L2 and the perceptual distance of the images that the decoder made, metrics)."""
        c, error = self.config, made - images
        metrics = {"mse": jnp.mean(error**2)}
        loss = c.l1_weight * jnp.mean(jnp.abs(error)) + c.l2_weight * metrics["mse"]
        if self._distance is not None and c.perceptual is not None:
            distance = self._distance.distance(auxiliary.frozen["perceptual"], made, images)
            metrics["perceptual"] = jnp.mean(distance)
            loss += c.perceptual.weight * metrics["perceptual"]
        return loss, metrics

    def _adversarial_losses(self, adversary: Adversary, params, quantized, images, auxiliary: AuxiliaryInputs):
        """(a scalar that has the gradients of both losses and the value of L_rec, metrics).

        Equations 5 to 7 of Esser et al. 2021, with the losses of `discriminator.py`; y is what the VQGAN made of x:

            L_G = L_rec(x, y) + lambda * generator_loss(D(y))      moves the VQGAN; D's weights are constants
            L_D = discriminator_loss(D(x), D(y))                   moves D; y is a constant

        L_G depends on the VQGAN through y alone. So its gradient is taken at y, part by part, since lambda is made of
        the parts; their sum goes back through the decoder once.
        """
        made, to_last_layer = self._decode(params, quantized)
        y = jax.lax.stop_gradient(made)
        reconstruction_loss = partial(self._reconstruction_loss, images=images, auxiliary=auxiliary)
        (rec_loss, metrics), rec_gradient = jax.value_and_grad(reconstruction_loss, has_aux=True)(y)
        begun = auxiliary.step >= adversary.config.start
        play = partial(adversary.losses, to_last_layer, rec_gradient)
        found = jax.lax.cond(begun, play, no_losses, params[GROUP], images, y)
        metrics |= {
            "discriminator": found.discriminator,
            "adversarial": found.generator,
            "adversarial_weight": found.weight,
        }
        loss = with_gradient(rec_loss, made, rec_gradient + found.gradient)
        return loss + gradient_alone(found.discriminator), metrics

    def _decode(self, params, quantized):
        """(the images that the decoder makes, from a gradient at them to the one at the kernel of its last layer)."""
        network = _without_discriminator(params)

        def decode(kernel):  # [3, 3, ch, 3]
            decoder = {**network["decoder"], "conv_out": {**network["decoder"]["conv_out"], "kernel": kernel}}
            return nnx.merge(self._training_graphdef, {**network, "decoder": decoder}).decode_latents(quantized)

        made, pull = jax.vjp(decode, network["decoder"]["conv_out"]["kernel"])
        pull = jax.tree.map(jax.lax.stop_gradient, pull)
        return made, lambda gradient: pull(gradient)[0]

    def _discriminator(self, config: DiscriminatorConfig, key: jax.Array) -> PatchGAN:
        return PatchGAN(config, 3, rngs=nnx.Rngs(key), dtype=jnp.dtype(self.config.dtype))

    def _new_discriminator(self, key: jax.Array) -> dict[str, Any]:
        """The discriminator's random parameters under their key, to join the VQGAN's; nothing where there is none."""
        config = self.config.discriminator
        if config is None:
            return {}
        return {GROUP: nnx.to_pure_dict(nnx.state(self._discriminator(config, jax.random.fold_in(key, 1))))}

    def network(self, params: Any) -> VQGAN:
        """The VQGAN of a state's parameters, whole in this process's memory. All processes call it."""
        return nnx.merge(self.graphdef, gathered(_without_discriminator(params)))

    def evaluate(self, program: StepProgram, state: TrainState, batch_size: int) -> dict[str, float]:
        """`reconstruction.measure` of at most 256 held-out images, without crops; `loss` is L1 and L2 alone."""
        images, _ = self.held_out.batch(range(min(EVALUATED, len(self.held_out))))
        made, tokens = reconstruction.reconstruct(self.network(state.weights), images, lambda *_: program.check_stop())
        error = made - images.astype(np.float32) / 255
        c = self.config
        loss = c.l1_weight * np.abs(error).mean(dtype=np.float64) + c.l2_weight * (error**2).mean(dtype=np.float64)
        return {"loss": float(loss), **reconstruction.measure(images, made, tokens, c.model.n_embed)}

    def export(self, state: TrainState, folder: Path) -> None:
        network = self.network(state.weights)
        if jax.process_index() == 0:
            network.save_pretrained(folder)


def _without_discriminator(params: dict[str, Any]) -> dict[str, Any]:
    return {name: part for name, part in params.items() if name != GROUP}


def _random_crops(images: np.ndarray, side: int, grid: int, rng: np.random.Generator) -> np.ndarray:
    """One crop of each image [n, S, S, 3], at a multiple of `grid` pixels, so that tokens keep their phase."""
    corners = rng.integers(0, (images.shape[1] - side) // grid + 1, (len(images), 2)) * grid
    return np.stack([image[y : y + side, x : x + side] for image, (y, x) in zip(images, corners, strict=True)])

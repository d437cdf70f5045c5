"""Distances of images as a network sees them, for the loss of a VQGAN: LPIPS, and one by CLIP's features.

Taming Transformers trains with LPIPS (Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a
Perceptual Metric", arXiv 1801.03924): VGG16's features after five of its blocks, each position's vector scaled to
length 1, and their squared differences, with weights for channels that were learned from people's answers. It needs two
files that are not ours to pass on: torchvision's VGG16 (`vgg16-397923af.pth`) and LPIPS' weights (`vgg.pth`, version
0.1).

A CLIP, such as the shipped one, does without them: the states of its vision transformer's tokens at several depths,
each scaled to length 1, and their squared differences. The patches' embedding is the shallowest depth, so that a shift
of an edge within a patch counts as well as a change of a thing's kind.

A distance is a plain function of weights and images; weights are an argument of a step's program, not a part of it.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dalle_mini.errors import UserError, listed
from dalle_mini.generation.ranking import Preprocessing
from dalle_mini.models import CLIP
from dalle_mini.models.vqgan import unit
from dalle_mini.runtime.parsing import read_record
from dalle_mini.runtime.paths import path_setting, source_setting
from dalle_mini.settings import LARGEST
from dalle_mini.training.config.sections import check_choice, check_most
from dalle_mini.weights.bundle import PREPROCESSOR, SHIPPED_NAME, find_part
from dalle_mini.weights.formats.safetensors import read_safetensors
from dalle_mini.weights.formats.tensors import Tensor
from dalle_mini.weights.formats.torch import read_torch_file

KINDS = ("lpips", "clip")
# VGG16's convolutions by their numbers in torchvision's `features`, in blocks; max pooling stands between blocks.
VGG_BLOCKS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
VGG_WIDTHS = (64, 128, 256, 512, 512)
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # LPIPS' own, for pixels in [-1, 1]
LEAST_SIDE = 16  # pixels: VGG's last block then has one position


@dataclass(frozen=True)
class PerceptualConfig:
    """Which distance joins the loss of a VQGAN, and how much.

    Attributes:
        kind: "lpips" or "clip".
        weight: the weight of the distance in the loss.
        vgg, heads: LPIPS' two files, torch's or safetensors: torchvision's weights of VGG16, and the heads.
        clip: a CLIP's folder or repository, a bundle's, or "shipped".
    """

    kind: str = "lpips"
    weight: float = 1.0
    vgg: str | None = path_setting()
    heads: str | None = path_setting()
    clip: str = source_setting(SHIPPED_NAME)

    def __post_init__(self):
        check_choice("training.perceptual.kind", self.kind, KINDS)
        if not 0 <= self.weight < math.inf:
            raise UserError(f"training.perceptual.weight: {self.weight} is not a number of 0 or more")
        check_most("training.perceptual", self, weight=LARGEST)


def open_distance(config: PerceptualConfig) -> LPIPS | CLIPFeatures:
    """Read the frozen network of a distance.

    Raises:
        UserError: a file is not named, missing, damaged, or holds another network.
    """
    if config.kind == "clip":
        return CLIPFeatures.from_pretrained(config.clip)
    return LPIPS.from_files(
        _named("vgg", config.vgg, "torchvision's VGG16, vgg16-397923af.pth"),
        _named("heads", config.heads, "LPIPS' own weights, vgg.pth"),
    )


def _named(name: str, path: str | None, what: str) -> str:
    if path is None:
        raise UserError(f"training.perceptual.{name}: kind lpips needs the file of {what}; without it use kind: clip")
    return path


class LPIPS:
    """`distance(weights, images, others)`, float32 [batch], of images [batch, H, W, 3] in [0, 1].

    Attributes:
        weights: "vgg" holds kernels [3, 3, in, out] and biases by block and number, "heads" a vector for each block.
    """

    def __init__(self, weights: dict[str, Any]):
        self.weights = weights

    @classmethod
    def from_files(cls, vgg: str | Path, heads: str | Path) -> LPIPS:
        """Raises UserError where a file cannot be read, or lacks a weight, or has one of another shape."""
        convs: list[list[dict[str, np.ndarray]]] = []
        channels = 3
        found = _read(vgg)
        for block, width in zip(VGG_BLOCKS, VGG_WIDTHS, strict=True):
            convs.append([])
            for number in block:
                kernel = _weight(vgg, found, f"features.{number}.weight", (width, channels, 3, 3), "VGG16")
                bias = _weight(vgg, found, f"features.{number}.bias", (width,), "VGG16")
                convs[-1].append({"kernel": kernel.transpose(2, 3, 1, 0), "bias": bias})
                channels = width
        found = _read(heads)
        shapes = {f"lin{i}.model.1.weight": (1, width, 1, 1) for i, width in enumerate(VGG_WIDTHS)}
        lins = [_weight(heads, found, name, shape, "LPIPS' heads for VGG16") for name, shape in shapes.items()]
        return cls({"vgg": convs, "heads": [lin.reshape(-1) for lin in lins]})

    def check_side(self, side: int) -> None:
        """Raises UserError where images of `side` pixels are too small."""
        if side < LEAST_SIDE:
            raise UserError(f"training.perceptual: LPIPS sees images or crops of {LEAST_SIDE} pixels, not of {side}")

    @staticmethod
    def distance(weights: Any, images: jax.Array, others: jax.Array) -> jax.Array:
        total = jnp.zeros(len(images))
        both = (2 * jnp.concatenate([images, others]) - 1 - jnp.array(SHIFT)) / jnp.array(SCALE)
        for number, (convs, head) in enumerate(zip(weights["vgg"], weights["heads"], strict=True)):
            if number:
                both = nnx.max_pool(both, (2, 2), strides=(2, 2))
            for conv in convs:
                both = jax.nn.relu(_conv(both, conv["kernel"]) + conv["bias"])
            # As published, 1e-10 is added to the length. The tiny number under the root gives 0 a gradient.
            lengths = jnp.sqrt(jnp.sum(both**2, axis=-1, keepdims=True) + 1e-20)
            one, other = jnp.split(both / (lengths + 1e-10), 2)
            total += jnp.mean((one - other) ** 2 @ head, axis=(1, 2))
        return total


def _conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


class CLIPFeatures:
    """`distance(weights, images, others)`, float32 [batch], of images [batch, H, W, 3] in [0, 1].

    Images are resized (bilinearly) to the size that the CLIP takes. The distance is the mean, over tokens and depths,
    of the squared difference of unit vectors, from 0 to 4. Depths are the patches' embedding and every second layer;
    every fourth where there are more than eight.
    """

    def __init__(self, clip: CLIP, mean: tuple[float, ...], std: tuple[float, ...]):
        vision = clip.vision_model
        self.graphdef, state = nnx.split((vision.embeddings, vision.pre_layernorm, vision.encoder))
        self.weights = nnx.to_pure_dict(state)
        self.side, self.mean, self.std = clip.config.vision.image_size, mean, std
        count = clip.config.vision.num_hidden_layers
        self.every = 2 if count <= 8 else 4

    @classmethod
    def from_pretrained(cls, source: str) -> CLIPFeatures:
        """Raises UserError where there is no CLIP, or it does not say how it wants its images."""
        folder = find_part("clip", source)
        path = folder / PREPROCESSOR
        try:
            found = read_record(path, Preprocessing)
            mean, std = tuple(found["image_mean"]), tuple(found["image_std"])
        except (UserError, KeyError) as error:
            raise UserError(f"{path}: cannot read how CLIP prepares its images ({error})") from None
        return cls(CLIP.from_pretrained(folder), mean, std)

    def check_side(self, side: int) -> None:
        """Images of any side are resized."""

    def distance(self, weights: Any, images: jax.Array, others: jax.Array) -> jax.Array:
        embed, norm, encoder = nnx.merge(self.graphdef, weights)
        both = jnp.concatenate([images, others])
        both = jax.image.resize(both, (len(both), self.side, self.side, both.shape[-1]), "bilinear")
        states = norm(embed((both - jnp.array(self.mean)) / jnp.array(self.std)))  # [2 batch, 1 + patches, width]
        depths = [states]
        for number, layer in enumerate(encoder.layers, 1):
            states = layer(states, None)
            if number % self.every == 0:
                depths.append(states)
        distances = []
        for depth in depths:
            one, other = jnp.split(unit(depth[:, 1:]), 2)  # without the class token
            distances.append(jnp.mean(jnp.sum((one - other) ** 2, axis=-1), axis=1))
        return sum(distances, start=jnp.zeros(len(images))) / len(distances)


def fingerprint(weights: Any) -> str:
    """A short hash of a distance's weights, for a run's record."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(weights):
        digest.update(np.ascontiguousarray(leaf, np.float32).tobytes())
    return digest.hexdigest()[:16]


def _read(path: str | Path) -> dict[str, Tensor]:
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        return read_safetensors(path) if path.suffix == ".safetensors" else read_torch_file(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None


def _weight(path: str | Path, found: dict[str, Tensor], name: str, shape: tuple[int, ...], what: str) -> np.ndarray:
    if name not in found:
        raise UserError(f"{path} is not {what}: it has no {name}, but {listed(found, 3)}")
    if found[name].shape != shape:
        raise UserError(f"{path} is not {what}: {name} is {list(found[name].shape)} instead of {list(shape)}")
    return found[name].read(np.float32)

"""Perceptual distances: LPIPS against plain torch layers, CLIP's features by hand, and files of something else."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dalle_mini.errors import UserError
from dalle_mini.models import CLIP
from dalle_mini.training.vqgan.perceptual import (
    LPIPS,
    VGG_BLOCKS,
    VGG_WIDTHS,
    CLIPFeatures,
    PerceptualConfig,
    fingerprint,
    open_distance,
)
from dalle_mini.weights.formats.safetensors import write_safetensors
from dalle_mini.weights.formats.tensors import Tensor


def vgg_state(rng):
    state, channels = {}, 3
    for block, width in zip(VGG_BLOCKS, VGG_WIDTHS, strict=True):
        for number in block:
            scale = (2 / (9 * channels)) ** 0.5
            state[f"features.{number}.weight"] = rng.normal(0, scale, (width, channels, 3, 3)).astype(np.float32)
            state[f"features.{number}.bias"] = rng.normal(0, 0.1, width).astype(np.float32)
            channels = width
    return state


def heads_state(rng):
    return {
        f"lin{i}.model.1.weight": rng.random((1, width, 1, 1)).astype(np.float32) for i, width in enumerate(VGG_WIDTHS)
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("lpips"), np.random.default_rng(0)
    states = {"vgg": vgg_state(rng), "heads": heads_state(rng)}
    for name, state in states.items():
        write_safetensors(folder / f"{name}.safetensors", {key: Tensor.of(value) for key, value in state.items()})
    return folder, states


@pytest.fixture(scope="module")
def lpips(files):
    folder, _ = files
    return LPIPS.from_files(folder / "vgg.safetensors", folder / "heads.safetensors")


@pytest.fixture(scope="module")
def pair():
    rng = np.random.default_rng(1)
    return rng.random((2, 16, 18, 3)).astype(np.float32), rng.random((2, 16, 18, 3)).astype(np.float32)


def torch_lpips(torch, states, one, other):
    """The published program's steps, with torch's own layers."""
    layers, channels = [], 3
    for number, (block, width) in enumerate(zip(VGG_BLOCKS, VGG_WIDTHS, strict=True)):
        layers += [torch.nn.MaxPool2d(2, 2)] if number else []
        for index in block:
            conv = torch.nn.Conv2d(channels, width, 3, padding=1)
            conv.weight.data, conv.bias.data = (
                torch.tensor(states["vgg"][f"features.{index}.{name}"]) for name in ("weight", "bias")
            )
            layers += [conv, torch.nn.ReLU()]
            channels = width
    vgg = torch.nn.Sequential(*layers)
    convs = [i for i, layer in enumerate(vgg) if isinstance(layer, torch.nn.Conv2d)]
    assert convs == [index for block in VGG_BLOCKS for index in block]
    ends = [3, 8, 15, 22, 29]  # relu1_2, relu2_2, relu3_3, relu4_3, relu5_3
    shift, scale = (torch.tensor(v).view(1, 3, 1, 1) for v in ([-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]))

    def features(images):
        x, found = (torch.tensor(images).permute(0, 3, 1, 2) * 2 - 1 - shift) / scale, []
        for i, layer in enumerate(vgg):
            x = layer(x)
            if i in ends:
                found.append(x / (torch.sqrt((x**2).sum(1, keepdim=True)) + 1e-10))
        return found

    total = 0
    with torch.no_grad():
        for i, (a, b) in enumerate(zip(features(one), features(other), strict=True)):
            head = torch.tensor(states["heads"][f"lin{i}.model.1.weight"])
            total = total + torch.nn.functional.conv2d((a - b) ** 2, head).mean(dim=(1, 2, 3))
    return total.numpy()


@pytest.mark.slow
def test_lpips_is_the_published_one(files, lpips, pair):
    torch = pytest.importorskip("torch")
    found = jax.jit(lpips.distance)(lpips.weights, *pair)
    assert found.shape == (2,)
    np.testing.assert_allclose(found, torch_lpips(torch, files[1], *pair), rtol=1e-4)


@pytest.mark.slow
def test_torchs_own_files_are_read(files, lpips, tmp_path):
    torch = pytest.importorskip("torch")
    _, states = files
    for name, state in states.items():
        torch.save({key: torch.tensor(value) for key, value in state.items()}, tmp_path / f"{name}.pth")
    again = open_distance(PerceptualConfig(vgg=str(tmp_path / "vgg.pth"), heads=str(tmp_path / "heads.pth")))
    assert fingerprint(again.weights) == fingerprint(lpips.weights)


def test_files_that_are_something_else(files, tmp_path):
    folder, states = files
    vgg, heads = folder / "vgg.safetensors", folder / "heads.safetensors"
    with pytest.raises(UserError, match=r"heads.safetensors is not VGG16: it has no features.0.weight, but lin0"):
        LPIPS.from_files(heads, heads)
    with pytest.raises(
        UserError, match=r"vgg.safetensors is not LPIPS' heads for VGG16: it has no lin0.model.1.weight"
    ):
        LPIPS.from_files(vgg, vgg)
    narrow = {**states["heads"], "lin1.model.1.weight": np.ones((1, 64, 1, 1), np.float32)}  # as AlexNet's are others
    write_safetensors(tmp_path / "narrow.safetensors", {key: Tensor.of(value) for key, value in narrow.items()})
    with pytest.raises(UserError, match=r"lin1.model.1.weight is \[1, 64, 1, 1\] instead of \[1, 128, 1, 1\]"):
        LPIPS.from_files(vgg, tmp_path / "narrow.safetensors")
    with pytest.raises(UserError, match=r"nothing.pth: no such file"):
        LPIPS.from_files(tmp_path / "nothing.pth", heads)
    (tmp_path / "text.pth").write_text("not a checkpoint")
    with pytest.raises(UserError, match=r"text.pth is no torch checkpoint"):
        LPIPS.from_files(tmp_path / "text.pth", heads)
    with pytest.raises(UserError, match=r"training.perceptual.vgg: kind lpips needs the file of torchvision's VGG16"):
        open_distance(PerceptualConfig())
    with pytest.raises(UserError, match=r"training.perceptual.heads: kind lpips needs the file of LPIPS' own weights"):
        open_distance(PerceptualConfig(vgg=str(vgg)))
    with pytest.raises(UserError, match=r"training.perceptual.kind: 'vgg' is none of lpips, clip"):
        PerceptualConfig(kind="vgg")


def test_lpips_wants_pictures_of_some_size(lpips):
    lpips.check_side(16)
    with pytest.raises(UserError, match="LPIPS sees images or crops of 16 pixels, not of 8"):
        lpips.check_side(8)


@pytest.fixture(scope="module")
def features(golden_bundle):
    return CLIPFeatures.from_pretrained(str(golden_bundle))


def test_clips_features_by_hand(features, golden_bundle):
    """For pictures that have the size already: every second layer and the embedding, token by token."""
    clip, rng = CLIP.from_pretrained(golden_bundle / "clip"), np.random.default_rng(0)
    config = json.loads((golden_bundle / "clip" / "preprocessor_config.json").read_text())
    side = clip.config.vision.image_size
    pictures = rng.random((2, 2, side, side, 3)).astype(np.float32)
    vision = clip.vision_model

    def tokens(images):
        states = vision.pre_layernorm(vision.embeddings((images - config["image_mean"]) / config["image_std"]))
        found = [states]
        for number, layer in enumerate(vision.encoder.layers):
            states = layer(states, None)
            found += [states] if number % 2 else []
        return [np.asarray(x[:, 1:]) / np.linalg.norm(x[:, 1:], axis=-1, keepdims=True) for x in found]

    depths = [((a - b) ** 2).sum(-1).mean(-1) for a, b in zip(*map(tokens, pictures), strict=True)]
    assert len(depths) >= 2
    np.testing.assert_allclose(features.distance(features.weights, *pictures), np.mean(depths, axis=0), rtol=1e-4)


def test_clips_distance_is_of_any_size_and_has_a_gradient(features):
    images = jnp.asarray(np.random.default_rng(0).random((2, 8, 8, 3)), jnp.float32)

    @jax.jit
    def found(pictures):
        return jax.value_and_grad(lambda p: features.distance(features.weights, p, images).sum())(pictures)

    near, far = (float(found(images + amount * jnp.sin(jnp.arange(8))[:, None])[0]) for amount in (0.02, 0.2))
    assert 0 < near < far
    same, gradient = found(images)
    assert float(same) == pytest.approx(0, abs=1e-6)
    assert np.isfinite(gradient).all()


def test_a_clip_that_does_not_tell_how_it_wants_pictures(golden_bundle, tmp_path):
    shutil.copytree(golden_bundle / "clip", tmp_path / "clip")
    (tmp_path / "clip" / "preprocessor_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"preprocessor_config.json: cannot read how CLIP prepares its images"):
        open_distance(PerceptualConfig("clip", clip=str(tmp_path / "clip")))
    with pytest.raises(UserError, match=r"no such folder"):
        open_distance(PerceptualConfig("clip", clip=str(tmp_path / "nothing")))

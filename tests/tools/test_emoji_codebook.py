"""tools/train/make_codebook.py and the decoder that train_vqgan.py trains behind it."""

import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dalle_mini.emoji.art import PALETTE
from dalle_mini.models import VQGAN, DalleBart
from dalle_mini.models.config import GROUND, DalleBartConfig, VQGANConfig
from dalle_mini.models.fingerprint import fingerprint
from dalle_mini.training.run.loop import run

TOOLS = Path(__file__).parents[2] / "tools" / "train"
ART = Path(__file__).parents[1] / "golden" / "art"
MODEL = VQGANConfig(
    ch_mult=(1, 1, 1, 1, 1), resolution=256, z_channels=16 + GROUND, embed_dim=16 + GROUND, n_embed=256, layered=True
)


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(TOOLS)
    return importlib.import_module


@pytest.fixture
def world(tool, tmp_path):
    """The file of a small world."""
    path = tmp_path / "world.json"
    tool("entry").World(0, ("noto", "flat"), str(ART)).save(path)
    return path


def test_k_means_finds_the_clusters_that_there_are(tool):
    rng = np.random.default_rng(1)
    centres = rng.standard_normal((16, 3)).astype(np.float32) * 10
    points = np.repeat(centres, 40, axis=0) + rng.standard_normal((640, 3)).astype(np.float32) * 0.01
    found, error = tool("make_codebook").k_means(points, np.ones(640, np.float32), 32, 10)
    assert error < 1e-3
    apart = np.linalg.norm(found[:, None] - centres, axis=-1)
    assert np.max(apart.min(axis=0)) < 0.05


def test_k_means_has_no_twins(tool):
    """Around the commonest point there are many that no eye can tell from it: they share its code."""
    rng = np.random.default_rng(2)
    crowd = 1e-3 * rng.standard_normal((40, 3))
    points = np.concatenate([crowd, rng.standard_normal((400, 3))]).astype(np.float32)
    counts = np.where(np.arange(440) < 40, 50, 1).astype(np.float32)
    apart = []
    for twins in (0.0, 1e-3):
        codes, _ = tool("make_codebook").k_means(points, counts, 64, 10, twins)
        distances = np.sum((codes[:, None].astype(np.float64) - codes) ** 2, axis=-1)
        apart.append(np.min(distances + 1e3 * np.eye(64)))
    assert apart[0] < 1e-5 and apart[1] > 1e-3


def test_grounds_are_those_that_are_seen_often(tool):
    """Nearly the same one is the same, and what the inside of a single thing looks like is none."""
    rng = np.random.default_rng(3)
    colors = np.array(list(PALETTE.values()), np.float32) / 255
    plain = np.concatenate([colors, np.zeros_like(colors)], axis=1)
    often = np.repeat(plain, 10_000, axis=0)
    nearly = often[::50] + rng.uniform(-0.4, 0.4, (len(often[::50]), 6)) / 255
    inside = np.full((2, 6), 0.4)
    found = tool("make_codebook").commonest(np.concatenate([often, nearly, inside]))
    assert len(found) == len(plain)
    np.testing.assert_allclose(found[np.lexsort(found.T)], plain[np.lexsort(plain.T)], atol=1 / 1024)


@pytest.mark.slow
def test_codes_copy_patches_and_only_the_decoder_learns(tool, world, tmp_path):
    entry, make_codebook, train_vqgan = tool("entry"), tool("make_codebook"), tool("train_vqgan")
    small = entry.World.load(world)
    make_codebook.make(tmp_path / "codebook", small, pictures=60, patches=3000, rounds=4, model=MODEL)
    start = VQGAN.from_pretrained(tmp_path / "codebook")
    start.save_pretrained(tmp_path / "half", dtype=jnp.float16)
    assert fingerprint(VQGAN.from_pretrained(tmp_path / "half")) == fingerprint(start)  # as a bundle has it
    for color in ("white", "blue"):
        plain = np.full((1, 256, 256, 3), PALETTE[color], np.uint8)
        tokens = np.asarray(start.encode(plain / 255.0))
        assert len(np.unique(tokens)) == 1
        np.testing.assert_allclose(255 * np.asarray(start.decode(tokens)), plain, atol=0.3)
    images, _ = entry.Pictures("train", 5, small).source().batch(range(8))
    latents = start.encode_latents(images / np.float32(255))
    codes = start.codebook(start.quantize(latents))
    is_thing = codes[..., -GROUND] == 0
    assert 0.1 < jnp.mean(is_thing) < 0.6
    assert jnp.mean((latents - codes)[is_thing] ** 2) < 0.3 * jnp.var(latents[is_thing][:, :-GROUND])
    assert np.mean((start.decode(start.encode(images / 255.0)) - images / 255.0) ** 2) < 0.01

    training = train_vqgan.DecoderTraining(model=MODEL)
    loop = train_vqgan.LoopConfig(steps=4, batch_size=2, eval_every=4)
    config = train_vqgan.Config(str(tmp_path / "codebook"), str(world), training, loop)
    run(train_vqgan.build(config), loop, tmp_path / "vqgan")
    end = VQGAN.from_pretrained(tmp_path / "vqgan" / "final")
    assert fingerprint(end) == fingerprint(start)  # its tokens are the same: they may be made before it is trained
    before, after = (jax.tree.leaves(nnx.state(one.decoder)) for one in (start, end))
    moved = [not np.array_equal(a, b) for a, b in zip(before, after, strict=True) if np.size(a) > 64]
    assert any(moved)


def test_tokens_that_look_alike_begin_alike(tool, tmp_path):
    make_start = tool("make_start")
    vqgan = VQGAN(MODEL, rngs=nnx.Rngs(0))
    codes = np.random.default_rng(0).standard_normal((MODEL.n_embed, MODEL.embed_dim)).astype(np.float32)
    codes[1] = codes[0] + 0.01
    vqgan.codebook.embedding[...] = jnp.asarray(codes)
    vqgan.save_pretrained(tmp_path / "codebook")
    sizes = {"d_model": 32, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "encoder_layers": 1, "decoder_layers": 1}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = DalleBartConfig(
        encoder_vocab_size=50, image_vocab_size=MODEL.n_embed, max_text_length=8, init_std=0.05, **sizes, **heads
    )
    make_start.make(tmp_path / "codebook", tmp_path / "start", config)
    model = DalleBart.from_pretrained(tmp_path / "start")
    random = DalleBart(config, rngs=nnx.Rngs(0))
    for tokens, before in (
        (model.decoder.embed_tokens.embedding[...], random.decoder.embed_tokens.embedding[...]),
        (model.lm_head.kernel[...].T, random.lm_head.kernel[...].T),
    ):
        assert tokens.shape == before.shape
        assert float(jnp.std(tokens)) == pytest.approx(float(jnp.std(before)), rel=0.15)
        np.testing.assert_array_equal(
            tokens[MODEL.n_embed :], before[MODEL.n_embed :]
        )  # the start token is no picture's
        unit = tokens / jnp.linalg.norm(tokens, axis=1, keepdims=True)
        near = np.array(unit @ unit.T)
        assert near[0, 1] > 0.6 and np.abs(near[0, 2:]).mean() < 0.35
    np.testing.assert_array_equal(model.encoder.embed_tokens.embedding[...], random.encoder.embed_tokens.embedding[...])

"""The VQGAN and CLIP over devices in batches of one shape, scores, and emoji through the same door."""

import dataclasses
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from dalle_mini.data.encode.encoders import Networks, Weights
from dalle_mini.data.encode.filters import Filters
from dalle_mini.data.encode.job import encode
from dalle_mini.data.tokens.shards import Manifest, read_table
from dalle_mini.emoji.art import Emoji, EmojiImages
from dalle_mini.emoji.source import UNFILTERED, EmojiSource
from dalle_mini.errors import UserError
from dalle_mini.generation.ranking import ClipRanker
from dalle_mini.models.fingerprint import fingerprint
from noise_dataset import FILTERS, SEEN, NoiseDataset, make_vqgan, options

CLIP = str(Path(__file__).parents[2] / "golden" / "clip")

# Four devices of a CPU, in a process of their own. They may hold more batches than the one reader has memory for.
FOUR = """
import sys
import jax
assert jax.local_device_count() == 4
from noise_dataset import NoiseDataset, options
from dalle_mini.data.encode import encode
from dalle_mini.data.encode.encoders import Weights
if __name__ == "__main__":
    encode(NoiseDataset(), Weights(sys.argv[1]), sys.argv[2], options(), workers=1)
"""


@pytest.fixture(scope="module")
def vqgan(tmp_path_factory) -> str:
    return make_vqgan(tmp_path_factory.mktemp("vqgan"))


def rows_of(folder):
    return [row for path in sorted(folder.glob("[tv]*.parquet")) for row in read_table(path).to_pylist()]


@pytest.mark.slow
def test_several_devices_take_turns_and_write_the_same(vqgan, tmp_path):
    encode(NoiseDataset(), Weights(vqgan), str(tmp_path / "one"), options(), workers=0)
    path = os.pathsep.join(entry for entry in sys.path if entry)
    flags = "--xla_force_host_platform_device_count=4"
    environ = {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    subprocess.run([sys.executable, "-c", FOUR, vqgan, str(tmp_path / "four")], env=environ, check=True)
    assert {p.name: p.read_bytes() for p in (tmp_path / "one").iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "four").iterdir()
    }


def test_fewer_pictures_are_padded_and_tokens_are_the_vqgans(vqgan):
    model, _ = Weights(vqgan).load(with_clip=False)
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    tokens, scores = Networks(model, None, 5, jax.local_devices()[:1]).start(images, ["a", "b", "c"])()
    assert scores is None and tokens.shape == (3, 16)
    np.testing.assert_array_equal(tokens, model.encode(images.astype(np.float32) / 255))


def test_identity_is_of_all_that_makes_tokens(vqgan):
    """A cosine search of the same weights is another VQGAN; a nearest one keeps the identity that shards have."""
    model, _ = Weights(vqgan).load(with_clip=False)
    assert model.config.quantizer == "nearest"
    parts = (model.encoder, model.quant_conv, model.codebook)
    digest = hashlib.sha256()
    for part in parts:
        for leaf in jax.tree.leaves(nnx.state(part)):
            digest.update(np.ascontiguousarray(leaf, np.float32).tobytes())
    assert fingerprint(model) == digest.hexdigest()[:16]
    before = fingerprint(model)
    model.config = dataclasses.replace(model.config, quantizer="cosine")
    assert fingerprint(model) != before


def test_a_score_is_clips_cosine_of_picture_and_first_caption(vqgan, tmp_path):
    ranker = ClipRanker.from_pretrained(CLIP)
    manifest = encode(
        NoiseDataset(), Weights(vqgan, CLIP), str(tmp_path), options(clip_scores=True, crops="random:2"), workers=0
    ).manifest
    assert manifest.clip["source"] == CLIP and len(manifest.clip["identity"]) == 16
    scale = float(np.exp(ranker.clip.logit_scale[...]))
    from dalle_mini.data.encode.crops import random_crop
    from dalle_mini.imaging.decoding import decode_image
    from noise_dataset import image as image_of

    for row in rows_of(tmp_path)[:6]:
        image = decode_image(image_of(int(row["key"].removeprefix("noise-"))))
        crop = random_crop(image, 8, 0, row["key"], row["crop"])
        (logit,) = ranker.scores(crop[None], row["caption"])
        assert row["clip_score"] == pytest.approx(logit / scale, abs=1e-5)


def test_a_range_of_scores_drops_crops_and_pictures(vqgan, tmp_path):
    weights = Weights(vqgan, CLIP)
    encode(NoiseDataset(), weights, str(tmp_path / "all"), options(clip_scores=True, crops="random:2"), workers=0)
    scored = rows_of(tmp_path / "all")
    least = float(np.median([row["clip_score"] for row in scored]))
    filters = Filters(min_side=None, duplicates="near", min_clip_score=least)
    chosen = options(filters=filters, clip_scores=True, crops="random:2")
    manifest = encode(NoiseDataset(), weights, str(tmp_path / "some"), chosen, workers=0).manifest
    kept = [(row["key"], row["crop"]) for row in scored if row["clip_score"] >= least]
    assert [(row["key"], row["crop"]) for row in rows_of(tmp_path / "some")] == kept
    pictures = {key for key, _ in kept}
    assert 0 < len(pictures) < len({row["key"] for row in scored})
    assert manifest.kept == len(pictures) and manifest.rows == len(kept)
    assert manifest.seen == SEEN == manifest.kept + sum(manifest.dropped.values())
    # Crops that go while their picture stays; pictures that would have been duplicates may go by their score now.
    assert manifest.crops_dropped >= 2 * len(pictures) - len(kept)
    dropped = read_table(tmp_path / "some" / "dropped.parquet").to_pylist()
    gone = [row for row in dropped if row["reason"] == "CLIP score out of range"]
    assert len(gone) == manifest.dropped["CLIP score out of range"]
    assert all(float(row["detail"]) < least + 1e-4 for row in gone)


def test_another_clip_is_another_run(vqgan, tmp_path):
    encode(NoiseDataset(), Weights(vqgan, CLIP), str(tmp_path), options(clip_scores=True), workers=0)
    with pytest.raises(UserError, match=r"is of another run \(.*clip is .* there and null now"):
        encode(NoiseDataset(), Weights(vqgan), str(tmp_path), options(), workers=0)


def test_emoji_are_encoded_as_every_other_dataset(tmp_path):
    pictures = EmojiImages(128, seed=3, length=50, emoji=[Emoji("🐌", "snail"), Emoji("🍎", "red apple")])
    source = EmojiSource(pictures, 20, {"split": "train", "seed": 3})
    assert [part.size for part in source.parts()] == [20]
    manifest = encode(
        source, Weights(), str(tmp_path), options(filters=UNFILTERED, validation=0.0, batch_size=8), workers=0
    ).manifest
    assert manifest.rows == manifest.seen == 20 and manifest.dropped == {}
    assert manifest.source == {"kind": "emoji", "rows": 20, "split": "train", "seed": 3}
    rows = rows_of(tmp_path)
    images, captions = pictures.batch(range(20))
    assert [row["key"] for row in rows] == [f"emoji-{n:07d}" for n in range(20)]
    assert [row["caption"] for row in rows] == captions
    model, _ = Weights().load(with_clip=False)
    same = np.array([row["tokens"] for row in rows]) == np.asarray(model.encode(images.astype(np.float32) / 255))
    assert same.mean() > 0.999  # another batch size may round a close call otherwise
    assert Manifest.read(tmp_path).vqgan.resolution == 128


def test_more_emoji_than_there_are():
    pictures = EmojiImages(64, length=5, emoji=[Emoji("🐌", "snail")])
    for rows in (0, 6):
        with pytest.raises(UserError, match=rf"rows {rows}: from 1 to 5 emoji images"):
            EmojiSource(pictures, rows)


def test_the_datasets_filters_are_not_the_defaults():
    assert Filters() != FILTERS

"""The codebook's life, crops, and that a tiny VQGAN learns."""

import dataclasses

import numpy as np
import pytest
from flax import nnx

from dalle_mini import models
from dalle_mini.errors import UserError
from tiny_runs import VQGAN, Pictures, make, short_loop, train

STEPS = 60


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    return make("vqgan", tmp_path_factory.mktemp("vqgan"), short_loop(steps=STEPS, batch_size=8))


@pytest.fixture(scope="module")
def trained(trainer):
    """(program, the state after training, the metrics of each step)."""
    return train(trainer, short_loop(steps=STEPS, batch_size=8))


def test_it_learns(trained):
    _, _, metrics = trained
    assert metrics["loss"][-5:].mean() < 0.3 * metrics["loss"][:5].mean()
    assert metrics["psnr"][-5:].mean() > metrics["psnr"][:5].mean() + 5
    assert np.isfinite(metrics["loss"]).all()


def test_the_codebook_is_used(trainer, trained):
    program, state, metrics = trained
    assert trainer.evaluate(program, state, 8)["codebook_use"] > 0.5
    assert metrics["perplexity"][-1] > 8  # of 16


def test_evaluation_sees_every_picture_once(trainer, trained):
    """PSNR is the mean over pictures, for sources that do not fill a batch too."""
    program, state, _ = trained
    images = Pictures().batch(range(8))[0].astype(np.float32) / 255
    vqgan = nnx.merge(trainer.graphdef, state.params)
    tokens = vqgan.encode(images)
    psnr = -10 * np.log10(np.mean((np.clip(vqgan.decode(tokens), 0, 1) - images) ** 2, axis=(1, 2, 3)))
    measured = trainer.evaluate(program, state, 8)
    assert measured["psnr"] == pytest.approx(psnr.mean(), rel=1e-4)
    assert measured["codebook_use"] == len(np.unique(tokens)) / 16


def test_export(trainer, trained, tmp_path):
    _, state, _ = trained
    trainer.export(state, tmp_path)
    vqgan = models.VQGAN.from_pretrained(tmp_path)
    np.testing.assert_array_equal(vqgan.codebook.embedding[...], state.params["codebook"]["embedding"])


class Coordinates:
    """Pictures whose pixels say where they lie: (row, column, picture)."""

    def __len__(self):
        return 8

    def batch(self, indices):
        rows, columns = np.mgrid[:8, :8]
        images = [np.stack([rows, columns, np.full((8, 8), i)], axis=-1) for i in indices]
        return np.array(images, np.uint8), [""] * len(images)


def test_crops_lie_on_the_token_grid(tmp_path):
    config = dataclasses.replace(VQGAN, crop=4)
    trainer = make("vqgan", tmp_path, short_loop(batch_size=32), config, train=Coordinates())
    corners = set()
    for step in range(3):
        images = trainer.batch(step)["images"]
        assert images.shape == (32, 4, 4, 3)
        for image in images:
            y, x, _ = map(int, image[0, 0])
            np.testing.assert_array_equal(image[..., 0], np.arange(y, y + 4)[:, None].repeat(4, axis=1))
            np.testing.assert_array_equal(image[..., 1], np.arange(x, x + 4)[None].repeat(4, axis=0))
            corners.add((y, x))
    assert corners == {(y, x) for y in (0, 2, 4) for x in (0, 2, 4)}  # a token is 2 pixels wide
    whole = make("vqgan", tmp_path, short_loop(), VQGAN, train=Coordinates())
    assert whole.batch(0)["images"].shape == (4, 8, 8, 3)


@pytest.mark.parametrize(
    ("crop", "message"),
    [
        (16, "training.crop 16: images of 8 pixels have no such crop"),
        (0, "training.crop 0: images of 8"),
        (3, "training.crop 3 is not a multiple of the 2 pixels of a token"),
    ],
)
def test_crops_that_do_not_fit(tmp_path, crop, message):
    with pytest.raises(UserError, match=message):
        make("vqgan", tmp_path, short_loop(), dataclasses.replace(VQGAN, crop=crop))


def test_a_gumbel_vqgan_is_not_trained(tmp_path):
    model = dataclasses.replace(VQGAN.model, quantizer="gumbel")
    with pytest.raises(UserError, match="training a gumbel VQGAN is not supported"):
        make("vqgan", tmp_path, short_loop(), dataclasses.replace(VQGAN, model=model))

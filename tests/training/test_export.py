"""Checkpoints of each trainer as folders that models are loaded from."""

import jax
import numpy as np
import pytest
from flax import nnx

from dalle_mini import models
from dalle_mini.conversion.convert import convert
from dalle_mini.errors import UserError
from dalle_mini.training.run.checkpoint_folder import restore_parameters
from dalle_mini.training.run.loop import run
from tiny_runs import NAMES, WITH_MEAN, Bare, make, short_loop

NETWORKS = dict(zip(NAMES, (models.DalleBart, models.VQGAN, models.CLIP), strict=True))


@pytest.mark.parametrize("name", ["seq2seq", "clip", pytest.param("vqgan", marks=pytest.mark.slow)])
def test_the_mean_of_a_step_is_written(name, tmp_path):
    loop, out = short_loop(steps=2, keep=2), tmp_path / "run"
    state = run(Bare(make(name, out, loop, WITH_MEAN[name])), loop, out)
    for source, target in (("checkpoints/2", "last"), (".", "newest"), ("checkpoints/1", "first")):
        convert(out / source, tmp_path / target)
    found = {
        place: nnx.to_pure_dict(nnx.state(NETWORKS[name].from_pretrained(tmp_path / place)))
        for place in ("last", "newest")
    }
    for one in found.values():
        mean = {part: value for part, value in state.ema.items() if part in one}
        jax.tree.map(np.testing.assert_array_equal, one, jax.device_get(mean))
    first = NETWORKS[name].from_pretrained(tmp_path / "first")
    moved = jax.tree.map(lambda a, b: float(abs(a - b).max()), nnx.to_pure_dict(nnx.state(first)), found["last"])
    assert max(jax.tree.leaves(moved)) > 0
    assert (tmp_path / "first" / "tokenizer.json").exists() == (name != "vqgan")
    assert (tmp_path / "first" / "preprocessor_config.json").exists() == (name == "clip")
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), found["last"])
    jax.tree.map(np.testing.assert_array_equal, restore_parameters(out, like), found["last"])


def test_what_is_no_checkpoint(tmp_path):
    (tmp_path / "run" / "checkpoints" / "3" / "record").mkdir(parents=True)
    with pytest.raises(UserError, match="no checkpoint there has a record that tells what network it is of"):
        convert(tmp_path / "run", tmp_path / "model")
    assert not (tmp_path / "model").exists()

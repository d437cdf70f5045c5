"""CLIP against the states, embeddings and logits of transformers' FlaxCLIPModel (tests/golden/clip)."""

import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dalle_mini.errors import UserError
from dalle_mini.models.clip import CLIP
from dalle_mini.models.config import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from dalle_mini.models.layers import ACTIVATIONS

GOLDEN = Path(__file__).parents[1] / "golden" / "clip"
TINY = CLIPConfig(
    CLIPTextConfig(50, 16, 32, 2, 2, max_position_embeddings=12),
    CLIPVisionConfig(16, 32, 2, 2, image_size=16, patch_size=8),
    projection_dim=8,
)


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(GOLDEN / "golden.npz"))


@pytest.fixture(scope="module")
def clip():
    return CLIP.from_pretrained(GOLDEN)


@pytest.fixture(scope="module")
def tiny():
    return CLIP(TINY, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def pixels(golden):
    return golden["pixel_values"].transpose(0, 2, 3, 1)  # published NCHW -> NHWC


def close(actual, expected, tolerance=1e-4):
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


def test_image_states_and_embeds(clip, golden, pixels):
    states, pooled = clip.image_states(pixels)
    close(states, golden["vision_last_hidden_state"])
    close(pooled, golden["vision_pooler_output"])
    close(clip.visual_projection(pooled), golden["image_features"])
    close(clip.image_embeds(pixels), golden["image_embeds"])


def test_text_states_and_embeds(clip, golden):
    ids, mask = golden["input_ids"], golden["attention_mask"]
    states, pooled = clip.text_states(ids, mask)
    close(states, golden["text_last_hidden_state"])
    close(pooled, golden["text_pooler_output"])
    close(clip.text_projection(pooled), golden["text_features"])
    close(clip.text_embeds(ids, mask), golden["text_embeds"])


def test_similarity_is_logits_per_image(clip, golden, pixels):
    ids = golden["input_ids"]
    close(clip.similarity(pixels, ids, golden["attention_mask"]), golden["logits_per_image"])
    close(clip.similarity(pixels, ids), golden["logits_per_image_nomask"])


def test_text_behind_the_end_has_no_effect(clip, golden):
    ids = golden["input_ids"].copy()
    expected = clip.text_embeds(ids, golden["attention_mask"])
    end = ids[2].argmax()
    ids[2, end + 1 :] = 3
    close(clip.text_embeds(ids, golden["attention_mask"]), expected, 1e-6)


@pytest.mark.parametrize(
    ("end", "positions"),
    [
        (49, [3, 1]),  # the first of several
        (48, [2, 0]),  # other ids may be higher; where there is none, the first position, as in transformers
        (2, [3, 1]),  # of the first published configs: the highest id
        (None, [3, 1]),
    ],
)
def test_where_a_text_ends(end, positions):
    config = dataclasses.replace(TINY, text=dataclasses.replace(TINY.text, eos_token_id=end))
    clip = CLIP(config, rngs=nnx.Rngs(0))
    states, pooled = clip.text_states(np.array([[5, 7, 48, 49, 49, 3], [6, 49, 8, 2, 49, 9]]), None)
    np.testing.assert_array_equal(pooled, states[np.arange(2), np.array(positions)])


def test_bfloat16_compute_stays_close_and_returns_float32(golden, pixels):
    clip = CLIP.from_pretrained(GOLDEN, dtype=jnp.bfloat16)
    assert clip.image_states(pixels)[0].dtype == jnp.bfloat16
    assert clip.text_states(golden["input_ids"], None)[0].dtype == jnp.bfloat16
    close(clip.similarity(pixels, golden["input_ids"], golden["attention_mask"]), golden["logits_per_image"], 0.2)


def test_the_full_size_model_has_the_published_parameters():
    published = json.loads((GOLDEN.parent / "shapes" / "clip_vit_b32.json").read_text())
    published = {
        name.replace("/", ".").replace("pre_layrnorm", "pre_layernorm"): tuple(shape)
        for name, shape in published.items()
    }
    model = nnx.eval_shape(lambda: CLIP(CLIPConfig(), rngs=nnx.Rngs(0)))
    ours = {".".join(map(str, path)): leaf.shape for path, leaf in nnx.to_flat_state(nnx.state(model))}
    assert ours == published


def test_initialisation_gives_unit_vectors_and_moderate_logits(tiny):
    pixels = np.random.default_rng(0).normal(size=(3, 16, 16, 3)).astype(np.float32)
    ids = np.array([[48, 3, 49, 49], [48, 49, 49, 49]])
    for embeds in (tiny.image_embeds(pixels), tiny.text_embeds(ids)):
        close(jnp.linalg.norm(embeds, axis=-1), 1.0, 1e-5)
    assert np.abs(tiny.similarity(pixels, ids)).max() <= np.exp(TINY.logit_scale_init_value) + 1e-4


def test_activations():
    x = jnp.array([-1.0, 0.0, 1.0, 2.0])
    np.testing.assert_allclose(ACTIVATIONS["quick_gelu"](x), [-0.154204, 0.0, 0.845796, 1.935659], atol=1e-5)
    np.testing.assert_allclose(ACTIVATIONS["gelu"](x), [-0.158655, 0.0, 0.841345, 1.954500], atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"num_attention_heads": 3}, "num_attention_heads 3"), ({"hidden_act": "swish9"}, "activation 'swish9'")],
)
def test_configs_that_cannot_be_built_are_refused(change, message):
    config = dataclasses.replace(TINY, vision=dataclasses.replace(TINY.vision, **change))
    with pytest.raises(UserError, match=message):
        CLIP(config, rngs=nnx.Rngs(0))


def test_wrong_shapes_are_refused(tiny):
    with pytest.raises(ValueError, match="at most 12 text tokens"):
        tiny.text_embeds(np.zeros((1, 13), np.int32))
    with pytest.raises(ValueError, match="16, 16, 3"):
        tiny.image_embeds(np.zeros((1, 24, 24, 3), np.float32))


def test_a_bias_is_saved_and_added(tmp_path):
    """A CLIP that the sigmoid loss trained has a bias; the published ones have none, in file and config."""
    config = dataclasses.replace(TINY, logit_bias_init_value=-10.0)
    made = CLIP(config, rngs=nnx.Rngs(0))
    made.logit_bias[...] = jnp.float32(-7.5)
    made.save_pretrained(tmp_path)
    again = CLIP.from_pretrained(tmp_path)
    assert again.config == config and json.loads((tmp_path / "config.json").read_text())["logit_bias_init_value"] == -10
    vectors = np.eye(3, 8, dtype=np.float32)
    wanted = np.exp(TINY.logit_scale_init_value) * np.eye(3) - 7.5
    np.testing.assert_allclose(again.logits(vectors, vectors), wanted, rtol=1e-5)
    assert "logit_bias_init_value" not in TINY.to_dict()
    assert "logit_bias" not in nnx.state(CLIP(TINY, rngs=nnx.Rngs(0)))
    with pytest.raises(UserError, match="logit_bias_init_value must be a number or null"):
        CLIPConfig.from_dict({**config.to_dict(), "logit_bias_init_value": "low"})

"""A decoder for another codebook; BART's encoder under a fresh decoder."""

import json
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from dalle_mini.errors import UserError
from dalle_mini.models import DalleBart
from dalle_mini.weights.folder import load_tensors, save_tensors

GOLDEN = Path(__file__).parents[1] / "golden"
SCANNED, MEGALIKE = GOLDEN / "dallebart/a_normformer_glu_scan", GOLDEN / "dallebart/e_megalike_fp16_scan"
BART_OF_2021 = GOLDEN / "v0_bart_2021"


def table(model):
    return np.asarray(model.decoder.embed_tokens.embedding[...])


def head(model):
    return np.asarray(model.lm_head.kernel[...])


@pytest.mark.parametrize("size", [40, 64, 100])
@pytest.mark.parametrize("folder", [SCANNED, MEGALIKE, BART_OF_2021], ids=lambda folder: folder.name)
def test_another_codebook(folder, size):
    old = DalleBart.from_pretrained(folder)
    new = old.with_image_vocab(size, rngs=nnx.Rngs(0))
    start, kept = old.config.decoder_start_token_id, min(size, 64)
    assert new.config.image_vocab_size == new.config.decoder_start_token_id == size
    assert table(new).shape == (size + 1, old.config.d_model)
    np.testing.assert_array_equal(table(new)[:kept], table(old)[:kept])
    np.testing.assert_array_equal(table(new)[size], table(old)[start])
    np.testing.assert_array_equal(head(new)[:, :kept], head(old)[:, :kept])
    if size > 64:
        fresh = table(new)[64:size]
        assert 0.5 * old.config.init_std < fresh.std() < 2 * old.config.init_std
    golden = np.load(folder / "golden.npz")
    ids, mask = golden["input_ids"], golden["attention_mask"]
    tokens = np.full((len(ids), 5), 3)
    tokens[:, 0] = start
    expected = old(ids, mask, tokens)[..., :kept]
    tokens[:, 0] = size
    np.testing.assert_allclose(new(ids, mask, tokens)[..., :kept], expected, atol=1e-5)


def bart_folder(folder, layout):
    """BART itself: the golden 2021 model without its own decoder table, in Flax's or torch's names."""
    config = json.loads((BART_OF_2021 / "config.json").read_text())
    names = {name: tensor.read() for name, tensor in load_tensors(BART_OF_2021).items()}
    drop = ("decoder_embed", "lm_head", "final_logits_bias")
    names = {name: array for name, array in names.items() if not any(part in name for part in drop)}
    if layout == "torch":
        torch = {}
        for name, array in names.items():
            name = name.replace("/", ".")
            if name.endswith(".kernel"):
                torch[name.replace(".kernel", ".weight")] = array.T
            else:
                torch[name.replace(".embedding", ".weight").replace(".scale", ".weight")] = array
        names = torch
    save_tensors(folder, config, names)
    return folder


@pytest.mark.parametrize("layout", ["flax", "torch"])
def test_the_encoder_is_barts(layout, tmp_path):
    folder = bart_folder(tmp_path / "bart", layout)
    sizes = {"image_vocab_size": 50, "image_length": 9, "decoder_layers": 3}
    model = DalleBart.from_bart(folder, rngs=nnx.Rngs(0), **sizes)
    golden = np.load(BART_OF_2021 / "golden.npz")
    ids, mask = golden["input_ids"], golden["attention_mask"]
    np.testing.assert_allclose(model.encode(ids, mask), golden["encoder_last_hidden_state"], atol=1e-4)
    assert model.config.decoder_start_token_id == 50
    logits = model(ids, mask, np.full((len(ids), 9), 50))
    assert logits.shape == (len(ids), 9, 51) and np.isfinite(logits).all()
    model.save_pretrained(tmp_path / "ours")
    np.testing.assert_array_equal(
        DalleBart.from_pretrained(tmp_path / "ours").encode(ids, mask), model.encode(ids, mask)
    )


def test_a_shorter_text(tmp_path):
    folder = bart_folder(tmp_path / "bart", "flax")
    model = DalleBart.from_bart(folder, rngs=nnx.Rngs(0), max_text_length=12)
    golden = np.load(BART_OF_2021 / "golden.npz")
    ids, mask = golden["input_ids"][:, :12], golden["attention_mask"][:, :12]
    expected = DalleBart.from_pretrained(BART_OF_2021).encode(ids, mask)
    np.testing.assert_array_equal(model.encode(ids, mask), expected)


def test_what_does_not_fit(tmp_path):
    folder = bart_folder(tmp_path / "bart", "flax")
    with pytest.raises(UserError, match=r"this is BART itself, whose decoder writes words: .* DalleBart.from_bart"):
        DalleBart.from_pretrained(folder)
    with pytest.raises(UserError, match="no setting image_vocabulary"):
        DalleBart.from_bart(folder, rngs=nnx.Rngs(0), image_vocabulary=50)
    with pytest.raises(UserError, match=r"does not fit the encoder of DalleBart: .* missing: "):
        DalleBart.from_bart(folder, rngs=nnx.Rngs(0), ln_positions="normformer")
    with pytest.raises(UserError, match="model_type='dallebart', not bart"):
        DalleBart.from_bart(SCANNED, rngs=nnx.Rngs(0))

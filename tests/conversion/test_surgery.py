"""A decoder for another codebook; BART's encoder under a fresh decoder."""

import json
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from dalle_mini.errors import UserError
from dalle_mini.models import DalleBart
from dalle_mini.weights.folder import load_tensors, save_tensors
from dalle_mini.weights.pretrained import flatten

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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_parameter_has_the_type(dtype, tmp_path):
    folder = bart_folder(tmp_path / "bart", "flax")
    model = DalleBart.from_bart(folder, rngs=nnx.Rngs(0), dtype=dtype)
    assert {str(array.dtype) for array in flatten(nnx.state(model)).values()} == {dtype}
    with pytest.raises(UserError, match="dtype 'int8' is none of float32, bfloat16, float16"):
        DalleBart.from_bart(tmp_path / "nowhere", rngs=nnx.Rngs(0), dtype="int8")  # before anything is fetched


def test_special_tokens_are_behind_the_image_tokens(tmp_path):
    folder = bart_folder(tmp_path / "bart", "flax")
    names = ("decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id")
    config = DalleBart.from_bart(folder, rngs=nnx.Rngs(0), image_vocab_size=50).config
    assert {getattr(config, name) for name in names} == {50}
    config = DalleBart.from_bart(folder, rngs=nnx.Rngs(0), image_vocab_size=50, decoder_start_token_id=7).config
    assert [getattr(config, name) for name in names] == [7, 50, 50, 50]
    for outside in (51, -1):
        with pytest.raises(UserError, match=f"decoder_start_token_id {outside} is beyond image_vocab_size 50"):
            DalleBart.from_bart(folder, rngs=nnx.Rngs(0), image_vocab_size=50, decoder_start_token_id=outside)


@pytest.mark.parametrize("layout", ["flax", "torch", "torch without prefix", "torch without shared"])
def test_bart_itself_is_no_dalle_bart(layout, tmp_path):
    folder = bart_folder(tmp_path / "bart", layout.split()[0])
    if " " in layout:
        arrays = {name: tensor.read() for name, tensor in load_tensors(folder).items()}
        names = {name: name.removeprefix("model.") for name in arrays}
        if layout.endswith("shared"):
            names = {name: name.replace("shared", "encoder.embed_tokens") for name in arrays}
        save_tensors(folder, json.loads((folder / "config.json").read_text()), {names[n]: a for n, a in arrays.items()})
    with pytest.raises(UserError, match=r"this is BART itself, whose decoder writes words: .* DalleBart.from_bart"):
        DalleBart.from_pretrained(folder)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_the_encoder_says_what_transformers_says(seed, tmp_path):
    torch = pytest.importorskip("torch", reason="needs the extra `oracle`")
    transformers = pytest.importorskip("transformers", reason="needs the extra `oracle`")
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    heads, words, length = (int(rng.integers(*span)) for span in ((1, 5), (20, 60), (6, 20)))
    config = transformers.BartConfig(
        vocab_size=words, d_model=4 * heads * int(rng.integers(1, 4)), max_position_embeddings=length, decoder_layers=1,
        encoder_layers=int(rng.integers(1, 4)), encoder_attention_heads=heads, decoder_attention_heads=heads,
        encoder_ffn_dim=int(rng.integers(8, 40)), decoder_ffn_dim=8, scale_embedding=bool(seed % 2),
        activation_function=("gelu", "relu")[seed // 2], init_std=0.3,
    )  # fmt: skip
    theirs = transformers.BartModel(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():  # norms and biases start as ones and zeros, which would hide mistakes
            parameter.add_(0.1 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path)
    ids = rng.integers(0, words, (3, length))
    mask = (np.arange(length) < np.array([[length], [length // 2], [1]])).astype(int)
    with torch.no_grad():
        wanted = theirs.encoder(torch.from_numpy(ids), torch.from_numpy(mask)).last_hidden_state.numpy()
    sizes = {"image_vocab_size": 9, "image_length": 4}
    ours = DalleBart.from_bart(tmp_path, rngs=nnx.Rngs(0), **sizes).encode(ids, mask)
    np.testing.assert_allclose(np.asarray(ours)[mask == 1], wanted[mask == 1], rtol=0, atol=1e-4)


def test_what_does_not_fit(tmp_path):
    folder = bart_folder(tmp_path / "bart", "flax")
    with pytest.raises(UserError, match="no setting image_vocabulary"):
        DalleBart.from_bart(folder, rngs=nnx.Rngs(0), image_vocabulary=50)
    with pytest.raises(UserError, match=r"does not fit the encoder of DalleBart: .* missing: "):
        DalleBart.from_bart(folder, rngs=nnx.Rngs(0), ln_positions="normformer")
    with pytest.raises(UserError, match="model_type='dallebart', not bart"):
        DalleBart.from_bart(SCANNED, rngs=nnx.Rngs(0))

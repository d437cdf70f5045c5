"""Published names -> ours."""

import contextlib
import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

from dalle_mini.conversion.convert import NETWORKS, part_of
from dalle_mini.errors import UserError
from dalle_mini.models import DalleBart
from dalle_mini.models.config import DalleBartConfig
from dalle_mini.weights.folder import load_config, load_tensors, save_tensors
from dalle_mini.weights.formats.tensors import Tensor
from dalle_mini.weights.key_mapping import clip, dalle_bart, vqgan

GOLDEN = Path(__file__).parents[1] / "golden"
SCANNED, UNROLLED = GOLDEN / "dallebart/a_normformer_glu_scan", GOLDEN / "dallebart/b_normformer_glu_unrolled"

ATTENTION = [f"{p}_proj.kernel" for p in ("q", "k", "v", "out")]
SELF = ["self_attn_norm.bias", "self_attn_post_norm.scale", "self_attn_post_norm.bias"]
SELF += [f"self_attn.{leaf}" for leaf in ATTENTION]
CROSS = [name.replace("self_", "cross_") for name in SELF]
FFN = ["ffn.norm.bias", "ffn.gate.kernel", "ffn.linear.kernel", "ffn.mid_norm.bias", "ffn.out.kernel"]
AROUND = ["embed_tokens.embedding", "embed_positions.embedding", "final_ln.bias"]
AROUND += ["layernorm_embedding.scale", "layernorm_embedding.bias"]
DALLE_BART = {
    "lm_head.kernel",
    *(f"{stack}.{name}" for stack in ("encoder", "decoder") for name in AROUND),
    *(f"encoder.layers.{name}" for name in SELF + FFN),
    *(f"decoder.layers.{name}" for name in SELF + CROSS + FFN),
}


def config(folder=SCANNED):
    return DalleBartConfig.from_dict(load_config(folder))


def same(found, wanted):
    assert set(found) == set(wanted)
    for name in wanted:
        np.testing.assert_array_equal(found[name].read(), wanted[name].read())


def test_scanned_and_unrolled_files_hold_the_same_model():
    scanned = dalle_bart(load_tensors(SCANNED), config())
    assert set(scanned) == DALLE_BART
    assert scanned["decoder.layers.ffn.gate.kernel"].shape == (3, 32, 56)
    same(dalle_bart(load_tensors(UNROLLED), config()), scanned)


def test_modules_are_told_apart():
    file = load_tensors(SCANNED)
    ours = dalle_bart(file, config())
    layer = "model/decoder/layers/FlaxBartDecoderLayers/"
    for name, published in {
        "ffn.gate.kernel": "GLU_0/Dense_0/kernel",
        "ffn.linear.kernel": "GLU_0/Dense_1/kernel",
        "ffn.out.kernel": "GLU_0/Dense_2/kernel",
        "ffn.norm.bias": "GLU_0/LayerNorm_0/bias",
        "ffn.mid_norm.bias": "GLU_0/LayerNorm_1/bias",
        "self_attn_norm.bias": "LayerNorm_0/bias",
        "self_attn_post_norm.scale": "LayerNorm_1/scale",
        "cross_attn_norm.bias": "LayerNorm_2/bias",
        "cross_attn_post_norm.bias": "LayerNorm_3/bias",
        "self_attn.q_proj.kernel": "FlaxBartAttention_0/q_proj/kernel",
        "cross_attn.q_proj.kernel": "FlaxBartAttention_1/q_proj/kernel",
    }.items():
        np.testing.assert_array_equal(ours[f"decoder.layers.{name}"].read(), file[layer + published].read())


@pytest.mark.parametrize("folder", [SCANNED, UNROLLED])
def test_prefixes_and_separators_do_not_matter(folder):
    file = load_tensors(folder)
    wanted = dalle_bart(file, config())
    bare = {name.removeprefix("model/"): array for name, array in file.items()}
    same(dalle_bart(bare, config()), wanted)
    same(dalle_bart({f"params/{name}": array for name, array in file.items()}, config()), wanted)
    same(dalle_bart({name.replace("/", "."): array for name, array in file.items()}, config()), wanted)
    same(dalle_bart(wanted, config()), wanted)  # ours passes through


def test_the_decoder_block_that_was_misnamed_in_april_2022():
    file = {name.replace("DecoderLayers", "EncoderLayers"): array for name, array in load_tensors(SCANNED).items()}
    same(dalle_bart(file, config()), dalle_bart(load_tensors(SCANNED), config()))


def test_unknown_tensors_keep_their_names():
    file = dict(load_tensors(SCANNED)) | {
        "model/decoder/layers/FlaxBartDecoderLayers/GLU_7/bias": Tensor.of(np.ones(3))
    }
    assert set(dalle_bart(file, config())) - DALLE_BART == {"decoder.layers.FlaxBartDecoderLayers.GLU_7.bias"}


def test_two_names_for_one_tensor():
    with pytest.raises(UserError, match=r"model/a and a are the same"):
        dalle_bart(dict.fromkeys(("model/a", "a"), Tensor.of(np.ones(1))), config())


def test_broken_unrolled_layers():
    file = dict(load_tensors(UNROLLED))
    name = "model/decoder/layers/FlaxBartDecoderLayer_1/GLU_0/Dense_0/kernel"
    array = file.pop(name)
    with pytest.raises(UserError, match=f"missing: {name}$"):
        dalle_bart(file, config())
    with pytest.raises(UserError, match=rf"differ in shape: .*Layer_0.* \[32, 56\], but {name} \[31, 56\]$"):
        dalle_bart(file | {name: array.slice_rows(1)}, config())
    shallow = dataclasses.replace(config(), encoder_layers=1)
    with pytest.raises(UserError, match=r"more layers than the 1 of config.json: .*FlaxBartEncoderLayer_1/"):
        dalle_bart(file | {name: array}, shallow)


def test_vqgan_names():
    ours = vqgan(load_tensors(GOLDEN / "vqgan/tiny_f4_64"), None)
    assert {
        "encoder.down.0.block.0.nin_shortcut.kernel",
        "encoder.down.1.downsample.conv.bias",
        "encoder.mid.block_1.norm1.scale",
        "decoder.mid.attn_1.proj_out.kernel",
        "decoder.up.2.upsample.conv.kernel",
        "decoder.up.0.block.1.conv2.bias",
        "codebook.embedding",
        "quant_conv.kernel",
        "post_quant_conv.bias",
    } <= set(ours)
    assert not any(part in name for name in ours for part in ("down_", "up_", "block_0", "attn_0", "quantize"))
    same(vqgan(ours, None), ours)


def test_vqgan_norms_of_2021():
    file = load_tensors(GOLDEN / "vqgan/tiny_f4_64")
    norms = {name for name in file if re.search(r"norm(1|2|_out)?/(scale|bias)$", name)}
    assert len(norms) > 20
    old = {name: file[name].reshape(1, 1, 1, *file[name].shape) if name in norms else file[name] for name in file}
    same(vqgan(old, None), vqgan(file, None))
    kernel = np.ones((1, 1, 1, 6), np.float32)
    assert vqgan({"post_quant_conv/kernel": kernel}, None)["post_quant_conv.kernel"].shape == kernel.shape


def test_clip_names():
    file = load_tensors(GOLDEN / "clip")
    ours = clip(file, None)
    assert {"logit_scale", "vision_model.pre_layernorm.scale", "text_model.encoder.layers.1.mlp.fc2.kernel"} <= set(
        ours
    )
    assert len(ours) == len(file)
    same(clip({f"params/{name}": array for name, array in file.items()}, None), ours)
    same(clip(ours, None), ours)


def early_2022(folder, *, use_bias):
    """The golden 2021 model as DalleBart stored that architecture until March 2022, and as it is."""
    old = GOLDEN / "v0_bart_2021"
    arrays = {name: tensor.read() for name, tensor in load_tensors(old).items()}
    if not use_bias:
        for name in arrays:
            if re.search(r"(proj|fc\d)/bias$", name):
                arrays[name] = np.zeros_like(arrays[name])
    save_tensors(folder / "bart", load_config(old), {name.replace("/", "."): array for name, array in arrays.items()})
    early = {}
    for name, array in arrays.items():
        if use_bias or not re.search(r"(proj|fc\d)/bias$", name):
            name = name.replace("/shared/", "/encoder/embed_tokens/").replace(
                "/decoder_embed/", "/decoder/embed_tokens/"
            )
            early[name.replace("/", ".")] = array[2:] if "embed_positions" in name else array
    fields = DalleBartConfig.from_dict(load_config(old)).to_dict()
    save_tensors(folder / "early", fields | {"use_bias": use_bias}, early)
    return folder / "early", folder / "bart"


@pytest.mark.parametrize("use_bias", [False, True])
def test_layers_of_early_2022(tmp_path, use_bias):
    early, bart = early_2022(tmp_path, use_bias=use_bias)
    assert "model.encoder.embed_tokens.embedding" in load_tensors(early)
    model, same_model = DalleBart.from_pretrained(early), DalleBart.from_pretrained(bart)
    golden = np.load(GOLDEN / "v0_bart_2021" / "golden.npz")
    rows = [golden[name] for name in ("input_ids", "attention_mask", "decoder_input_ids")]
    logits = model(*rows)
    np.testing.assert_allclose(logits, same_model(*rows), rtol=0, atol=1e-5)
    if use_bias:
        np.testing.assert_allclose(logits, golden["logits"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("fields", [{"ln_positions": "normformer"}, {"use_glu": True}], ids=str)
def test_layers_of_early_2022_are_to_be_said_in_the_config(tmp_path, fields):
    early, _ = early_2022(tmp_path, use_bias=False)
    path = early / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    with pytest.raises(
        UserError, match=r'from December 2021 to March 2022, .*: put "ln_positions": "postln" and "use_'
    ):
        DalleBart.from_pretrained(early)


@pytest.mark.parametrize("folder", ["v0_bart_2021", "dallebart/a_normformer_glu_scan", "vqgan/tiny_f4_64", "clip"])
@pytest.mark.parametrize("shape", [(), (0,), (2, 3, 4, 5, 6), (1, 1, 1, 3)])
def test_tensors_of_any_shape_are_told_as_misshapen(tmp_path, folder, shape):
    fields, tensors = load_config(GOLDEN / folder), load_tensors(GOLDEN / folder)
    part = part_of(fields, GOLDEN / folder)
    for name in tensors:
        if any(end in name for end in ("bias", "embed", "codebook", "scale")):
            odd = dict(tensors) | {name: Tensor.of(np.zeros(shape, np.float32))}
            save_tensors(tmp_path / part, fields, odd)
            fits = shape == np.shape(tensors[name].read()) or (shape == (1, 1, 1, 3) and tensors[name].shape == (3,))
            with contextlib.nullcontext() if fits else pytest.raises(UserError, match=r"does not fit|differ in shape"):
                NETWORKS[part].open_pretrained(tmp_path / part)

"""Published names -> ours."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from dalle_mini.errors import UserError
from dalle_mini.models.config import DalleBartConfig
from dalle_mini.weights.folder import load_config, load_tensors
from dalle_mini.weights.layouts import clip, dalle_bart, vqgan
from dalle_mini.weights.tensors import Tensor

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

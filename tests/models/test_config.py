"""Configs: the published `config.json` files are read, and what cannot be built is refused in one line."""

import dataclasses
import json
from pathlib import Path
from typing import get_type_hints

import pytest

from dalle_mini.errors import UserError
from dalle_mini.models.config import CLIPConfig, CLIPTextConfig, CLIPVisionConfig, DalleBartConfig, VQGANConfig

GOLDEN = Path(__file__).parents[1] / "golden"


def golden(folder):
    return json.loads((GOLDEN / folder / "config.json").read_text())


@pytest.mark.parametrize(
    ("config_class", "folder"),
    [
        (DalleBartConfig, "dallebart/a_normformer_glu_scan"),
        (DalleBartConfig, "dallebart/e_megalike_fp16_scan"),
        (VQGANConfig, "vqgan/tiny_f4_64"),
        (CLIPConfig, "clip"),
    ],
)
def test_published_files_are_read_and_survive_json(config_class, folder):
    published = golden(folder)
    config = config_class.from_dict(published)
    ours = config.to_dict()
    assert ours.pop("model_type") == published.get("model_type", "vqgan")
    assert config_class.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    for name in ours.keys() & published.keys() - {"text_config", "vision_config"}:
        value = ours[name]
        assert published[name] == (list(value) if isinstance(value, tuple) else value)


def test_special_tokens_default_to_the_image_vocabulary():
    config = DalleBartConfig.from_dict({"image_vocab_size": 79, "eos_token_id": 65, "bos_token_id": None})
    assert (config.decoder_start_token_id, config.bos_token_id, config.pad_token_id) == (79, 79, 79)
    assert config.eos_token_id == 65


def test_an_empty_file_gives_the_published_defaults():
    assert DalleBartConfig.from_dict({}) == DalleBartConfig()
    assert CLIPConfig.from_dict({}) == CLIPConfig()
    assert VQGANConfig.from_dict({}).n_embed == 1024


def test_the_published_vqgan():
    config = VQGANConfig.from_dict({"n_embed": 16384, "ch_mult": [1, 1, 2, 2, 4], "attn_resolutions": [16]})
    assert config == VQGANConfig(n_embed=16384)
    assert (config.downscale, config.grid) == (16, 16)
    hash(config)  # a static argument of compiled programs


@pytest.mark.parametrize(
    ("config_class", "name", "value", "wanted"),
    [
        (DalleBartConfig, "d_model", "abc", "a whole number, not 'abc'"),
        (DalleBartConfig, "d_model", None, "a whole number, not None"),
        (DalleBartConfig, "d_model", 32.0, r"a whole number, not 32\.0"),
        (DalleBartConfig, "encoder_layers", True, "a whole number, not True"),
        (DalleBartConfig, "eos_token_id", "</s>", "a whole number or null, not '</s>'"),
        (DalleBartConfig, "use_scan", 1, "true, false or null, not 1"),
        (DalleBartConfig, "init_std", "0.02", "a number, not '0.02'"),
        (DalleBartConfig, "top_k", [50], r"a whole number, not \[50\]"),
        (VQGANConfig, "ch_mult", 4, "a list of whole numbers, not 4"),
        (VQGANConfig, "ch_mult", "1122", "a list of whole numbers, not '1122'"),
        (VQGANConfig, "attn_resolutions", [16, None], r"a list of whole numbers, not \[16, None\]"),
        (CLIPConfig, "projection_dim", {}, r"a whole number, not \{\}"),
        (CLIPConfig, "text_config", "abc", "an object, not 'abc'"),
    ],
)
def test_values_of_the_wrong_type_are_named(config_class, name, value, wanted):
    with pytest.raises(UserError, match=rf"^config\.json: {name} must be {wanted}$"):
        config_class.from_dict({name: value})


def test_the_towers_of_clip_are_checked_too():
    with pytest.raises(UserError, match="hidden_act must be a string, not 1"):
        CLIPConfig.from_dict({"vision_config": {"hidden_act": 1}})


def test_a_long_value_is_cut_in_the_message():
    with pytest.raises(UserError) as caught:
        DalleBartConfig.from_dict({"d_model": "x" * 10_000})
    assert len(str(caught.value)) < 120


def test_what_a_type_may_be_written_as():
    assert DalleBartConfig.from_dict({"init_std": 1}).init_std == 1
    assert VQGANConfig.from_dict({"ch_mult": (1, 2), "attn_resolutions": []}).ch_mult == (1, 2)
    assert DalleBartConfig.from_dict({"d_model_of_tomorrow": "abc"}) == DalleBartConfig()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ln_positions", "sandwich"),
        ("ln_type", "batchnorm"),
        ("use_alibi", True),
        ("tie_word_embeddings", True),
    ],
)
def test_other_architectures_are_refused_by_name(name, value):
    with pytest.raises(UserError, match=rf"^config(\.json)?: {name}={value!r} is not supported \(supported: "):
        DalleBartConfig.from_dict({name: value})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "t5"}, "model_type='t5' is another kind of model than 'dallebart'"),
        ({"activation_function": ["gelu"]}, r"activation_function must be a string, not \['gelu'\]"),
        ({"d_model": 30, "decoder_attention_heads": 4}, "30 is not a multiple of decoder_attention_heads 4"),
    ],
)
def test_configs_that_make_no_model_are_refused(values, message):
    values = {"encoder_attention_heads": 2} | values
    with pytest.raises(UserError, match=message):
        DalleBartConfig.from_dict(values)


@pytest.mark.parametrize(
    ("config", "values", "message"),
    [
        (DalleBartConfig, {"d_model": 0}, "d_model must be more than 0, not 0"),
        (DalleBartConfig, {"d_model": -32}, "d_model must be more than 0, not -32"),
        (DalleBartConfig, {"encoder_attention_heads": 0}, "encoder_attention_heads must be more than 0"),
        (DalleBartConfig, {"sinkhorn_iters": 0}, "sinkhorn_iters must be more than 0"),
        (DalleBartConfig, {"tau_init": float("nan")}, "tau_init must be more than 0, not nan"),
        (DalleBartConfig, {"guidance": float("nan")}, "guidance must be at most 1e[+]06, not nan"),
        (DalleBartConfig, {"init_std": float("inf")}, "init_std must be at most 1e[+]06, not inf"),
        (DalleBartConfig, {"caption_length": 0}, "caption_length must be more than 0"),
        (DalleBartConfig, {"top_k": -3}, "top_k -3 is less than 0"),
        (DalleBartConfig, {"decoder_start_token_id": 99, "image_vocab_size": 64}, "99 is beyond image_vocab_size 64"),
        (DalleBartConfig, {"decoder_start_token_id": -1}, "decoder_start_token_id -1 is beyond"),
        (VQGANConfig, {"ch_mult": []}, r"ch_mult must be more than 0, not \(\)"),
        (VQGANConfig, {"ch_mult": [1, 0]}, r"ch_mult must be more than 0, not \(1, 0\)"),
        (VQGANConfig, {"n_embed": 0}, "n_embed must be more than 0"),
        (VQGANConfig, {"ch": 33, "ch_mult": [1, 2]}, r"33 channels \(ch 33\) do not divide into norm_groups 32"),
        (VQGANConfig, {"model_type": "clip"}, "model_type='clip' is another kind of model than 'vqgan'"),
        (CLIPConfig, {"model_type": "vqgan"}, "model_type='vqgan' is another kind of model than 'clip'"),
        (CLIPConfig, {"vision_config": {"patch_size": 0}}, "patch_size must be more than 0"),
        (CLIPConfig, {"text_config": {"num_attention_heads": 0}}, "num_attention_heads must be more than 0"),
    ],
)
def test_values_that_make_no_sense(config, values, message):
    with pytest.raises(UserError, match=message):
        config.from_dict(values)


def test_a_vqgan_says_how_it_quantizes_and_which_pixels_it_knows():
    assert (VQGANConfig().quantizer, VQGANConfig().pixel_range) == ("nearest", (0, 1))
    config = VQGANConfig.from_dict({"quantizer": "gumbel", "pixel_range": [-1, 1]})
    assert (config.quantizer, config.pixel_range) == ("gumbel", (-1, 1))
    assert VQGANConfig.from_dict(config.to_dict()) == config
    with pytest.raises(UserError, match=r"quantizer='softmax' is not supported \(supported: nearest, cosine, gumbel\)"):
        VQGANConfig(quantizer="softmax")
    for wrong in ([0], [1, 0], [0, 0], [-1, 0, 1]):
        with pytest.raises(UserError, match=r"pixel_range must be \[lowest, highest\], not \["):
            VQGANConfig.from_dict({"pixel_range": wrong})


# The part of the published config.json files that matters, in the order base-patch32, base-patch16, large-patch14.
NOISE = {"_name_or_path": "", "pruned_heads": {}, "torch_dtype": None, "id2label": {"0": "LABEL_0"}, "top_k": 50}
OLD_IDS = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
LARGE_TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12}
LARGE_VISION = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24}
PATCH_14 = {"patch_size": 14, "image_size": 224}


@pytest.mark.parametrize(
    ("published", "text", "vision", "projection_dim"),
    [
        (
            {"text_config": {**NOISE, **OLD_IDS}, "vision_config": NOISE, "text_config_dict": None},
            CLIPTextConfig(),
            CLIPVisionConfig(),
            512,
        ),
        (
            {"projection_dim": 512, "text_config": OLD_IDS, "vision_config": {**NOISE, "patch_size": 16}},
            CLIPTextConfig(),
            CLIPVisionConfig(patch_size=16),
            512,
        ),
        (
            {
                "projection_dim": 768,
                "text_config": {**NOISE, **OLD_IDS, **LARGE_TEXT},
                "text_config_dict": {**LARGE_TEXT, "projection_dim": 768},
                "vision_config": {**NOISE, **LARGE_VISION, **PATCH_14},
                "vision_config_dict": {**LARGE_VISION, **PATCH_14, "projection_dim": 768},
            },
            CLIPTextConfig(**LARGE_TEXT),
            CLIPVisionConfig(**LARGE_VISION, **PATCH_14),
            768,
        ),
    ],
)
def test_the_configs_of_openai(published, text, vision, projection_dim):
    config = CLIPConfig.from_dict(published)
    assert config == CLIPConfig(text, vision, projection_dim)
    assert config.text.eos_token_id == 2
    assert CLIPConfig.from_dict(config.to_dict()) == config


def test_the_older_name_of_a_towers_config_precedes():
    config = CLIPConfig.from_dict({"text_config": {"vocab_size": 7}, "text_config_dict": {"vocab_size": 9}})
    assert config.text.vocab_size == 9
    with pytest.raises(UserError, match="vision_config_dict must be an object, not 'abc'"):
        CLIPConfig.from_dict({"vision_config_dict": "abc"})


def test_values_that_do_not_go_together():
    with pytest.raises(UserError, match="d_model 32 is not a multiple of decoder_attention_heads 5"):
        DalleBartConfig(d_model=32, decoder_attention_heads=5)
    with pytest.raises(UserError, match="resolution 20 does not halve 4 times"):
        VQGANConfig(resolution=20)


def test_models_name_the_folder_of_a_wrong_config(tmp_path):
    from dalle_mini.models.dalle_bart import DalleBart

    (tmp_path / "config.json").write_text('{"d_model": "abc"}')
    with pytest.raises(UserError, match=rf"^{tmp_path}: config\.json: d_model must be a whole number, not 'abc'$"):
        DalleBart.from_pretrained(tmp_path)


def numbers(kind):
    hints = get_type_hints(kind)
    return [(f.name, hints[f.name]) for f in dataclasses.fields(kind) if hints[f.name] not in (str, bool, bool | None)]


@pytest.mark.parametrize("kind", [DalleBartConfig, VQGANConfig, CLIPTextConfig, CLIPVisionConfig, CLIPConfig])
def test_every_number_has_an_upper_bound(kind):
    for name, wanted in numbers(kind):
        if dataclasses.is_dataclass(wanted):
            continue
        for number in (2**40, 10**18, 10**400, 10**5000) if "float" not in str(wanted) else (1e300, 10**400, 10**5000):
            value = [number] if "tuple" in str(wanted) else number
            with pytest.raises(UserError, match=name) as caught:
                kind.from_dict({name: value})
            assert len(str(caught.value)) < 250


def test_the_bounds_of_a_network_can_be_raised(monkeypatch):
    with pytest.raises(UserError, match=r"encoder_layers must be at most 256, not 300 \(limit model_layers: .*LIMITS"):
        DalleBartConfig.from_dict({"encoder_layers": 300})
    with pytest.raises(UserError, match=r"288 blocks, num_res_blocks on each level of ch_mult, are more than 256"):
        VQGANConfig.from_dict({"num_res_blocks": 144, "ch_mult": [1, 2]})
    with pytest.raises(UserError, match=r"200000 channels, ch times ch_mult, are more than 131072"):
        VQGANConfig.from_dict({"ch": 20_000, "ch_mult": [10]})
    with pytest.raises(UserError, match="ch_mult has 65 items, more than 64"):
        VQGANConfig.from_dict({"ch_mult": [1] * 65})
    monkeypatch.setenv("DALLE_MINI_LIMITS", "model_layers=300")
    assert DalleBartConfig.from_dict({"encoder_layers": 300}).encoder_layers == 300

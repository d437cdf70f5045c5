"""Published weights -> our folders and bundles, and what `info` tells of them."""

import importlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from dalle_mini import DalleMini
from dalle_mini.cli import main
from dalle_mini.conversion.convert import convert
from dalle_mini.conversion.describe import describe
from dalle_mini.errors import UserError
from dalle_mini.models import DalleBart
from dalle_mini.weights.folder import load_tensors, save_tensors

convert_module = importlib.import_module("dalle_mini.conversion.convert")
GOLDEN = Path(__file__).parents[1] / "golden"
SCANNED, UNROLLED = GOLDEN / "dallebart/a_normformer_glu_scan", GOLDEN / "dallebart/b_normformer_glu_unrolled"
SHARDED, WHOLE = GOLDEN / "dallebart/f_sharded_of_e", GOLDEN / "dallebart/e_megalike_fp16_scan"
VQGAN, CLIP = GOLDEN / "vqgan/tiny_f4_64", GOLDEN / "clip"


def stored(folder):
    return {name: tensor.read() for name, tensor in load_tensors(folder).items()}


def equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.parametrize(("one", "other"), [(SCANNED, UNROLLED), (WHOLE, SHARDED)])
def test_two_forms_of_a_model_give_equal_files(one, other, tmp_path):
    assert convert(one, tmp_path / "one") == [tmp_path / "one"]
    convert(other, tmp_path / "other")
    equal(stored(tmp_path / "one"), stored(tmp_path / "other"))


@pytest.mark.parametrize("source", [SCANNED, VQGAN, CLIP, GOLDEN / "v0_bart_2021"], ids=lambda path: path.name)
def test_converting_again_changes_nothing(source, tmp_path):
    convert(source, tmp_path / "once")
    convert(tmp_path / "once", tmp_path / "twice")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "twice" / name).read_bytes()


def test_the_converted_model_says_the_same(tmp_path):
    convert(UNROLLED, tmp_path / "ours")
    golden = np.load(SCANNED / "golden.npz")
    rows = [golden[name] for name in ("input_ids", "attention_mask", "decoder_input_ids")]
    np.testing.assert_array_equal(
        DalleBart.from_pretrained(tmp_path / "ours")(*rows), DalleBart.from_pretrained(UNROLLED)(*rows)
    )


def test_dtype_is_of_the_file(tmp_path):
    convert(SCANNED, tmp_path / "half", dtype="float16")
    half, whole = stored(tmp_path / "half"), stored(SCANNED)
    assert {str(array.dtype) for array in half.values()} == {"float16"}
    name = "model/encoder/embed_tokens/embedding"
    np.testing.assert_array_equal(half["encoder.embed_tokens.embedding"], whole[name].astype(np.float16))


@pytest.mark.slow
def test_a_bundle_draws_what_its_parts_draw(golden_bundle, tmp_path):
    parts = {part: golden_bundle / part for part in ("dalle", "vqgan", "clip")}
    folders = convert(parts["dalle"], tmp_path / "bundle", parts["vqgan"], parts["clip"])
    assert folders == [tmp_path / "bundle" / part for part in parts]
    options = {"candidates": 2, "keep": 2, "seed": 5}
    ours = DalleMini.from_pretrained(tmp_path / "bundle").generate(["a #redboat"], **options)[0]
    theirs = DalleMini.from_pretrained(golden_bundle).generate(["a #redboat"], **options)[0]
    np.testing.assert_array_equal(ours.tokens, theirs.tokens)
    assert ours.scores == theirs.scores
    again = convert(tmp_path / "bundle", tmp_path / "again")  # a bundle is a source too
    assert [path.name for path in again] == list(parts)


def test_what_cannot_be_converted(tmp_path):
    taken = tmp_path / "taken"
    taken.mkdir()
    with pytest.raises(UserError, match="taken exists already"):
        convert(SCANNED, taken)
    with pytest.raises(UserError, match="both --vqgan and --clip"):
        convert(SCANNED, tmp_path / "new", vqgan=VQGAN)
    other = tmp_path / "other"
    shutil.copytree(SCANNED, other)
    (other / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(UserError, match="model_type='t5' is none of"):
        convert(other, tmp_path / "new")
    (other / "config.json").write_text((SCANNED / "config.json").read_text())
    (other / "flax_model.msgpack").write_bytes((SCANNED / "flax_model.msgpack").read_bytes()[:9000])
    with pytest.raises(UserError, match="is cut short"):
        convert(other, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "taken"]  # and nothing half-made


def test_a_bundle_needs_tokenizers(golden_bundle, tmp_path):
    with pytest.raises(UserError, match=r"glu_scan has no tokenizer, .*: put tokenizer.json, or vocab.json and"):
        convert(SCANNED, tmp_path / "bundle", golden_bundle / "vqgan", golden_bundle / "clip")
    assert not (tmp_path / "bundle").exists()


def changed(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.fixture
def bundle(golden_bundle, tmp_path):
    return shutil.copytree(golden_bundle, tmp_path / "a" / "bundle")


def test_the_parts_of_a_bundle_are_of_the_right_kind(bundle, tmp_path):
    parts = {part: bundle / part for part in ("dalle", "vqgan", "clip")}
    with pytest.raises(UserError, match="clip holds a CLIP where a bundle's VQGAN should be: name"):
        convert(parts["dalle"], tmp_path / "new", vqgan=parts["clip"], clip=parts["vqgan"])  # which has no tokenizer
    with pytest.raises(UserError, match="vqgan holds a VQGAN where a bundle's DalleBart should be"):
        convert(parts["vqgan"], tmp_path / "new", vqgan=parts["vqgan"], clip=parts["clip"])
    parts["clip"].rename(bundle / "aside")
    parts["vqgan"].rename(parts["clip"])
    (bundle / "aside").rename(parts["vqgan"])
    with pytest.raises(UserError, match="vqgan holds a CLIP where a bundle's VQGAN should be"):
        convert(bundle, tmp_path / "new")
    dalle, vqgan, clip = describe(bundle)
    assert dalle.missing == []
    assert (vqgan.network, clip.network) == ("CLIP", "VQGAN") and vqgan.parameters
    assert [line for line in vqgan.missing if "vqgan holds a CLIP where a bundle's VQGAN should be" in line]
    assert [line for line in clip.missing if "clip holds a VQGAN where a bundle's CLIP should be" in line]


@pytest.mark.parametrize(
    ("fields", "problem"), [({"image_length": 9}, "images are 4x4 tokens"), ({"image_vocab_size": 63}, "n_embed 64")]
)
def test_the_vqgan_of_a_bundle_fits_its_decoder(bundle, tmp_path, fields, problem):
    changed(bundle / "dalle", **fields, decoder_start_token_id=None)
    with pytest.raises(UserError, match=f"vqgan does not fit .*dalle: its .*{problem}"):
        convert(bundle, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    _, vqgan, clip = describe(bundle)
    (line,) = vqgan.missing
    assert "does not fit" in line and problem in line and clip.missing == []


def test_weights_that_are_no_floats(tmp_path):
    arrays = {name.replace("/", "."): tensor.read() for name, tensor in load_tensors(SCANNED).items()}
    config = json.loads((SCANNED / "config.json").read_text())
    arrays["lm_head.kernel"] = arrays["lm_head.kernel"].astype(np.int32)
    save_tensors(tmp_path / "old", config, arrays)
    message = "1 of a type that is not floating-point: lm_head.kernel is int32"
    with pytest.raises(UserError, match=message):
        DalleBart.from_pretrained(tmp_path / "old")
    with pytest.raises(UserError, match=message):
        convert(tmp_path / "old", tmp_path / "new")
    assert message in describe(tmp_path / "old")[0].missing[0]


def test_a_layer_that_is_no_floats(tmp_path):
    arrays = {name.replace("/", "."): tensor.read() for name, tensor in load_tensors(UNROLLED).items()}
    name = "model.decoder.layers.FlaxBartDecoderLayer_1.FlaxBartAttention_0.q_proj.kernel"
    arrays[name] = arrays[name].astype(np.int8)
    save_tensors(tmp_path / "old", json.loads((UNROLLED / "config.json").read_text()), arrays)
    with pytest.raises(UserError, match=rf"layers are of a type that is not floating-point: {name} is int8"):
        DalleBart.from_pretrained(tmp_path / "old")


def test_a_target_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/new: .*file is a file") as caught:
        convert(SCANNED, tmp_path / "file" / "new")
    assert "partial" not in str(caught.value)


@pytest.mark.parametrize("room", [100, 5000])  # for the config alone, and for some of the weights
def test_a_full_disk_is_one_line_and_leaves_nothing(golden_bundle, tmp_path, full_disk, room):
    with full_disk(room), pytest.raises(UserError, match=r"new(/vqgan)?: File too large") as caught:
        convert(golden_bundle / "vqgan", tmp_path / "new")
    assert "partial" not in str(caught.value) and "\n" not in str(caught.value) and os.listdir(tmp_path) == []
    convert(golden_bundle / "vqgan", tmp_path / "new")
    assert os.listdir(tmp_path) == ["new"]


def test_a_run_that_was_quicker_keeps_its_folder(golden_bundle, tmp_path, monkeypatch):
    target, network = tmp_path / "new", convert_module._network

    def while_another_does(*args):
        monkeypatch.setattr(convert_module, "_network", network)
        convert(golden_bundle / "clip", target)
        return network(*args)

    monkeypatch.setattr(convert_module, "_network", while_another_does)
    with pytest.raises(UserError, match=r"new now exists, by another run"):
        convert(golden_bundle / "vqgan", target)
    assert json.loads((target / "config.json").read_text())["model_type"] == "clip" and os.listdir(tmp_path) == ["new"]


def test_what_a_killed_run_left_is_removed_and_a_link_is_not_followed(golden_bundle, tmp_path):
    (tmp_path / ".new.0123abcd.partial").mkdir()
    (tmp_path / ".new.0123456789abcdef.partial").mkdir()
    (tmp_path / "new").symlink_to(tmp_path / "missing")
    with pytest.raises(UserError, match="new exists already"):
        convert(golden_bundle / "vqgan", tmp_path / "new")
    convert(golden_bundle / "vqgan", tmp_path / "other")
    assert sorted(os.listdir(tmp_path)) == ["new", "other"]


def test_info_of_a_bundle(golden_bundle):
    dalle, vqgan, clip = describe(golden_bundle)
    assert [one.network for one in (dalle, vqgan, clip)] == ["DalleBart", "VQGAN", "CLIP"]
    sizes = [sum(array.size for array in stored(golden_bundle / part).values()) for part in ("dalle", "vqgan", "clip")]
    assert [dalle.parameters, vqgan.parameters, clip.parameters] == sizes
    assert dalle.dtypes == {"float32": sizes[0]}
    assert dalle.files["flax_model.msgpack"] == (SCANNED / "flax_model.msgpack").stat().st_size
    assert dalle.tokens and clip.tokens and vqgan.tokens is None
    assert dalle.missing == vqgan.missing == clip.missing == []
    assert "2 encoder and 3 decoder layers of width 32, normformer, GLU" in str(dalle)


def test_info_of_what_is_missing(tmp_path):
    shutil.copy(SCANNED / "config.json", tmp_path)
    (one,) = describe(tmp_path)
    assert one.parameters == 0
    assert [line for line in one.missing if "no weights" in line]
    assert [line for line in one.missing if "captions cannot be read" in line]
    assert [line for line in one.missing if "hashtags" in line]


@pytest.mark.parametrize("network", ["seq2seq", "vqgan", "clip"])
def test_info_of_a_training_run_names_its_weights(network, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"trainer": network, "training": {}, "loop": {}}))
    assert main(["info", str(run)]) == 2
    way_out = f"`dalle-mini convert {run} FOLDER` writes those of its newest checkpoint"
    assert capsys.readouterr().err.endswith(f"not of a model: it has no weights before its end; {way_out}\n")
    shutil.copytree(SCANNED, run / "final")
    assert main(["info", str(run)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: {run}: the folder of a training run, not of a model: name {run / 'final'}"


@pytest.mark.parametrize("part", ["dalle", "vqgan", "clip"])
def test_info_of_a_bundle_that_lacks_a_part(bundle, part, capsys):
    parts = ["dalle", "vqgan", "clip"]
    shutil.rmtree(bundle / part)
    described = dict(zip(parts, describe(bundle), strict=True))
    lost = described.pop(part)
    assert lost.network == {"dalle": "DalleBart", "vqgan": "VQGAN", "clip": "CLIP"}[part]
    assert lost.folder == bundle / part and lost.missing[0].startswith(f"no such folder: {bundle / part}")
    assert all(one.parameters and one.missing == [] for one in described.values())
    assert main(["info", str(bundle)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("architecture") == shown.count("parameters") == 2
    assert main(["info", str(bundle), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 3


def test_info_of_a_repository_that_lacks_a_part(bundle, hub):
    shutil.rmtree(bundle / "vqgan")
    hub.add("acme/pack", bundle)
    dalle, vqgan, clip = describe("acme/pack")
    assert dalle.missing == clip.missing == [] and dalle.parameters and clip.parameters
    assert vqgan.network == "VQGAN" and "acme/pack" in vqgan.missing[0]


@pytest.mark.parametrize(
    ("part", "config", "problem"),
    [
        ("dalle", "{", "not valid JSON"),
        ("vqgan", '{"ch_mult": [1, 2], "n_embed": "many"}', "n_embed must be a whole number"),
        ("clip", '{"model_type": "t5"}', "model_type='t5' is none of"),
    ],
)
def test_info_of_a_bundle_with_a_broken_part(bundle, part, config, problem):
    (bundle / part / "config.json").write_text(config)
    described = dict(zip(["dalle", "vqgan", "clip"], describe(bundle), strict=True))
    broken = described.pop(part)
    assert [line for line in broken.missing if str(bundle / part) in line and problem in line]
    assert broken.files["config.json"] == len(config)
    assert all(one.parameters and one.missing == [] for one in described.values())


def test_the_verbs(tmp_path, capsys):
    assert main(["convert", str(VQGAN), str(tmp_path / "vqgan"), "--dtype", "bfloat16"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'vqgan'}\n"
    assert main(["info", str(tmp_path / "vqgan")]) == 0
    shown = capsys.readouterr().out
    assert "codebook of 64" in shown and "bfloat16" in shown and "nothing" in shown
    assert main(["info", str(tmp_path / "vqgan"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["network"] == "VQGAN"
    assert main(["info", str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.startswith("error: no such folder")


def test_the_verbs_know_the_shipped_model_by_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["info"]) == 0
    shown = capsys.readouterr().out
    assert main(["info", "shipped"]) == 0
    assert capsys.readouterr().out == shown
    assert main(["convert", "shipped", "copy"]) == 0
    assert sorted(path.name for path in Path("copy").iterdir() if path.is_dir()) == ["clip", "dalle", "vqgan"]
